"""Stacks of bidirectional GRUs, and their outputs computed by Keras layer by layer."""

import keras

from keras_sparse_dm.layers import SparseGRU


def make_layers(units=(5, 3), features=4, **options):
    layers = []
    for number in units:
        gru = SparseGRU(number, return_sequences=True, **options)
        layers.append(keras.layers.Bidirectional(gru))
        layers[-1].build((None, None, features))
        features = 2 * number
    # Zero biases would hide errors in adding them.
    for layer in layers:
        for variable in layer.trainable_variables:
            variable.assign(keras.random.normal(variable.shape, stddev=0.5))
    return layers


def one_after_the_other(layers, sequences, mask, training=False):
    """Return the output of the last layer, which is zero at padding."""
    for layer in layers:
        sequences = layer(sequences, mask=mask, training=training)
    return sequences
