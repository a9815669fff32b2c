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
# # Sparse sketches
#
# This notebook trains ChiroDiff, a diffusion model of pen strokes, on kanji. Four fifths of its
# weights are pruned from the first step to the last, and RigL moves the remaining fifth to where it
# helps. The notebook takes about two minutes on 2 processor cores; a longer run is `python
# train.py`.

# %%
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image
from matplotlib.colors import ListedColormap

import keras_sparse_dm as ksd

# %% [markdown]
# ## Data
#
# KanjiVG comes with the package `kanjivg`. To keep training short, we take its simplest drawings,
# of fewer than 56 points: kana, letters and kanji of few strokes. Look at the strokes: each is a
# line, from dark to light in the order of drawing.

# %%
train, validation = (
    arrays.subset(np.flatnonzero(arrays.lengths < 56))
    for arrays in ksd.data.load_kanjivg(characters="all", progress=False)
)
print(f"{len(train):,} sketches for training, {len(validation):,} for validation")
real = [ksd.data.from_points(points) for points in train.subset(range(24))]
ksd.data.draw(real)

# %% [markdown]
# ## A sparse model
#
# `sparsify` draws the masks. Look at the column *density*: ERK leaves small kernels denser than
# large ones, and all kernels together keep a fifth of the weights.

# %%
SPARSITY = 0.8
keras.utils.set_random_seed(0)
denoiser = ksd.models.ChiroDiff(units=96, num_layers=2, seed=0)
model = ksd.diffusion.DiffusionModel(denoiser, ksd.diffusion.NoiseSchedule.linear(1000), seed=0)
ksd.sparsify(model, SPARSITY, seed=0)

# %% [markdown]
# ## Training
#
# Training needs `fit` and one callback. Every 30 steps, each kernel drops the tenth of its active
# weights with the smallest magnitudes and grows as many weights with the largest gradients. A
# second callback keeps the masks and the report after each round, for the figures below.

# %%
BATCH_SIZE, STEPS, ROUNDS = 64, 600, 20


