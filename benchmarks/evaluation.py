"""Time of evaluation, compared with PyTorch: Inception features and sampling.

Features: PyTorch has the network of torch-fidelity and pytorch-fid (`--kind fid`) or of
torchvision (`--kind quickdraw`), with the same random weights, images and cores, from uint8 images
to features. It runs in the default memory format and in channels_last, and the faster format
counts. The benchmark first compares the features of both libraries.

Sampling: the paper's KanjiVG network generates sketches of KanjiVG's lengths with 50 steps of DDIM,
in batches of similar lengths. A PyTorch network of `nn.GRU` takes the same steps on the same
batches, on packed sequences like the original program, and on padded sequences.

Both libraries run in turn in one process, so ratios hold even if the machine's speed drifts. The
processor time shows the cost if other programs keep the cores busy. It includes the time that
PyTorch's threads wait for each other, so compare it on one core (`taskset -c 0`).

    python benchmarks/evaluation.py [--what features sampling] [--kind fid] [--json-path F.json]
"""

import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Literal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tyro
from cores import all_cores, spread_threads
from rich.console import Console
from rich.table import Table

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    torch = None

from keras_sparse_dm.metrics.features.inception import InceptionFeatures

SAMPLING_BATCH = 256
# PyTorch's memory formats.
FORMATS = ("contiguous_format", "channels_last")

