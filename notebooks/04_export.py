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
# # Export
#
# This notebook exports a sparse model to a sparse checkpoint, a SavedModel and a TFLite file, and
# compares their sizes, outputs and speeds. It takes about two minutes on 2 processor cores.
# `sparse-dm export RUN` does the same for a run of `train.py`.

# %%
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import statistics
import tempfile
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import keras_sparse_dm as ksd

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A model with blocks
#
# This ChiroDiff has nine tenths of its weights pruned, in blocks of four along the input axis;
# LiteRT multiplies such blocks without unpacking them. The first layer reads 13 numbers per point,
# which do not divide into blocks of four, so `exclude` leaves its two small kernels dense. A short
# training is enough here.

# %%
SPARSITY, POINTS = 0.9, 75


def new_model(structure=None, sparsity=SPARSITY):
    keras.utils.set_random_seed(0)
    denoiser = ksd.models.ChiroDiff(units=256, num_layers=2, seed=0)
    model = ksd.diffusion.DiffusionModel(denoiser, ksd.diffusion.NoiseSchedule.linear(1000), seed=0)
    if sparsity:
        first = "*bidirectional_0/*_gru/gru_cell/kernel"
        ksd.sparsify(model, sparsity, seed=0, exclude=[first], structure=structure)
    return model


train, _ = ksd.data.load_kanjivg(progress=False)
train = train.subset(np.flatnonzero(train.lengths < POINTS))
model = new_model(ksd.sparsity.Blocks(4))
STEPS = 120
model.compile(
    keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(
            0.0, decay_steps=STEPS - 20, warmup_target=5e-3, warmup_steps=20
        ),
        global_clipnorm=0.1,
        use_ema=True,
        ema_momentum=0.95,
    )
)
history = model.fit(
    ksd.data.train_batches(train, 32, seed=0),
    steps_per_epoch=STEPS // 4,
    epochs=4,
    shuffle=False,
    verbose=0,
    callbacks=[ksd.DynamicSparsity("rigl", update_every=20, prune_rate=0.1)],
)
ksd.sparsity.check_invariant(model)
print("loss", *(f"{loss:.3f}" for loss in history.history["loss"]))
report = ksd.sparsity_report(model)
print(f"{report.active:,} of {report.size:,} weights in kernels are active")

# %% [markdown]
# ## Sizes
#
# The chart shows each format of the same model. Look at the first three: formats that store zeros
# do not shrink. A sparse checkpoint stores the active weights and at most one bit per weight for
# their positions; a sparse TFLite file stores the blocks and their positions.

# %%
files = {}


def as_tflite(title, **options):
    files[title] = folder / f"{len(files)}.tflite"
    return ksd.export.to_tflite(model, files[title], length=POINTS, **options)


files[".keras, with the optimizer"] = folder / "model.keras"
model.save(files[".keras, with the optimizer"])
files["SavedModel"] = ksd.export.to_saved_model(model, folder / "saved_model")
as_tflite("TFLite, stored dense", sparse=False)
exported = as_tflite("TFLite, sparse")
as_tflite("TFLite, sparse, float16", quantize="float16")
for dtype in ("float32", "float16"):
    title = f"sparse checkpoint, {dtype}"
    files[title] = folder / f"{dtype}.sparse"
    ksd.export.save_sparse(model, files[title], dtype=dtype)

sizes = {title: ksd.export.file_sizes(path)[0] for title, path in files.items()}
figure, axis = plt.subplots(figsize=(7, 2.8))
bars = axis.barh(list(sizes), [size / 1e6 for size in sizes.values()])
axis.bar_label(bars, fmt="%.2f", padding=3)
axis.invert_yaxis()
axis.margins(x=0.12)
axis.set(xlabel="MB")
figure.tight_layout()
plt.show()

dense_weights = 4 * model.denoiser.count_params()
print(f"all weights in float32: {dense_weights / 1e6:.2f} MB")
assert sizes["sparse checkpoint, float32"] < 0.2 * dense_weights
assert sizes["TFLite, sparse"] < 0.3 * sizes["TFLite, stored dense"]

# %% [markdown]
# ## A sparse checkpoint
#
# `load_sparse` returns the model with its masks. Look at the largest difference, which is zero in
# float32.

# %%
rng = np.random.default_rng(0)
x = rng.standard_normal((4, POINTS, 3)).astype("float32")
t, lengths = np.array([50, 300, 600, 950]), np.array([40, 60, 70, 75])
with model.averaged_weights():
    expected = keras.ops.convert_to_numpy(model((x, t, lengths)))

for dtype in ("float32", "float16"):
    loaded = ksd.export.load_sparse(files[f"sparse checkpoint, {dtype}"])
    difference = np.abs(loaded((x, t, lengths)) - expected).max()
    print(
        f"{dtype}: sparsity {ksd.sparsity_report(loaded).sparsity:.4f}, difference {difference:.1e}"
    )
    assert difference <= (0 if dtype == "float32" else 1e-2)

