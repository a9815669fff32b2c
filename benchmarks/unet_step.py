"""The latent diffusion U-Net: sparse against dense, Keras against PyTorch.

- forward: one forward pass without gradients
- training step: noising, forward, backward and AdamW, from a batch in memory; the sparse network
  trains with RigL, and the cost of a topology update is spread over the steps between two updates
- DDIM sampling: from noise to images

PyTorch runs `UNet2DModel` of diffusers with the same structure on the same cores, in the default
memory format and in channels_last, and with AdamW in its default and in its fused form; the fastest
combination counts. The dense network is that of this package without `sparsify`, with plain AdamW.

All networks run in turn in one process, so ratios hold even if the machine's speed drifts.

    python benchmarks/unet_step.py [--model-channels 64] [--size 32] [--batch-size 4]
    python benchmarks/unet_step.py --model-channels 224 --size 64 --batch-size 1  # the paper's
"""

import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# diffusers contains a compiler that does not load after TensorFlow's.
try:
    import diffusers
    import torch
except ImportError:
    diffusers = None

import keras
import numpy as np
import tensorflow as tf
import tyro
from cores import spread_threads
from rich.console import Console
from rich.table import Table

import keras_sparse_dm as ksd

UPDATE_EVERY = 1100
TIMESTEPS = 1000
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-2


def keras_model(structure, sparsity=None, update_every=UPDATE_EVERY):
    """Return the U-Net in a compiled `DiffusionModel`, dense if sparsity is None."""
    keras.utils.set_random_seed(0)
    unet = ksd.models.UNet(
        **structure, attention_factors=(2, 4, 8)[: len(structure["channel_mult"]) - 1]
    )
    model = ksd.diffusion.DiffusionModel(unet, ksd.diffusion.NoiseSchedule.linear(TIMESTEPS))
    model.compile(keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY))
    if sparsity is not None:
        ksd.sparsify(model, sparsity, seed=0)
        ksd.DynamicSparsity("rigl", update_every=update_every, seed=0).set_model(model)
    return model


def keras_forward(model, x, t):
    unet, x, t = model.denoiser, tf.constant(x), tf.constant(t)
    forward = tf.function(lambda: unet((x, t)))
    return lambda: forward().numpy()


class TorchModel:
    """The U-Net of diffusers, `UNet2DModel`, trained and sampled as in its documentation."""

    def __init__(self, structure, size, channels_last=False, fused=False):
        torch.manual_seed(0)
        channels = [m * structure["model_channels"] for m in structure["channel_mult"]]
        levels = len(channels) - 1
        unet = diffusers.UNet2DModel(
            sample_size=size,
            layers_per_block=structure["num_res_blocks"],
            block_out_channels=channels,
            down_block_types=["DownBlock2D"] + ["AttnDownBlock2D"] * levels,
            up_block_types=["AttnUpBlock2D"] * levels + ["UpBlock2D"],
            attention_head_dim=structure["head_channels"],
        )
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.unet = unet.to(memory_format=self.format)
        self.optimizer = torch.optim.AdamW(
            unet.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=fused
        )
        self.schedule = diffusers.DDIMScheduler(TIMESTEPS)

    def tensor(self, x):
        return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=self.format)

    @property
    def parameters(self):
        return sum(p.numel() for p in self.unet.parameters())

    def forward(self, x, t):
        x, t = self.tensor(x), torch.from_numpy(t)

        @torch.no_grad()
        def step():
            self.unet.eval()
            return self.unet(x, t).sample.numpy()

        return step

    def training_step(self, x):
        x = self.tensor(x)

        def step():
            self.unet.train()
            noise = torch.randn_like(x)
            t = torch.randint(TIMESTEPS, (len(x),))
            predicted = self.unet(self.schedule.add_noise(x, noise, t), t).sample
            loss = torch.nn.functional.mse_loss(predicted, noise)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            return loss.item()

        return step

    def sampling(self, shape, steps):
        self.schedule.set_timesteps(steps)

        @torch.no_grad()
        def sample():
            self.unet.eval()
            x = self.tensor(np.random.standard_normal(shape).astype("float32"))
            for t in self.schedule.timesteps:
                x = self.schedule.step(self.unet(x, t).sample, t, x).prev_sample
            return x.numpy()

        return sample


