"""Time of training steps in two versions of this package.

Each version runs in a separate process with the package and the benchmarks of its checkout. Both
take steps in turn, so ratios hold even if the machine's speed drifts:

- ChiroDiff at the size of QuickDraw's network, dense and sparse (`chirodiff_step.py`)
- the stack of convolutions and the transformer block of `sparse_overhead.py`, dense and sparse
- the U-Net of 22M parameters, dense and sparse (`unet_step.py`)

    git worktree add ../before COMMIT
    python benchmarks/two_versions.py ../before [--rounds 20] [--steps unet]
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, get_args

import tyro

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

HERE = Path(__file__).resolve().parents[1]
Step = Literal["chirodiff", "convolutions", "transformer", "unet"]


def step_of(name, sparsity):
    """Return a function that takes one training step; dense if sparsity is None."""
    import numpy as np

    rng = np.random.default_rng(0)
    if name == "chirodiff":
        from chirodiff_step import keras_step

        points = rng.standard_normal((128, 100, 3), dtype="float32")
        return keras_step({"points": points, "lengths": np.full(128, 100, "int32")}, sparsity)
    if name == "unet":
        from unet_step import keras_model

        structure = {"model_channels": 64, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 2}
        model = keras_model({**structure, "head_channels": 32}, sparsity)
        x = rng.standard_normal((4, 32, 32, 3), dtype="float32")
        return lambda: model.train_on_batch(x)
    import sparse_overhead

    make = {
        "convolutions": sparse_overhead.convolution_stack,
        "transformer": sparse_overhead.transformer_block,
    }[name]
    return sparse_overhead.training_step(make, 8, sparsity)


def work(names, sparsity):
    """Take the step that each line of the standard input names, and print its seconds."""
    steps = {
        f"{name} {kind}": step_of(name, s)
        for name in names
        for kind, s in (("dense", None), ("sparse", sparsity))
    }
    for step in steps.values():
        step()
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        steps[line.strip()]()
        print(f"seconds {time.perf_counter() - begin}", flush=True)


class Version:
    """Process that trains with the package of one checkout."""

    def __init__(self, checkout, names, sparsity):
        folders = (checkout, checkout / "benchmarks")
        self.process = subprocess.Popen(
            # -P: use the benchmarks of the checkout, not those beside this file.
            [
                sys.executable,
                "-P",
                Path(__file__).resolve(),
                "--work",
                json.dumps([names, sparsity]),
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def answer(self):
        """Return the next word after `ready` or `seconds`, and skip other output."""
        for line in self.process.stdout:
            words = line.split()
            if words and words[0] in ("ready", "seconds"):
                return words[-1]
        raise SystemExit("a version has stopped: run its benchmark alone to see why")

    def seconds(self, step):
        self.process.stdin.write(f"{step}\n")
        self.process.stdin.flush()
        return float(self.answer())


def main(
    before: tyro.conf.Positional[Path],
    steps: tuple[Step, ...] = get_args(Step),
    sparsity: float = 0.5,
    rounds: int = 20,
    json_path: Path | None = None,
):
    """Compare this checkout with another one.

    Args:
        before: Checkout of the other version.
        steps: Steps to compare.
        sparsity: Share of pruned weights.
        rounds: Number of timed rounds.
        json_path: File for the ratios, as JSON.
    """
    if not (before / "keras_sparse_dm").is_dir():
        # Otherwise, Python would use the installed package.
        raise SystemExit(f"BEFORE must be a checkout of this repository; received {before}.")
    from rich.console import Console
    from rich.table import Table

    versions = {"before": Version(before.resolve(), steps, sparsity)}
    versions["now"] = Version(HERE, steps, sparsity)
    for version in versions.values():
        version.answer()
    kinds = [(version, kind) for kind in ("dense", "sparse") for version in versions]
    table = Table("step", "now / before, sparse", "sparse / dense, before", "sparse / dense, now")
    figures = {}
    for name in steps:
        seconds = {kind: [] for kind in kinds}
        for turn in range(rounds):
            for version, kind in kinds if turn % 2 else kinds[::-1]:
                taken = versions[version].seconds(f"{name} {kind}")
                seconds[version, kind].append(taken)

        def ratio(a, b, seconds=seconds):
            # Within a round, the machine's speed hardly changes.
            by_round = (x / y for x, y in zip(seconds[a], seconds[b], strict=True))
            return statistics.median(by_round), min(seconds[a]) / min(seconds[b])

        ratios = {
            "now / before, sparse": ratio(("now", "sparse"), ("before", "sparse")),
            "sparse / dense, before": ratio(("before", "sparse"), ("before", "dense")),
            "sparse / dense, now": ratio(("now", "sparse"), ("now", "dense")),
        }
        figures[name] = ratios
        table.add_row(name, *(f"{median:.3f} ({least:.3f})" for median, least in ratios.values()))
    table.caption = f"medians of the ratios of {rounds} rounds (ratio of the least seconds)"
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*json.loads(sys.argv[2]))
    else:
        tyro.cli(main)