if torch is not None:

    class Convolution(nn.Module):
        """Convolution, batch norm, ReLU."""

        def __init__(self, inputs, outputs, size, **kwargs):
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, size, bias=False, **kwargs)
            self.bn = nn.BatchNorm2d(outputs, eps=0.001)

        def forward(self, x):
            return functional.relu(self.bn(self.conv(x)), inplace=True)

    def average(x, fid):
        return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=not fid)

    class BlockA(nn.Module):
        def __init__(self, inputs, pooled, fid):
            super().__init__()
            self.fid = fid
            self.branch1x1 = Convolution(inputs, 64, 1)
            self.branch5x5_1 = Convolution(inputs, 48, 1)
            self.branch5x5_2 = Convolution(48, 64, 5, padding=2)
            self.branch3x3dbl_1 = Convolution(inputs, 64, 1)
            self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
            self.branch3x3dbl_3 = Convolution(96, 96, 3, padding=1)
            self.branch_pool = Convolution(inputs, pooled, 1)

        def forward(self, x):
            five = self.branch5x5_2(self.branch5x5_1(x))
            three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
            pool = self.branch_pool(average(x, self.fid))
            return torch.cat([self.branch1x1(x), five, three, pool], 1)

    class BlockB(nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.branch3x3 = Convolution(inputs, 384, 3, stride=2)
            self.branch3x3dbl_1 = Convolution(inputs, 64, 1)
            self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
            self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2)

        def forward(self, x):
            double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
            return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)

    class BlockC(nn.Module):
        def __init__(self, inner, fid):
            super().__init__()
            self.fid = fid
            row = {"size": (1, 7), "padding": (0, 3)}
            column = {"size": (7, 1), "padding": (3, 0)}
            self.branch1x1 = Convolution(768, 192, 1)
            self.branch7x7_1 = Convolution(768, inner, 1)
            self.branch7x7_2 = Convolution(inner, inner, **row)
            self.branch7x7_3 = Convolution(inner, 192, **column)
            self.branch7x7dbl_1 = Convolution(768, inner, 1)
            self.branch7x7dbl_2 = Convolution(inner, inner, **column)
            self.branch7x7dbl_3 = Convolution(inner, inner, **row)
            self.branch7x7dbl_4 = Convolution(inner, inner, **column)
            self.branch7x7dbl_5 = Convolution(inner, 192, **row)
            self.branch_pool = Convolution(768, 192, 1)

        def forward(self, x):
            seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
            double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
            double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
            pool = self.branch_pool(average(x, self.fid))
            return torch.cat([self.branch1x1(x), seven, double, pool], 1)

    class BlockD(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch3x3_1 = Convolution(768, 192, 1)
            self.branch3x3_2 = Convolution(192, 320, 3, stride=2)
            self.branch7x7x3_1 = Convolution(768, 192, 1)
            self.branch7x7x3_2 = Convolution(192, 192, (1, 7), padding=(0, 3))
            self.branch7x7x3_3 = Convolution(192, 192, (7, 1), padding=(3, 0))
            self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2)

        def forward(self, x):
            three = self.branch3x3_2(self.branch3x3_1(x))
            seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
            seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
            return torch.cat([three, seven, functional.max_pool2d(x, 3, 2)], 1)

    class BlockE(nn.Module):
        def __init__(self, inputs, fid, maximum):
            super().__init__()
            self.fid, self.maximum = fid, maximum
            self.branch1x1 = Convolution(inputs, 320, 1)
            self.branch3x3_1 = Convolution(inputs, 384, 1)
            self.branch3x3_2a = Convolution(384, 384, (1, 3), padding=(0, 1))
            self.branch3x3_2b = Convolution(384, 384, (3, 1), padding=(1, 0))
            self.branch3x3dbl_1 = Convolution(inputs, 448, 1)
            self.branch3x3dbl_2 = Convolution(448, 384, 3, padding=1)
            self.branch3x3dbl_3a = Convolution(384, 384, (1, 3), padding=(0, 1))
            self.branch3x3dbl_3b = Convolution(384, 384, (3, 1), padding=(1, 0))
            self.branch_pool = Convolution(inputs, 192, 1)

        def forward(self, x):
            three = self.branch3x3_1(x)
            double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
            pool = functional.max_pool2d(x, 3, 1, 1) if self.maximum else average(x, self.fid)
            parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
            parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
            return torch.cat([*parts, self.branch_pool(pool)], 1)

    class Inception(nn.Module):
        """Inception v3 up to the 2048 features, with torchvision's names.

        Args:
            kind: `"fid"` for TensorFlow's network of 2015, `"quickdraw"` for torchvision's with
                grey images.
        """

        def __init__(self, kind):
            super().__init__()
            self.fid = fid = kind == "fid"
            self.Conv2d_1a_3x3 = Convolution(3 if fid else 1, 32, 3, stride=2)
            self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
            self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
            self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
            self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
            self.Mixed_5b = BlockA(192, 32, fid)
            self.Mixed_5c = BlockA(256, 64, fid)
            self.Mixed_5d = BlockA(288, 64, fid)
            self.Mixed_6a = BlockB(288)
            self.Mixed_6b = BlockC(128, fid)
            self.Mixed_6c = BlockC(160, fid)
            self.Mixed_6d = BlockC(160, fid)
            self.Mixed_6e = BlockC(192, fid)
            self.Mixed_7a = BlockD()
            self.Mixed_7b = BlockE(1280, fid, maximum=False)
            self.Mixed_7c = BlockE(2048, fid, maximum=fid)
            self.fc = nn.Linear(2048, 1008 if fid else 345)

        def preprocess(self, images):
            """Return the features of uint8 images (n, channels, height, width)."""
            if self.fid:
                return (as_tensorflow_1(images.float()) - 128) / 128
            x = 1 - images.float() / 255
            x[x < 0.1] = 0
            return functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False)

        def forward(self, images):
            x = self.preprocess(images)
            parts = list(self.children())[:-1]
            for number, part in enumerate(parts):
                x = part(x)
                # After the third and the fifth convolution.
                if number in (2, 4):
                    x = functional.max_pool2d(x, 3, 2)
            return x.mean((2, 3))


def as_tensorflow_1(x, size=299):
    """Resize images bilinearly like TensorFlow 1, which measures positions from pixel corners."""
    for axis in (3, 2):
        length = x.shape[axis]
        position = torch.arange(size, dtype=torch.float32) * np.float32(length / size)
        before = position.long().clamp(max=length - 1)
        share = (position - before).to(x.dtype)
        share = share[:, None] if axis == 2 else share
        low = x.index_select(axis, before)
        x = low + (x.index_select(axis, (before + 1).clamp(max=length - 1)) - low) * share
    return x


