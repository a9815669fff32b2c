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
# # Latent diffusion
#
# An autoencoder turns images into small latents, and a U-Net with half of its weights pruned learns
# to denoise them. Here both networks are small, and the images are kanji of 32 x 32 pixels. This
# notebook takes about three minutes on 2 processor cores; `python train.py ldm_kanjivg` is a longer
# run with 64 x 64 pixels.

# %%
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_sparse_dm as ksd

# %% [markdown]
# ## Images
#
# The images show KanjiVG's strokes, drawn with a round pen; 3,000 kanji are enough for such short
# training. `load_images("folder", data_dir=...)` reads images of your own in the same way.

# %%
SIZE, BATCH_SIZE = 32, 16
train, validation = ksd.data.load_images("kanjivg", size=SIZE, progress=False)
train = train.subset(range(3000))
print(f"{len(train):,} images for training, {len(validation):,} for validation")
real = np.stack([validation[i] for i in range(32)]).astype("float32") / 127.5 - 1
ksd.data.draw_images(real, columns=16, cell=0.5)

# %% [markdown]
# ## The autoencoder
#
# The autoencoder turns each 2 x 2 pixels into one position of a latent with 3 channels, and each
# position into one of 256 codes. It trains on images alone.

# %%
AUTOENCODER_STEPS = 250


def falling(learning_rate, steps):
    return keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=steps - 20, warmup_target=learning_rate, warmup_steps=20
    )


keras.utils.set_random_seed(0)
autoencoder = ksd.models.VQAutoencoder(
    channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    codes=256,
    norm_groups=8,
    reconstruction="l2",
    seed=0,
)
autoencoder.compile(keras.optimizers.Adam(falling(3e-3, AUTOENCODER_STEPS)))
history = autoencoder.fit(
    ksd.data.train_image_batches(train, BATCH_SIZE, seed=0),
    steps_per_epoch=AUTOENCODER_STEPS // 10,
    epochs=10,
    shuffle=False,
    verbose=0,
)
print(f"reconstruction loss {history.history['reconstruction'][-1]:.4f}")

# %% [markdown]
# Look at the strokes on the left: they must be as thin and as many as on the right. The U-Net
# cannot sharpen what the autoencoder blurs.

# %%
reconstructed = autoencoder.predict(real, verbose=0)
error = np.mean((reconstructed - real) ** 2)
print(f"mean squared error on held-out images: {error:.4f}; variance: {real.var():.4f}")
assert error < 0.3 * real.var()
ksd.data.draw_images(
    [reconstructed[:16], real[:16]], columns=8, cell=0.5, titles=("reconstructed", "real")
)

# %% [markdown]
# Diffusion sees latents only. Each channel is a coarse picture of the kanji.

# %%
latents = keras.ops.convert_to_numpy(autoencoder.encode(real[:1]))[0]
print("an image of", real[0].shape, "becomes a latent of", latents.shape)
figure, axes = plt.subplots(1, 4, figsize=(6, 1.7))
axes[0].imshow(real[0] / 2 + 0.5)
for axis, channel in zip(axes[1:], np.moveaxis(latents, -1, 0), strict=True):
    axis.imshow(channel, cmap="gray")
for axis, title in zip(axes, ("image", "channel 0", "channel 1", "channel 2"), strict=True):
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
plt.show()

# %% [markdown]
# ## The sparse U-Net
#
# `LatentDiffusion` freezes the autoencoder, so `sparsify` finds only the kernels of the U-Net. Look
# at the dots, one for each kernel: small kernels stay dense, and the largest lose the largest
# share.

# %%
unet = ksd.models.UNet(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(2,)
)
model = ksd.models.LatentDiffusion(
    unet,
    autoencoder,
    ksd.diffusion.NoiseSchedule.scaled_linear(1000, 0.0015, 0.0195),
    image_size=SIZE,
    scale_latents=True,
    seed=0,
)
report = ksd.sparsify(model, 0.5, seed=0)
print(f"{report.active:,} of {report.size:,} weights in {len(report.kernels)} kernels are active")

figure, axis = plt.subplots(figsize=(7, 2.8))
axis.scatter([k.size for k in report.kernels], [k.density for k in report.kernels], s=18)
axis.set(xlabel="weights in the kernel", ylabel="density", xscale="log", ylim=(0, 1.05))
plt.show()

# %% [markdown]
# Images are encoded to latents once; then training needs `fit` and one callback.

# %%
STEPS, EPOCHS = 550, 10
encoded = [
    keras.ops.convert_to_numpy(autoencoder.encode(batch))
    for batch in ksd.data.eval_image_batches(train, 64)
]
encoded = np.concatenate(encoded)
model.compile(
    keras.optimizers.AdamW(
        falling(2e-3, STEPS), weight_decay=1e-2, global_clipnorm=1.0, use_ema=True,
        ema_momentum=0.98,
    )
)  # fmt: skip
history = model.fit(
    {"latents": encoded},
    batch_size=BATCH_SIZE,
    steps_per_epoch=STEPS // EPOCHS,
    epochs=EPOCHS,
    verbose=0,
    callbacks=[ksd.DynamicSparsity("rigl", update_every=40, prune_rate=0.1)],
)
ksd.sparsity.check_invariant(model)
losses = history.history["loss"]
assert losses[-1] < 0.5 * losses[0]

