"""GRUs in a form that LiteRT runs fast.

Keras's loop multiplies one point after the other with the kernel, and the toolkit makes every
step copy the whole sequence. Here the inputs of all points meet the kernel at once, before the
loop, and a step copies a small part of the sequence. The numbers are the same.
"""

import math

import keras
import tensorflow as tf

from keras_sparse_dm._keras import flatten_layers
from keras_sparse_dm.layers.shared_copy import shared_copy

# Steps of the inner loop of two. LiteRT copies all that a loop reads and writes, in every step,
# so a step should see a part of the sequence only; and a part costs as much as some steps.
PART = 16
# Of what activations a gate is 1, for an input as large as this.
CLOSING = (keras.activations.sigmoid, keras.activations.hard_sigmoid)
CLOSED = 1e4


class Floats:
    """Products of activations and kernels as they are."""

    def product(self, site, inputs, kernel, bias=None, reach=0.0):
        """Multiply.

        Args:
            site: What the product is called; no two of a model have the same name.
            inputs: Float tensor (n, inputs).
            kernel: Float tensor (inputs, outputs).
            bias: Float tensor (outputs,) to add, or None.
            reach: Integer outputs have levels up to there, on both sides, at least.
        """
        outputs = tf.matmul(inputs, kernel)
        return outputs if bias is None else outputs + bias


class Observed(Floats):
    """The same, noting between what inputs and outputs of each product lie.

    Attributes:
        extremes: `{site: [least input, largest input, least output, largest output, largest
            magnitude in the kernel]}`, tensors.
    """

    def __init__(self):
        self.extremes = {}

    def product(self, site, inputs, kernel, bias=None, reach=0.0):
        outputs = super().product(site, inputs, kernel, bias)
        ends = (tf.reduce_min, tf.reduce_max)
        noted = [end(values) for values in (inputs, outputs) for end in ends]
        self.extremes[site] = [*noted, tf.reduce_max(tf.abs(kernel))]
        return outputs


class Integers(Floats):
    """Products that the converter makes products of int8, by what was noted of them.

    Kernels are rounded to 255 levels around zero, so that zeros stay zero. (The converter cannot
    transpose one that has levels of its own for each output.)

    Args:
        extremes: As `Observed` has them, numbers.
    """

    def __init__(self, extremes):
        self.extremes = extremes

    def product(self, site, inputs, kernel, bias=None, reach=0.0):
        ends = self.extremes[site]
        inputs = _rounded(inputs, *ends[:2])
        largest = max(float(ends[4]), 1e-6)
        kernel = tf.quantization.fake_quant_with_min_max_args(
            kernel, -largest, largest, narrow_range=True
        )
        low, high = min(ends[2], -reach), max(ends[3], reach)
        return _rounded(super().product(site, inputs, kernel, bias), low, high)


def _rounded(values, low, high):
    # Zero must be one of the levels.
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    return tf.quantization.fake_quant_with_min_max_args(values, low, max(high, low + 1e-6))


def litert_form(model, products=None):
    """Return a copy of a model that shares its variables, with GRUs in that form.

    Layers of other kinds, and GRUs with masks and an initial state of their own, compute as
    Keras does it.

    Args:
        model: A Keras model.
        products: How to multiply, in GRUs and dense layers; `Floats` by default.
    """
    model, _ = shared_copy(model)
    for i, layer in enumerate(flatten_layers(model)):
        if isinstance(layer, keras.layers.GRU):
            vars(layer)["inner_loop"] = _inner_loop(layer, products or Floats(), str(i))
        elif type(layer).call in _DENSE_CALLS and products is not None:
            vars(layer)["call"] = _dense(layer, products, str(i))
    return model


# Of the sparse layer it is the same, and of a subclass with one of its own it is not known.
_DENSE_CALLS = (keras.layers.Dense.call,)


def _dense(layer, products, site):
    """Return the function that a dense layer calls instead of its own `call`."""

    def call(inputs, training=None):
        sizes, features = inputs.shape[:-1], inputs.shape[-1]
        bias = tf.cast(layer.bias, inputs.dtype) if layer.use_bias else None
        kernel = tf.cast(layer.kernel, inputs.dtype)
        rows = tf.reshape(inputs, (-1, features))
        # The converter gives what is joined to the outputs the levels of the outputs: sines and
        # cosines, where time is joined, which must fit.
        outputs = products.product(site, rows, kernel, bias, reach=1.0)
        outputs = tf.reshape(outputs, (*sizes, layer.units))
        return outputs if layer.activation is None else layer.activation(outputs)

    return call


def _inner_loop(layer, products, site):
    """Return the function that a GRU layer calls instead of its own `inner_loop`."""

    def inner_loop(sequences, initial_state, mask, training=False):
        (state,) = keras.tree.flatten(initial_state)
        valid = mask[0] if isinstance(mask, (list, tuple)) else mask
        known = tf.get_static_value(state)
        # Where masked steps come first, Keras's outputs there are zero whatever the state is.
        unlike = known is None or known.any() or layer.cell.recurrent_activation not in CLOSING
        if None in sequences.shape or (valid is not None and unlike):
            return type(layer).inner_loop(layer, sequences, initial_state, mask, training=training)
        return _gru(layer, sequences, state, valid, products, site)

    return inner_loop


