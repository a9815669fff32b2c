"""Models of the `.sparse` files of version 1 beside this script, and their expected contents.

The files were written by keras_sparse_dm at commit d63a47d, the last one to write version 1. There,
from the root of the repository:

    python tests/export/version_1/write.py tests/export/version_1
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_sparse_dm as ksd
from keras_sparse_dm.diffusion import DiffusionModel, NoiseSchedule
from keras_sparse_dm.models import ChiroDiff

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(16, 6)).astype("float32")
Y = X[:, :2] ** 2
IMAGES = RANDOM.normal(size=(2, 4, 4, 2)).astype("float32")
SKETCHES = {"lengths": [3, 5], "steps": 2, "seed": 0}


@keras.saving.register_keras_serializable(package="version_1")
class Unnamed(keras.Model):
    """Model of unnamed layers of equal shapes, in a list and in attributes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [layers.Dense(6, "tanh") for _ in range(2)]
        self.first, self.last = layers.Dense(6, "tanh"), layers.Dense(6)

    def build(self, input_shape):
        for layer in (self.first, *self.blocks, self.last):
            layer.build(input_shape)
        self.scale = self.add_weight(name="scale", shape=(6,), initializer="ones")
        self.built = True

    def call(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(self.scale * x)


def unnamed():
    # The numbers in the names then differ from those of the program that loads the file.
    [layers.Dense(1) for _ in range(7)]
    model = Unnamed()
    model(X)
    ksd.sparsify(model, 0.6, seed=0)
    return model


def functional():
    x = keras.Input((4, 4, 2))
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    y = layers.SeparableConv2D(2, 3, padding="same")(shared(shared(x)))
    model = keras.Model(x, layers.Dense(3)(layers.Flatten()(layers.Add()([x, y]))))
    ksd.sparsify(model, 0.7, "uniform", seed=0)
    return model


def network():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, "relu"),
            layers.Dropout(0.2, seed=3),
            layers.Dense(2),
        ]
    )
    ksd.sparsify(model, 0.5, seed=0)
    optimizer = keras.optimizers.AdamW(1e-2, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def fit(model, method, epochs):
    """Train up to a number of epochs."""
    sparsity = ksd.DynamicSparsity(method, update_every=3, prune_rate=0.4, seed=5)
    done = int(model.optimizer.iterations) // 4
    model.fit(
        *(X, Y),
        batch_size=4,
        shuffle=False,
        verbose=0,
        epochs=epochs,
        initial_epoch=done,
        callbacks=[sparsity],
    )


def rigl():
    model = network()
    fit(model, "rigl", 2)
    return model


def snfs():
    model = network()
    fit(model, "snfs", 2)
    return model


def diffusion():
    denoiser = ChiroDiff(units=4, num_layers=1, time_features=2, timesteps=20)
    model = DiffusionModel(denoiser, NoiseSchedule.linear(20), seed=3)
    ksd.sparsify(model, 0.5, seed=0)
    return model


MODELS = {f.__name__: f for f in (functional, unnamed, rigl, snfs, diffusion)}


def array(value):
    return np.array(keras.ops.convert_to_numpy(value))


def found(name, model):
    """Return a model's state and outputs, `{name: array}`; train it if it is compiled."""
    kernels = ksd.sparsity.masked_kernels(model)
    weights = [v for v in model.weights if v.dtype != "bool"]
    facts = {f"variable_{i}": v for i, v in enumerate(weights)}
    facts |= {f"mask_{i}": k.mask for i, k in enumerate(kernels)}
    facts |= {f"target_{i}": k.target.to_array() for i, k in enumerate(kernels)}
    if name == "diffusion":
        facts["outputs"] = model.generate(**SKETCHES)
    else:
        facts["outputs"] = model(IMAGES if name == "functional" else X)
    if model.compiled:
        optimizer = model.optimizer
        facts |= {"updates": optimizer.topology_updates, "steps": optimizer.steps}
        facts |= {
            f"history_{i}": np.stack(optimizer.history(k.kernel)) for i, k in enumerate(kernels)
        }
        state = optimizer.inner_optimizer.variables
        facts |= {f"state_{i}": v for i, v in enumerate(state)}
    # Later changes of the model are not to reach these.
    facts = {key: array(value) for key, value in facts.items()}
    if model.compiled:
        fit(model, name, 4)
        facts["outputs_later"] = array(model(X))
        facts |= {f"mask_{i}_later": array(k.mask) for i, k in enumerate(kernels)}
    return facts


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    keras.utils.set_random_seed(0)
    for name, make in MODELS.items():
        model = make()
        ksd.export.save_sparse(
            model, folder / f"{name}.sparse", optimizer=model.compiled, metadata={"made": name}
        )
        np.savez_compressed(folder / f"{name}.npz", **found(name, model))
