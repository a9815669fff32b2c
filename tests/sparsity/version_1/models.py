"""Models of the files that keras_sparse_dm 0.1 wrote; run there to write them again.

python models.py FOLDER
"""

import sys
from pathlib import Path

import keras
import numpy as np

X = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")


@keras.saving.register_keras_serializable("version_1")
class Net(keras.Model):
    """Model with unnamed sublayers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Dense(8)
        self.blocks = [keras.layers.Dense(8), keras.layers.Dense(8)]

    def build(self, input_shape):
        for layer in (self.first, *self.blocks):
            layer.build(input_shape)
        self.built = True

    def call(self, x):
        for layer in (self.first, *self.blocks):
            x = keras.ops.relu(layer(x))
        return x


def functional():
    inputs = keras.Input((8,))
    h = keras.layers.Dense(12, name="first")(inputs)
    h = keras.layers.Reshape((4, 3))(h)
    h = keras.layers.Bidirectional(keras.layers.GRU(4, return_sequences=True), name="gru")(h)
    h = keras.layers.MultiHeadAttention(2, 3, name="attention")(h, h)
    return keras.Model(inputs, keras.layers.Dense(2, name="last")(keras.layers.Flatten()(h)))


def subclassed():
    model = Net()
    model.build((None, 8))
    return model


def layers():
    import keras_sparse_dm as ksd

    return keras.Sequential(
        [keras.Input((8,)), ksd.layers.SparseDense(8), ksd.layers.SparseDense(2)]
    )


MODELS = {"functional": functional, "subclassed": subclassed, "layers": layers}


def compiled(model, name):
    optimizer = keras.optimizers.AdamW(1e-2, use_ema=True)
    if name == "layers":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse")


def fit(model):
    import keras_sparse_dm as ksd

    targets = np.zeros(model(X).shape, "float32")
    callback = ksd.DynamicSparsity("snfs", update_every=2, prune_rate=0.3, seed=0)
    model.fit(X, targets, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[callback])


def state(model):
    """Return `{name: array}` of everything that training depends on."""
    import keras_sparse_dm as ksd

    found = {f"weight_{i}": np.array(v) for i, v in enumerate(model.trainable_variables)}
    for i, k in enumerate(ksd.sparsity.masked_kernels(model)):
        found[f"mask_{i}"] = np.array(k.mask)
        found[f"target_{i}"] = np.array(k.target.density)
    inner = model.optimizer
    while getattr(inner, "inner_optimizer", None) is not None:
        inner = inner.inner_optimizer
    found |= {f"inner_{i}": np.array(v) for i, v in enumerate(inner.variables)}
    return found


def main(folder):
    import keras_sparse_dm as ksd

    for name, make in MODELS.items():
        keras.utils.set_random_seed(0)
        model = make()
        ksd.sparsify(model, 0.6, seed=0)
        compiled(model, name)
        fit(model)
        model.save(folder / f"{name}.keras")
        np.savez_compressed(folder / f"{name}-saved.npz", **state(model))
        fit(model)
        np.savez_compressed(folder / f"{name}-resumed.npz", **state(model))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