def _gru(layer, sequences, state, mask, products, site):
    """Keras's GRU (Cho et al. 2014; Keras's gates z, r, h), without dropout.

    Args:
        layer: The `keras.layers.GRU`.
        sequences: Float tensor (batch_size, length, features), all sizes known.
        state: Float tensor (batch_size, units).
        mask: Boolean tensor (batch_size, length) or None.
        products: How to multiply.
        site: Name of the layer's products.

    Returns:
        `(last output, outputs, states)`, as an `inner_loop` gives them.
    """
    cell, units = layer.cell, layer.cell.units
    batch_size, length, features = sequences.shape
    dtype = sequences.dtype
    kernel = tf.cast(cell.kernel, dtype)
    recurrent_kernel = tf.cast(cell.recurrent_kernel, dtype)
    input_bias = recurrent_bias = None
    if cell.use_bias and cell.reset_after:
        input_bias, recurrent_bias = tf.unstack(tf.cast(cell.bias, dtype))
    elif cell.use_bias:
        input_bias = tf.cast(cell.bias, dtype)

    def recurrent_product(states, by=products):
        return by.product(f"{site} recurrent", states, recurrent_kernel, recurrent_bias)

    # What is computed in a loop cannot be noted there, but all states are known after it.
    observing = isinstance(products, Observed)
    rows = tf.reshape(sequences, (-1, features))
    projected = products.product(f"{site} inputs", rows, kernel, input_bias)
    # Time first, so that a step reads and writes one piece of memory.
    projected = tf.transpose(tf.reshape(projected, (batch_size, length, 3 * units)), (1, 0, 2))
    gates = 2 * units
    x_gates, x_candidate = projected[..., :gates], projected[..., gates:]
    if mask is not None:
        # A gate that lets nothing in keeps the state where there is no point.
        closed = tf.concat([tf.fill((units,), CLOSED), tf.zeros((units,))], axis=0)
        padding = tf.cast(tf.logical_not(tf.transpose(mask)), dtype)
        x_gates += padding[..., None] * tf.cast(closed, dtype)
    # Parts of the sequence, of like length.
    parts = max(1, round(length / PART))
    size = math.ceil(length / parts)
    x_gates, x_candidate = (
        _in_parts(tf.reverse(x, [0]) if layer.go_backwards else x, parts, size)
        for x in (x_gates, x_candidate)
    )

    def step(x_gates, x_candidate, state):
        if cell.reset_after:
            recurrent = recurrent_product(state, Floats() if observing else products)
            update_reset = cell.recurrent_activation(x_gates + recurrent[:, :gates])
            update, reset = tf.split(update_reset, 2, axis=-1)
            candidate = reset * recurrent[:, gates:]
        else:
            recurrent = tf.matmul(state, recurrent_kernel[:, :gates])
            update_reset = cell.recurrent_activation(x_gates + recurrent)
            update, reset = tf.split(update_reset, 2, axis=-1)
            candidate = tf.matmul(reset * state, recurrent_kernel[:, gates:])
        candidate = cell.activation(x_candidate + candidate)
        return candidate + update * (state - candidate)

    # `tf.gather`, as LiteRT does not know the shape of a slice at a place that is not constant.
    def one_part(i, state, outputs):
        part_gates, part_candidate = tf.gather(x_gates, i), tf.gather(x_candidate, i)

        def one_step(j, state, outputs):
            state = step(tf.gather(part_gates, j), tf.gather(part_candidate, j), state)
            return j + 1, state, outputs.write(j, state)

        _, state, rows = tf.while_loop(
            lambda j, *_: j < size,
            one_step,
            (tf.constant(0), state, _written_over(part_candidate)),
        )
        return i + 1, state, outputs.write(i, rows.stack())

    _, _, outputs = tf.while_loop(
        lambda i, *_: i < parts,
        one_part,
        (tf.constant(0), state, _written_over(x_candidate)),
    )
    outputs = tf.reshape(outputs.stack(), (parts * size, batch_size, units))[:length]
    state = outputs[-1]
    if observing and cell.reset_after:
        recurrent_product(tf.reshape(outputs, (-1, units)))
    if mask is not None and layer.zero_output_for_mask:
        valid = tf.transpose(tf.reverse(mask, [1]) if layer.go_backwards else mask)
        outputs = tf.where(valid[..., None], outputs, tf.zeros_like(outputs))
    return outputs[-1], tf.transpose(outputs, (1, 0, 2)), [state]


def _in_parts(x, parts, size):
    """Split (length, ...) into (parts, size, ...), padded with zeros."""
    missing = parts * size - x.shape[0]
    if missing:
        x = tf.pad(x, [(0, missing)] + [(0, 0)] * (len(x.shape) - 1))
    return tf.reshape(x, (parts, size, *x.shape[1:]))


def _written_over(values):
    """A `tf.TensorArray` of these values. Zeros instead would be stored in the file."""
    array = tf.TensorArray(values.dtype, values.shape[0], element_shape=values.shape[1:])
    return array.unstack(values)