# %% [markdown]
# ## LiteRT
#
# `to_tflite` has compared the file with Keras before it kept it. Here we run it once more with
# LiteRT's own interpreter and without this package, as on a phone: one sketch at a time, padded to
# 75 points.

# %%
interpreter = Interpreter(model_path=str(files["TFLite, sparse"]))
denoise = interpreter.get_signature_runner("denoiser")
answers = np.concatenate(
    [
        denoise(
            points=x[i : i + 1],
            t=t[i : i + 1].astype("int32"),
            lengths=lengths[i : i + 1].astype("int32"),
        )["epsilon"]
        for i in range(len(x))
    ]
)
print(f"largest difference from Keras: {np.abs(answers - expected).max():.1e}")
np.testing.assert_allclose(answers, expected, atol=1e-4)

metadata = ksd.export.read_tflite_metadata(files["TFLite, sparse"])
print({key: metadata[key] for key in ("kind", "part", "quantize", "inputs", "length")})

# %% [markdown]
# ## The same sketches from three places
#
# Keras, the TFLite file and the SavedModel sample from the same noise. The SavedModel contains the
# whole sampler, and TensorFlow runs it without Keras. Look for differences between the three; there
# should be none. The sketches are rough after a minute of training.

# %%
drawn_lengths = np.array([50, 60, 70, 74], "int32")
saved_model = tf.saved_model.load(str(files["SavedModel"]))
drawn = {
    "Keras": model.generate(lengths=drawn_lengths, steps=25, seed=0),
    "LiteRT": ksd.export.generate_from_tflite(
        files["TFLite, sparse"], lengths=drawn_lengths, steps=25, seed=0
    ),
    "SavedModel": saved_model.generate(0, drawn_lengths, steps=25)["samples"].numpy(),
}
for title in ("LiteRT", "SavedModel"):
    difference = np.abs(drawn[title] - drawn["Keras"]).max()
    print(f"{title}: largest difference {difference:.1e}, of coordinates up to 10")
    assert difference < 1e-2
ksd.data.draw(
    [
        [ksd.data.from_points(p[:n]) for p, n in zip(points, drawn_lengths, strict=True)]
        for points in drawn.values()
    ],
    columns=2,
    titles=tuple(drawn),
)

# %% [markdown]
# ## Latency
#
# The three files hold one network: dense, with single weights pruned, and with blocks of four
# pruned. They run in turn, on one thread, with one sketch of 75 points. Times depend on the
# structure and not on the values, so the two new models are not trained. Look at the bars: single
# zeros are unpacked on loading and save no time; blocks are skipped.

# %%
runs = {"blocks of 4": (model, files["TFLite, sparse"])}
for title, sparsity in (("dense", 0), ("single weights", SPARSITY)):
    other = new_model(sparsity=sparsity)
    runs[title] = (other, folder / f"{title}.tflite")
    ksd.export.to_tflite(other, runs[title][1], length=POINTS)

example = x[:1], t[:1], np.array([POINTS])
denoisers = {title: ksd.export.TFLiteDenoiser(path) for title, (_, path) in runs.items()}
for title, (network, _) in runs.items():
    with network.averaged_weights():
        answer = keras.ops.convert_to_numpy(network(example))
    np.testing.assert_allclose(denoisers[title](*example), answer, atol=1e-4)
print("all three answer as Keras does")

milliseconds = {title: [] for title in ("dense", "single weights", "blocks of 4")}
for _ in range(30):
    for title, times in milliseconds.items():
        # The first call brings the weights back into the processor's caches.
        denoisers[title](*example)
        begin = time.perf_counter()
        for _ in range(3):
            denoisers[title](*example)
        times.append((time.perf_counter() - begin) / 3 * 1e3)

medians = {title: statistics.median(times) for title, times in milliseconds.items()}
speed_up = statistics.median(
    dense / blocks
    for dense, blocks in zip(milliseconds["dense"], milliseconds["blocks of 4"], strict=True)
)
figure, axis = plt.subplots(figsize=(6, 1.8))
bars = axis.barh(list(medians), medians.values())
axis.bar_label(bars, fmt="%.1f", padding=3)
axis.invert_yaxis()
axis.margins(x=0.12)
axis.set(xlabel="milliseconds, median of 30 rounds")
figure.tight_layout()
plt.show()
print(f"blocks of 4 are {speed_up:.2f} times as fast as dense")
assert speed_up > 0.8

# %% [markdown]
# The gain from blocks depends on the processor and on the width of the network; narrow networks
# gain nothing. `docs/export.md` has more sizes and latencies, also for int8, and the commands that
# measured them.
