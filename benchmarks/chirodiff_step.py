"""Training step of the QuickDraw-size network: sparse against dense, Keras against PyTorch.

All variants run in turn in one process, so ratios hold even if the machine's speed drifts:

- dense: the same network made of plain Keras layers, plain AdamW
- dense, Keras's loop: the same, with GRUs that Keras runs layer by layer
- sparse: the network of this package with RigL; the cost of a topology update is spread over the
  800 steps between two updates
- pytorch (needs torch): `nn.GRU` network and AdamW on the same cores, on packed
  sequences (`pack_padded_sequence`) like the original program, and on unpacked sequences

    python benchmarks/chirodiff_step.py [--rounds 12] [--batch-size 128] [--points 100]
"""

import argparse
import json
import math
import os
import statistics
import time
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_sparse_dm as ksd
from keras_sparse_dm.models.chirodiff import denoiser as chirodiff

UPDATE_EVERY = 800
PRESET = "chirodiff_quickdraw"


def keras_step(batch, sparsity=None, update_every=UPDATE_EVERY, layer_by_layer=False):
    """Return a training step of the preset's network, of plain Keras layers if sparsity is None."""
    if sparsity is None:
        with (
            mock.patch.object(chirodiff, "SparseGRU", keras.layers.GRU),
            mock.patch.object(chirodiff, "SparseDense", keras.layers.Dense),
        ):
            denoiser = ksd.models.ChiroDiff.from_preset(PRESET, seed=0)
    else:
        denoiser = ksd.models.ChiroDiff.from_preset(PRESET, seed=0)
    model = ksd.diffusion.DiffusionModel(denoiser, ksd.diffusion.NoiseSchedule.linear(1000), seed=0)
    model.compile(keras.optimizers.AdamW(1e-3, weight_decay=1e-2))
    if sparsity is not None:
        ksd.sparsify(model, sparsity, seed=0)
        ksd.DynamicSparsity("rigl", update_every=update_every, seed=0).set_model(model)
    # Tracing the step makes the choice.
    choice = (lambda _: False) if layer_by_layer else chirodiff.can_train
    with mock.patch.object(chirodiff, "can_train", choice):
        model.train_on_batch(batch)
    return lambda: model.train_on_batch(batch)


def torch_step(batch, packed):
    """Return a training step of the original program's network, written with `nn.GRU`."""
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    units, layers, time_features, timesteps = 128, 3, 8, 1000

    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(
                5 + time_features, units, layers, batch_first=True, bidirectional=True
            )
            self.output = nn.Linear(2 * units, units)
            self.noise = nn.Linear(units + time_features, 3)
            self.register_buffer("frequencies", torch.randn(time_features // 2))

        def forward(self, points, t, lengths):
            angle = 2 * math.pi * ((t[:, None] + 1) / timesteps) * (4.0 * self.frequencies)
            embedded = torch.cat([angle.sin(), angle.cos()], -1)[:, None]
            embedded = embedded.expand(-1, points.shape[1], -1)
            before = nn.functional.pad(points[:, :-1, :2], (0, 0, 1, 0))
            hidden = torch.cat([points, points[..., :2] - before, embedded], -1)
            if packed:
                hidden = pack_padded_sequence(hidden, lengths, True, enforce_sorted=False)
            hidden, _ = self.gru(hidden)
            if packed:
                hidden, _ = pad_packed_sequence(hidden, True)
            return self.noise(torch.cat([self.output(hidden), embedded], -1))

    model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    points = torch.from_numpy(batch["points"])
    lengths = torch.from_numpy(batch["lengths"]).long()
    alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, timesteps), 0)
    valid = (torch.arange(points.shape[1])[None] < lengths[:, None]).float()

    def step():
        t = torch.randint(timesteps, (len(points),))
        noise = torch.randn_like(points)
        alpha = alphas_cumprod[t][:, None, None]
        noised = alpha.sqrt() * points + (1 - alpha).sqrt() * noise
        error = (model(noised, t, lengths) - noise).square().mean(-1)
        loss = ((error * valid).sum(1) / lengths).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="counted rounds (default 12)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    shape = (arguments.batch_size, arguments.points, 3)
    batch = {
        "points": rng.standard_normal(shape, dtype="float32"),
        "lengths": np.full(arguments.batch_size, arguments.points, "int32"),
    }
    steps = {
        "dense": keras_step(batch),
        "dense, Keras's loop": keras_step(batch, layer_by_layer=True),
        "sparse 0.5": keras_step(batch, 0.5),
        "sparse 0.9": keras_step(batch, 0.9),
        # An update at every step: the additional time is the cost of an update.
        "update 0.5": keras_step(batch, 0.5, update_every=1),
        "update 0.9": keras_step(batch, 0.9, update_every=1),
    }
    try:
        steps["pytorch packed"] = torch_step(batch, packed=True)
        steps["pytorch unpacked"] = torch_step(batch, packed=False)
    except ImportError:
        print("PyTorch is not installed, so there is no comparison with it.")

    for step in steps.values():
        step()
        step()
    seconds = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)

    median = {name: statistics.median(values) for name, values in seconds.items()}
    for sparsity in ("0.5", "0.9"):
        update = max(0.0, median[f"update {sparsity}"] - median[f"sparse {sparsity}"])
        seconds[f"sparse {sparsity}"] = [
            s + update / UPDATE_EVERY for s in seconds[f"sparse {sparsity}"]
        ]
        print(f"one topology update at sparsity {sparsity}: {update * 1e3:.0f} ms")

    def ratio(a, b):
        # Within a round, the machine's speed hardly changes.
        return statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    figures = {f"{name}, seconds": statistics.median(values) for name, values in seconds.items()}
    for sparsity in ("0.5", "0.9"):
        for other in ("dense", "dense, Keras's loop", "pytorch packed", "pytorch unpacked"):
            if other in seconds:
                figures[f"sparse {sparsity} / {other}"] = ratio(f"sparse {sparsity}", other)
    for name, value in figures.items():
        print(f"{name:<36} {value:.3f}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
