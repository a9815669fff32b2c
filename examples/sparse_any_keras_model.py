"""Three ordinary Keras models, made sparse, trained sparsely, saved and loaded.

The models are MobileNetV3 and ConvNeXt from `keras.applications`, and a tagger of two bidirectional
LSTMs. The data are random, because the example only shows the calls.

    python examples/sparse_any_keras_model.py [--sparsity 0.8] [--models tagger mobilenet]
"""

import os
import tempfile
from pathlib import Path
from typing import Literal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tyro
from keras import layers

import keras_sparse_dm as ksd

CLASSES = 10


def tagger():
    """Return a model that tags each word of a sentence, and random sentences."""
    words = keras.Input((None,), dtype="int32")
    x = layers.Embedding(1000, 32, mask_zero=True)(words)
    for units in (32, 16):
        x = layers.Bidirectional(layers.LSTM(units, return_sequences=True))(x)
    tags = layers.TimeDistributed(layers.Dense(CLASSES, "softmax"))(x)
    rng = np.random.default_rng(0)
    return keras.Model(words, tags, name="tagger"), rng.integers(1, 1000, (6, 12))


def mobilenet():
    return _application(keras.applications.MobileNetV3Small, 64)


def convnext():
    return _application(keras.applications.ConvNeXtTiny, 32)


def _application(make, side):
    shape = (side, side, 3)
    model = make(input_shape=shape, weights=None, classes=CLASSES)
    return model, np.random.default_rng(0).uniform(0, 255, (6, *shape)).astype("float32")


MODELS = {"tagger": tagger, "mobilenet": mobilenet, "convnext": convnext}


def run(name, sparsity=0.8, folder="."):
    """Sparsify, train, save and load one of `MODELS`; return the report of the loaded model."""
    keras.utils.set_random_seed(0)
    model, x = MODELS[name]()
    y = np.random.default_rng(1).integers(0, CLASSES, x.shape[: len(model.output_shape) - 1])

    # Any built Keras model works, compiled or not.
    loss = "sparse_categorical_crossentropy"
    # Eager execution, because tracing takes longer than three steps.
    model.compile(keras.optimizers.AdamW(1e-3), loss, run_eagerly=True)
    ksd.sparsify(model, sparsity, seed=0)

    # A topology update at every step.
    updates = ksd.DynamicSparsity("rigl", update_every=1, prune_rate=0.3)
    model.fit(x, y, batch_size=2, callbacks=[updates], verbose=0)
    assert model.optimizer.topology_updates == 3
    ksd.sparsity.check_invariant(model)

    # Masks, targets and the optimizer's state are in the file.
    path = Path(folder) / f"{name}.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    return ksd.sparsity_report(loaded)


def main(
    models: tuple[Literal["tagger", "mobilenet", "convnext"], ...] = tuple(MODELS),
    sparsity: float = 0.8,
):
    """Make three Keras models sparse, train them sparsely, save and load them.

    Args:
        models: Names of the models.
        sparsity: Share of the weights to prune.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            print(
                f"{name}: the same after saving and loading", run(name, sparsity, folder), sep="\n"
            )


if __name__ == "__main__":
    tyro.cli(main)
