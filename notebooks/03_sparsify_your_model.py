# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sparsify your own model
#
# Any built Keras 3 model trains sparsely with `ksd.sparsify(model, sparsity)` and one callback.
# Here we apply them to a transformer of plain Keras layers and to a MobileNet from
# `keras.applications`, and write a method of our own. The data are the 1,797 digits of
# scikit-learn, 8 x 8 pixels. This notebook takes about three minutes on 2 processor cores.

# %%
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers, ops
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_sparse_dm as ksd

images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8) / 16).astype("float32")
x_train, x_test, y_train, y_test = train_test_split(
    images, labels, test_size=0.25, random_state=0, stratify=labels
)
print(f"{len(x_train):,} digits for training, {len(x_test):,} for testing")

figure, axes = plt.subplots(1, 10, figsize=(7, 0.9))
for axis, image in zip(axes, x_train, strict=False):
    axis.imshow(image, cmap="gray_r")
    axis.set_axis_off()
plt.show()

# %% [markdown]
# ## A transformer
#
# The rows of a digit are its words. Nothing in this model refers to sparsity.


# %%
def transformer(width=64):
    rows = keras.Input((8, 8))
    x = layers.Dense(width)(rows)
    positions = layers.Embedding(8, width)(ops.arange(8))
    x = x + positions
    normalized = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(4, width // 4)(normalized, normalized)
    hidden = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
    x = x + layers.Dense(width)(hidden)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(rows, layers.Dense(10)(x), name="transformer")


# %% [markdown]
# Sparse layers replace the Keras layers in place. Look at the densities: the small first and last
# kernels keep about half of their weights, the wide ones less than a tenth.

# %%
keras.utils.set_random_seed(0)
ksd.sparsify(transformer(), 0.9, seed=0)

# %% [markdown]
# ## Accuracy against sparsity
#
# Each sparsity, and the dense model, trains for the same few epochs: with RigL, which exchanges 30%
# of the active weights every 20 steps (falling to zero as training ends), and with fixed masks.


# %%
def fit(model, method, x, x_held_out, epochs, learning_rate):
    """Trains a model, sparse or (`method=None`) dense; returns its accuracy on held-out data."""
    steps = epochs * -(-len(x) // 64)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    callbacks = []
    if method is not None:
        callbacks = [
            ksd.DynamicSparsity(
                method,
                update_every=20,
                prune_rate=0.3,
                schedule="cosine",
                stop_step=3 * steps // 4,
                seed=0,
            )
        ]
    model.fit(x, y_train, batch_size=64, epochs=epochs, callbacks=callbacks, verbose=0)
    if method is not None:
        ksd.sparsity.check_invariant(model)
    return model.evaluate(x_held_out, y_test, verbose=0)[1]


def trained_transformer(sparsity, method):
    """Accuracy, and the share of the weights that was ever active."""
    keras.utils.set_random_seed(1)
    model = transformer()
    if method is not None:
        ksd.sparsify(model, sparsity, seed=1)
    accuracy = fit(model, method, x_train, x_test, epochs=12, learning_rate=5e-3)
    return accuracy, ksd.sparsity_report(model).ever_active if method is not None else 1.0


SPARSITIES = (0.5, 0.9, 0.95, 0.98)
dense, _ = trained_transformer(0, None)
results = {
    (method, sparsity): trained_transformer(sparsity, method)
    for method in ("rigl", "static")
    for sparsity in SPARSITIES
}

# %% [markdown]
# Look at the distance of the curves from the dense line. Pruning half of the weights costs little,
# and pruning nine tenths a few percent; if two in a hundred weights are left, moving masks lose
# less than fixed ones. These are results of one seed and 450 test digits, so two or three percent
# either way are chance.

# %%
figure, axis = plt.subplots(figsize=(6, 3.5))
axis.axhline(dense, color="grey", linestyle="--", label=f"dense, {dense:.3f}")
for method, marker in (("rigl", "o"), ("static", "s")):
    accuracies = [results[method, sparsity][0] for sparsity in SPARSITIES]
    axis.plot(SPARSITIES, accuracies, marker=marker, label=method)
axis.set(xlabel="sparsity", ylabel="test accuracy", title="transformer")
axis.legend()
plt.show()

assert dense > 0.9
assert results["rigl", 0.9][0] > 0.8

# %% [markdown]
# ## A method of our own
#
# RigL always grows the weights with the largest gradients. This method draws them at random, with
# probabilities proportional to the gradients: the largest values of $|g| / e$, with exponentially
# distributed $e$, are such a draw without replacement (Efraimidis and Spirakis 2006). A method only
# scores which weights to drop and which to grow; the library does everything else, from masks to
# saved files.


# %%
@keras.saving.register_keras_serializable(package="notebook")
class SampledRigL(ksd.sparsity.SparsityMethod):
    """Grows weights at random, with chances that grow with the gradient's magnitude.

    Args:
        power: Of the gradient's magnitude: 0 for equal chances, large for RigL's choice.
    """

    name = "sampled_rigl"

    def __init__(self, power=1.0):
        self.power = power

    def growth_score(self, weights, gradient, seed):
        uniform = keras.random.uniform(ops.shape(weights), minval=1e-7, seed=seed)
        return ops.abs(gradient) ** self.power / -ops.log(uniform)

    def get_config(self):
        return {"power": self.power}


# %% [markdown]
# The table compares it with the library's methods at a sparsity of 0.95. Look at *ever active*, the
# share of all weights that was active at any time: RigL returns to the same weights, and a random
# draw does not.

# %%
for method in (SampledRigL(), "magran"):
    name = method if isinstance(method, str) else method.name
    results[name, 0.95] = trained_transformer(0.95, method)
ever_active = {}
for name in ("static", "rigl", "sampled_rigl", "magran"):
    accuracy, ever_active[name] = results[name, 0.95]
    print(f"{name:13} accuracy {accuracy:.3f}   ever active {ever_active[name]:.1%}")

assert ever_active["rigl"] < ever_active["sampled_rigl"] < ever_active["magran"]

# %% [markdown]
# ## A MobileNet
#
# The MobileNet is from `keras.applications`, untrained, a quarter as wide as usual, on digits
# enlarged to 32 x 32 pixels. `exclude` leaves its depthwise kernels dense: each has nine weights
# per channel, and together they hold a few percent of the network's weights. Look at the pointwise
# kernels: the wider, the sparser.


# %%
def enlarged(images):
    return np.repeat(ops.convert_to_numpy(ops.image.resize(images[..., None], (32, 32))), 3, -1)


def mobilenet():
    model = keras.applications.MobileNet(
        (32, 32, 3), alpha=0.25, weights=None, classes=10, classifier_activation=None, dropout=0.0
    )
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            # The usual 0.99 is for longer trainings than this one.
            layer.momentum = 0.9
    return model


x_large, x_large_test = enlarged(x_train), enlarged(x_test)
report = ksd.sparsify(mobilenet(), 0.9, exclude=["conv_dw_*"], seed=0)
print(f"{len(report.kernels)} kernels, {report.active:,} of {report.size:,} weights active")
for k in report.kernels[-6:]:
    print(f"  {k.name:35} {k.density:6.1%} of {k.size:,}")

# %% [markdown]
# Compare the accuracies of RigL and the dense model.

# %%
mobilenet_accuracy = {}
for sparsity in (0, 0.9):
    keras.utils.set_random_seed(0)
    model = mobilenet()
    if sparsity:
        ksd.sparsify(model, sparsity, exclude=["conv_dw_*"], seed=0)
    mobilenet_accuracy[sparsity] = fit(
        model, "rigl" if sparsity else None, x_large, x_large_test, epochs=8, learning_rate=1e-2
    )

figure, axis = plt.subplots(figsize=(5, 2.6))
bars = axis.bar(
    [f"S = {s}" if s else "dense" for s in mobilenet_accuracy], mobilenet_accuracy.values()
)
axis.bar_label(bars, fmt="%.3f")
axis.set(ylabel="test accuracy", ylim=(0, 1.1), title="MobileNet")
plt.show()

assert mobilenet_accuracy[0.9] > 0.7

# %% [markdown]
# ## Saving
#
# A sparse model is a Keras model: `.keras` files contain masks and optimizer, and load without
# `custom_objects`. `04_export.ipynb` shows smaller files.

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "mobilenet.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
np.testing.assert_array_equal(
    loaded.predict(x_large_test, verbose=0), model.predict(x_large_test, verbose=0)
)
print(f"loaded: sparsity {ksd.sparsity_report(loaded).sparsity:.4f}, the same answers")