figure, axis = plt.subplots(figsize=(5, 2.4))
axis.plot(range(1, EPOCHS + 1), losses, marker="o", markersize=3)
axis.set(xlabel="epoch", ylabel="loss")
plt.show()
report = ksd.sparsity_report(model)
print(f"exchanged since the start: {report.exchanged_since_start:.1%} of the active weights")

# %% [markdown]
# ## Samples
#
# Sampling takes 50 steps; the noise of `eta=1` corrects errors that remain after such short
# training. Look for thin dark strokes on white that fill a square. Training is too short for real
# characters, and some samples are blots.

# %%
samples = model.generate(16, steps=50, eta=1.0, seed=0, progress=False)
assert samples.shape == (16, SIZE, SIZE, 3)
ksd.data.draw_images(
    [samples, real[:16]], columns=8, cell=0.5, titles=("generated, S = 0.5", "real")
)

# %% [markdown]
# ## The paper's U-Net
#
# The network of the paper has 274 million parameters. Its densities follow from the shapes alone,
# so we create no weights: in a `StatelessScope`, Keras gives variables shapes and no values. Look
# at the effect of *S* on FLOPs: they fall less than the weights, because the kernels that ERK
# prunes most run at few positions.

# %%
with keras.StatelessScope(initialize_variables=False):
    paper_unet = ksd.models.UNet.from_preset("ldm_celebahq")
latent = ((1, 64, 64, 3), (1,))
costs = {s: ksd.metrics.cost(paper_unet, latent, sparsity=s) for s in (0.25, 0.5, 0.75, 0.9)}
print(f"{costs[0.5].parameters:,} parameters")

figure, axis = plt.subplots(figsize=(8, 3))
for sparsity, cost in costs.items():
    sizes = [layer.size for layer in cost.layers if layer.size]
    densities = [layer.active / layer.size for layer in cost.layers if layer.size]
    share = cost.sparse_flops / cost.dense_flops
    axis.scatter(sizes, densities, s=8, label=f"S = {sparsity}: {share:.2f} of the FLOPs")
axis.set(xlabel="weights in the kernel", ylabel="density", xscale="log", ylim=(0, 1.05))
axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
figure.tight_layout()
plt.show()

# The paper's tables: 274M parameters, and 0.91, 0.67 and 0.29 of the dense network's FLOPs.
assert costs[0.5].parameters == 274_056_163
np.testing.assert_allclose(
    [c.sparse_flops / c.dense_flops for c in costs.values()],
    [0.9079, 0.6751, 0.2885, 0.1237],
    atol=1e-4,
)

# %% [markdown]
# ## Loading published weights
#
# `ksd.convert.load_pytorch` loads a checkpoint of the original programs or of diffusers into a
# model. `.safetensors` files need nothing else; `.ckpt` and `.pt` files need the extra `convert`,
# for PyTorch. Here it reads a small checkpoint, which `save_pytorch` writes with the original
# names.

# %%
from safetensors.numpy import load_file

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "kanji.safetensors"
    ksd.convert.save_pytorch(model, path)
    tensors = load_file(path)

for prefix in ("model.diffusion_model.", "first_stage_model."):
    for name in [name for name in tensors if name.startswith(prefix)][:3]:
        print(f"{name:58} {tensors[name].shape}")
print(f"... {len(tensors)} tensors")

# %% [markdown]
# A new model with other weights loads the checkpoint and then gives the same answers as the trained
# model. Look at the densities after loading: checkpoints of the original program have no masks, so
# the kernels count as dense. You could call `sparsify` next, to start from these weights.

# %%
keras.utils.set_random_seed(1)
other = ksd.models.LatentDiffusion(
    ksd.models.UNet.from_config(unet.get_config()),
    ksd.models.VQAutoencoder.from_config(autoencoder.get_config()),
    model.noise_schedule,
    image_size=SIZE,
    scale_latents=True,
)
ksd.convert.load_pytorch(other, tensors)
x, t = encoded[:4], np.array([0, 300, 600, 999])
np.testing.assert_allclose(other((x, t)), model((x, t)), atol=1e-5)
np.testing.assert_allclose(other.decode(x), model.decode(x), atol=1e-5)
print("the same predicted noise and the same images")
print("masks:", ksd.sparsity_report(other).sparsity, "pruned")

# %% [markdown]
# Published files load in the same way; they are too large for a notebook.
#
# ```python
# # vq-f4.zip of github.com/CompVis/latent-diffusion, "model.ckpt" in it
# autoencoder = ksd.models.VQAutoencoder.from_preset("ldm_celebahq")
# ksd.convert.load_pytorch(autoencoder, "vq-f4/model.ckpt")
#
# # ldm/celeba256: U-Net and autoencoder in one "model.ckpt"; ema=True for the averaged weights
# model = ksd.models.LatentDiffusion.from_preset("ldm_celebahq")
# ksd.convert.load_pytorch(model, "celeba256/model.ckpt", ema=True)
#
# # diffusers: the folder of a pipeline such as "CompVis/ldm-celebahq-256", with unet/ and vqvae/
# ksd.convert.load_pytorch(model, "ldm-celebahq-256")
# ```