class WatchTopology(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.reports, self.masks = [], []
        self.on_epoch_end(-1)

    def on_epoch_end(self, epoch, logs=None):
        self.reports.append(ksd.sparsity_report(self.model))
        kernels = ksd.sparsity.masked_kernels(self.model)
        self.masks.append({k.name: k.mask.numpy() for k in kernels})


watch = WatchTopology()
learning_rate = keras.optimizers.schedules.CosineDecay(
    0.0, decay_steps=STEPS - 30, warmup_target=8e-3, warmup_steps=30
)
model.compile(
    keras.optimizers.AdamW(
        learning_rate, weight_decay=1e-2, global_clipnorm=0.1, use_ema=True, ema_momentum=0.98
    )
)
history = model.fit(
    ksd.data.train_batches(train, BATCH_SIZE, seed=0),
    validation_data=ksd.data.eval_batches(validation, 256),
    steps_per_epoch=STEPS // ROUNDS,
    epochs=ROUNDS,
    shuffle=False,
    verbose=0,
    callbacks=[ksd.DynamicSparsity("rigl", update_every=30, prune_rate=0.1), watch],
).history

# %% [markdown]
# Look at the lines: the loss falls although the topology changes all the time, and the training
# loss does not jump when weights are exchanged. (The validation loss is that of the averaged
# weights, which lag behind.)

# %%
figure, axis = plt.subplots(figsize=(6, 3))
for name, title in (("loss", "training"), ("val_loss", "validation")):
    axis.plot(range(1, ROUNDS + 1), history[name], marker="o", markersize=3, label=title)
axis.set(xlabel="round of 30 steps", ylabel="loss", yscale="log")
axis.legend()
plt.show()
assert history["val_loss"][-1] < 0.5 * history["val_loss"][0]

# %% [markdown]
# `check_invariant` verifies that every pruned weight, its optimizer moments and its averaged copy
# are zero, and that each mask has as many ones as at the start.

# %%
ksd.sparsity.check_invariant(model)
report = ksd.sparsity_report(model)
assert abs(report.sparsity - SPARSITY) < 1e-3
print(
    f"{model.optimizer.topology_updates} topology updates in {STEPS} steps; "
    f"sparsity {report.sparsity:.4f}"
)

# %% [markdown]
# ## The topology moves
#
# The figure shows one kernel's mask before and after training. Blue weights were active at both
# times, red ones have grown, grey ones were dropped, and white ones were active at neither time.
# Look for red: RigL grows nearly all weights in the third of the columns that computes the
# candidate state, and concentrates them in a few rows and columns, that is, in a few inputs and
# units.

# %%
name = "chirodiff/bidirectional_1/forward_gru/gru_cell/recurrent_kernel"
before, after = watch.masks[0][name], watch.masks[-1][name]
picture = np.select([before & after, after, before], [1, 2, 3])
assert before.sum() == after.sum()

figure, axis = plt.subplots(figsize=(9.6, 3.8))
colors = ListedColormap(["white", "#4477aa", "#cc3311", "#bbbbbb"])
axis.imshow(picture, cmap=colors, vmin=0, vmax=3, interpolation="nearest")
axis.set(
    xlabel="update gate, reset gate, candidate state: 96 units each",
    ylabel="inputs",
    title=name,
)
plt.show()
grown = picture == 2
in_candidate = grown[:, 192:].sum() / grown.sum()
print(f"{grown.sum():,} of {after.sum():,} active weights were not so at the start; ", end="")
print(f"{in_candidate:.0%} of them lie in the candidate state's columns")
assert in_candidate > 0.5

# %% [markdown]
# These figures are for all kernels. Left: the share of the initially active weights that has been
# exchanged, and the share of *all* weights that has ever been active. The second share is what the
# network has tried, and exceeds the fifth that is active at any time. Right: the share that each
# kernel has exchanged by the end; the small kernels, which ERK leaves dense, have nothing to
# exchange.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(1, 1.1))
rounds = range(ROUNDS + 1)
left.plot(rounds, [r.exchanged_since_start or 0 for r in watch.reports], label="exchanged")
left.plot(rounds, [r.ever_active for r in watch.reports], label="ever active")
left.axhline(1 - SPARSITY, color="grey", linestyle=":", label="active at a time")
left.set(xlabel="round", ylabel="share", ylim=(0, None))
left.legend()
kernels = watch.reports[-1].kernels
labels = [
    k.name.removeprefix("chirodiff/").replace("bidirectional_", "layer ").replace("gru_cell/", "")
    for k in kernels
]
right.barh(labels, [k.exchanged_since_start for k in kernels])
right.invert_yaxis()
right.set(xlabel="exchanged since the start")
right.tick_params(axis="y", labelsize=8)
figure.tight_layout()
plt.show()

assert watch.reports[-1].exchanged_since_start > 0.1
assert watch.reports[-1].ever_active > 0.21

# %% [markdown]
# ## Sampling
#
# `generate` denoises with the averaged weights in 50 steps; the noise of `eta=1` corrects errors
# that remain after such short training. The sparse network's samples are on the left, real sketches
# on the right. Look for smooth strokes that meet like pen strokes; most samples are not real
# characters.

# %%
lengths = ksd.data.sample_lengths(train, 16, seed=0)
points = model.generate(lengths=lengths, steps=50, eta=1.0, seed=0)
generated = [ksd.data.from_points(p[:n]) for p, n in zip(points, lengths, strict=True)]
assert np.isfinite(points).all()
ksd.data.draw([generated, real[:16]], columns=4, titles=("generated, S = 0.8", "real"))

# %% [markdown]
# Points have an order, so we can watch sketches being drawn.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = ksd.data.animate(generated[:6], Path(folder) / "kanji.gif", columns=6, frames=40)
    animation = Image(data=path.read_bytes(), format="gif")
animation

# %% [markdown]
# ## What it costs
#
# Look at the FLOPs: they fall to a fifth like the weights, because this network applies every
# weight once per point. TensorFlow also multiplies zeros; a runtime that skips them would save
# these FLOPs. `04_export.ipynb` continues from here.

# %%
n = int(train.lengths.mean())
example = (np.zeros((1, n, 3), "float32"), np.zeros(1, "int32"), np.array([n]))
cost = ksd.metrics.cost(denoiser, example, sampling_steps=50)
print(f"parameters: {cost.parameters:,}, of which active: {cost.active_parameters:,}")
print(f"FLOPs of one forward pass: {cost.dense_flops:.3g} dense, {cost.sparse_flops:.3g} sparse")
assert cost.active_kernel_parameters < 0.21 * cost.kernel_parameters