def seconds_in_turn(functions, rounds):
    """Time functions in turn; return `{name: list of seconds}`."""
    for function in functions.values():
        function()
        function()
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def compare(ours, others):
    """Return the name of the fastest other, and the median ratio of our time to its time."""
    fastest = min(others, key=lambda name: statistics.median(others[name]))
    # Within a round, the machine's speed hardly changes.
    return fastest, statistics.median(a / b for a, b in zip(ours, others[fastest], strict=True))


def main(
    model_channels: int = 64,
    channel_mult: tuple[int, ...] = (1, 2, 3, 4),
    size: int = 32,
    batch_size: int = 4,
    sparsity: float = 0.5,
    rounds: int = 12,
    samples: int = 4,
    sampling_steps: int = 20,
    json_path: Path | None = None,
):
    """Compare the sparse U-Net with the dense one and with PyTorch's.

    Args:
        model_channels: Channels at full resolution; 224 in the paper.
        channel_mult: Factors on the channels at each resolution.
        size: Height and width of the latents, of 3 channels.
        batch_size: Latents in a batch.
        sparsity: Share of pruned weights.
        rounds: Number of timed rounds; sampling has a quarter of them.
        samples: Latents sampled at a time.
        sampling_steps: DDIM steps.
        json_path: File for the figures, as JSON.
    """
    structure = {
        "model_channels": model_channels,
        "channel_mult": channel_mult,
        "num_res_blocks": 2,
        "head_channels": 32,
    }
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch_size, size, size, 3), dtype="float32")
    t = rng.integers(TIMESTEPS, size=batch_size).astype("int32")
    shape = (samples, size, size, 3)
    cores = spread_threads(with_torch=diffusers is not None)

    sparse, dense = keras_model(structure, sparsity), keras_model(structure)
    # An update at every step: the additional time is the cost of an update.
    updating = keras_model(structure, sparsity, update_every=1)
    parameters = sum(int(np.prod(v.shape)) for v in sparse.trainable_variables)
    forward = {"sparse": keras_forward(sparse, x, t)}
    training = {
        "sparse": lambda: sparse.train_on_batch(x),
        "dense": lambda: dense.train_on_batch(x),
        "update": lambda: updating.train_on_batch(x),
    }
    sampling = {"sparse": lambda: sparse.generate(shape, steps=sampling_steps, seed=0)}
    if diffusers is None:
        print("diffusers is not installed, so there is no comparison with PyTorch.")
    else:
        for channels_last in (False, True):
            for fused in (False, True):
                model = TorchModel(structure, size, channels_last, fused)
                assert model.parameters == parameters, "not the same network"
                name = "channels_last" if channels_last else "contiguous"
                training[f"{name}, fused AdamW" if fused else name] = model.training_step(x)
            forward[name] = model.forward(x, t)
            sampling[name] = model.sampling(shape, sampling_steps)

    forward = seconds_in_turn(forward, rounds)
    training = seconds_in_turn(training, rounds)
    sampling = seconds_in_turn(sampling, max(1, rounds // 4))
    update = statistics.median(
        a - b for a, b in zip(training.pop("update"), training["sparse"], strict=True)
    )
    training["sparse"] = [s + max(0.0, update) / UPDATE_EVERY for s in training["sparse"]]

    figures = {"one topology update, seconds": update}
    table = Table("", "seconds", "compared with", "seconds", "ratio")

    def add(name, seconds, others):
        if not others:
            return
        fastest, ratio = compare(seconds["sparse"], {other: seconds[other] for other in others})
        kind = fastest if fastest == "dense" else f"PyTorch, {fastest}"
        medians = [statistics.median(seconds[which]) for which in ("sparse", fastest)]
        figures[f"{name}, seconds"], figures[f"{name}, {kind}, seconds"] = medians
        figures[f"{name}, sparse / {'dense' if fastest == 'dense' else 'PyTorch'}"] = ratio
        table.add_row(name, f"{medians[0]:.3f}", kind, f"{medians[1]:.3f}", f"{ratio:.3f}")

    pytorch = [name for name in training if name not in ("sparse", "dense")]
    add("forward", forward, forward.keys() - {"sparse"})
    add("training step", training, pytorch)
    add("training step", training, ["dense"])
    add(f"{sampling_steps} DDIM steps", sampling, sampling.keys() - {"sparse"})
    table.caption = (
        f"{parameters:,} parameters, {batch_size} latents of {size}x{size}x3 ({samples} in "
        f"sampling), sparsity {sparsity}, {cores} cores, one topology update {update:.2f} s"
    )
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