def random_network(kind, seed=0):
    """Return the network with random batch norms, and random weights that keep features' scale."""
    torch.manual_seed(seed)
    network = Inception(kind).eval()
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            tensor.uniform_(0.7, 1.4)
        elif tensor.is_floating_point():
            tensor.normal_(1.0 if name.endswith("bn.weight") else 0.0, 0.1)
    return network


def seconds_in_turn(functions, rounds):
    """Time functions in turn; return `{name: list of (seconds, processor's seconds)}`."""
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter(), time.process_time()
            function()
            seconds[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return seconds


def compare(seconds, which):
    """Return medians by name, PyTorch's faster format, and the median ratio of our time to its."""
    seconds = {name: [pair[which] for pair in pairs] for name, pairs in seconds.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = min(FORMATS, key=medians.get)
    # Within a round, the machine's speed hardly changes.
    ratios = (a / b for a, b in zip(seconds["ours"], seconds[fastest], strict=True))
    return medians, fastest, statistics.median(ratios)


def torch_sampler(lengths, steps, packed):
    """Return a function that samples sketches with an untrained network of the original program."""
    units, layers, time_features, timesteps = 96, 3, 8, 1000
    torch.manual_seed(0)
    gru = nn.GRU(5 + time_features, units, layers, batch_first=True, bidirectional=True)
    output, last = nn.Linear(2 * units, units), nn.Linear(units + time_features, 3)
    frequencies = torch.randn(time_features // 2)
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, timesteps), 0)
    times = (torch.arange(steps) * timesteps // steps + 1).tolist()

    def noise_of(points, t, lengths):
        angle = 2 * math.pi * (t + 1) / timesteps * 4.0 * frequencies
        embedded = torch.cat([angle.sin(), angle.cos()])[None, None]
        embedded = embedded.expand(*points.shape[:2], -1)
        before = functional.pad(points[:, :-1, :2], (0, 0, 1, 0))
        hidden = torch.cat([points, points[..., :2] - before, embedded], -1)
        if packed:
            hidden = nn.utils.rnn.pack_padded_sequence(hidden, lengths, True, enforce_sorted=False)
        hidden, _ = gru(hidden)
        if packed:
            hidden, _ = nn.utils.rnn.pad_packed_sequence(hidden, True)
        return last(torch.cat([output(hidden), embedded], -1))

    @torch.inference_mode()
    def sample():
        for begin in range(0, len(lengths), SAMPLING_BATCH):
            some = torch.from_numpy(lengths[begin : begin + SAMPLING_BATCH]).long()
            x = torch.randn(len(some), int(some.max()), 3)
            for i in reversed(range(steps)):
                noise = noise_of(x, times[i], some)
                alpha = alphas[times[i]]
                before = alphas[times[i - 1]] if i else torch.tensor(1.0)
                clean = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
                x = before.sqrt() * clean + (1 - before).sqrt() * noise

    return sample


def compare_sampling(samples, steps, rounds):
    """Return the seconds of sampling with this package and with PyTorch."""
    import keras_sparse_dm as ksd

    train, _ = ksd.data.load_kanjivg(progress=False)
    # The order in which `generate` makes batches.
    lengths = np.sort(ksd.data.sample_lengths(train, samples, 0))
    preset = ksd.models.get_preset("chirodiff_kanjivg")
    model = ksd.diffusion.DiffusionModel(
        ksd.models.ChiroDiff(**preset.denoiser_arguments(), seed=0), preset.noise.to_schedule()
    )
    ksd.sparsify(model, 0.5, seed=0)

    def generate(**options):
        with all_cores():
            model.generate(
                lengths=lengths, steps=steps, seed=0, batch_size=SAMPLING_BATCH, **options
            )

    functions = {
        # The default for 1000 sketches and 50 steps, also if fewer are measured.
        "ours": lambda: generate(jit_compile=True),
        "ours, not compiled": lambda: generate(jit_compile=False),
        "packed": torch_sampler(lengths, steps, True),
        "padded": torch_sampler(lengths, steps, False),
    }
    return seconds_in_turn(functions, rounds)


def main(
    what: tuple[Literal["features", "sampling"], ...] = ("features", "sampling"),
    kind: Literal["fid", "quickdraw"] = "fid",
    size: int = 256,
    batch_size: int = 32,
    samples: int = 1000,
    steps: int = 50,
    rounds: int = 8,
    json_path: Path | None = None,
):
    """Compare the speed with PyTorch's.

    Args:
        what: Parts of the evaluation to measure.
        kind: The feature network.
        size: Height and width of the images.
        batch_size: Images per batch of the feature networks.
        samples: Sketches to sample.
        steps: Steps of DDIM.
        rounds: Number of rounds; each has one batch of images, or all samples.
        json_path: File for the figures, as JSON.
    """
    if torch is None:
        raise SystemExit("This needs PyTorch: pip install 'keras_sparse_dm[convert]'")
    cores = spread_threads(with_torch=torch is not None)
    figures = {}
    if "features" in what:
        figures |= features_figures(kind, size, batch_size, rounds, cores)
    if "sampling" in what:
        seconds = compare_sampling(samples, steps, max(2, rounds // 4))
        table = Table("", "seconds", "ours / it", title=f"{samples:,} sketches, {steps} steps")
        ours = [wall for wall, _ in seconds["ours"]]
        for name, measured in seconds.items():
            walls = [wall for wall, _ in measured]
            ratio = statistics.median(a / b for a, b in zip(ours, walls, strict=True))
            figures[f"sampling, {name}, seconds"] = statistics.median(walls)
            figures[f"sampling, ours / {name}"] = ratio
            title = name if name.startswith("ours") else f"PyTorch, {name}"
            table.add_row(title, f"{statistics.median(walls):.2f}", f"{ratio:.3f}")
        Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def features_figures(kind, size, batch_size, rounds, cores):
    """Measure features, print the table and return the figures."""
    network = random_network(kind)
    ours = InceptionFeatures(network.state_dict(), kind=kind)
    shape = (batch_size, size, size, 3 if kind == "fid" else 1)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype="uint8")
    functions = {"ours": lambda: ours(images, batch_size)}
    for name in FORMATS:
        memory = getattr(torch, name)
        copy = random_network(kind).to(memory_format=memory)
        theirs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=memory)

        @torch.inference_mode()
        def features(copy=copy, theirs=theirs):
            return copy(theirs).numpy()

        functions[name] = features
    expected = functions[FORMATS[0]]()
    difference = float(np.abs(functions["ours"]() - expected).max() / np.abs(expected).max())

    seconds = seconds_in_turn(functions, rounds)
    medians, fastest, ratio = compare(seconds, 0)
    processor, cheapest, processor_ratio = compare(seconds, 1)
    figures = {
        **{f"{name}, features per second": batch_size / s for name, s in medians.items()},
        "ours / PyTorch, seconds": ratio,
        "ours / PyTorch, processor's seconds": processor_ratio,
        "largest difference / largest feature": difference,
    }
    table = Table("", "seconds", "processor's seconds", "images per second")
    for name, s in medians.items():
        title = name if name == "ours" else f"PyTorch, {name}"
        table.add_row(title, f"{s:.3f}", f"{processor[name]:.3f}", f"{batch_size / s:.1f}")
    table.caption = (
        f"{kind}, {batch_size} images of {size}x{size}, {cores} cores; our seconds / PyTorch's "
        f"({fastest}): {ratio:.3f}; processor's seconds ({cheapest}): {processor_ratio:.3f}; "
        f"features differ by {difference:.1e} of the largest"
    )
    Console().print(table)
    return figures


if __name__ == "__main__":
    tyro.cli(main)
