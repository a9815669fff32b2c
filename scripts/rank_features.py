"""FD-kanji of increasingly damaged sketches, as a table that shows how it ranks them.

Held-out sketches and damaged copies of them are compared with equally many training sketches:

- jitter: smooth noise bends the lines (`jitter_points`); sketches have the radius 10
- rough: independent noise moves every point, like noise that a diffusion model did not remove
- strokes replaced: strokes of other sketches, at their places, replace some strokes
- strokes moved: some strokes move by a quarter of the sketch's size, in any direction
- strokes missing
  (in these three kinds, the halves of a single stroke count as strokes)
- samples of an untrained ChiroDiff, and points of pure noise

Distances must grow with the damage, and all must be far above that of undamaged sketches.

    python scripts/rank_features.py [--digits FOLDER] [--samples 1000] [--weights FILE]
"""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import keras_sparse_dm as ksd
from keras_sparse_dm.data import Sketch, from_points, jitter_points, load_kanjivg, load_vmnist
from keras_sparse_dm.metrics.features.embedded import EmbeddedFeatures
from keras_sparse_dm.metrics.features.sketch_images import render_sketches
from keras_sparse_dm.metrics.frechet import frechet_distance

RADIUS = 10.0


def jittered(arrays, amount, seed=0):
    """Return sketches that smooth noise bends; `amount` is in the unit of the points."""
    lengths = arrays.lengths
    padded = np.zeros((len(arrays), arrays.max_length, 3), np.float32)
    for row, points in zip(padded, arrays, strict=True):
        row[: len(points)] = points
    moved = jitter_points(padded, lengths, amount, (seed, 0), arrays.representation).numpy()
    return [from_points(row[:n]) for row, n in zip(moved, lengths, strict=True)]


def rough(arrays, amount, seed=0):
    """Return sketches with independent noise on every point; `amount` is in the points' unit."""
    rng = np.random.default_rng(seed)
    return [
        from_points(points + rng.normal(0, amount, points.shape) * (1, 1, 0)) for points in arrays
    ]


def replaced(sketches, share, seed=0):
    """Return sketches with a random share of strokes replaced by other sketches' strokes."""
    rng = np.random.default_rng(seed)

    def other():
        return in_two(sketches[rng.integers(len(sketches))])

    def replace(stroke):
        if rng.random() >= share:
            return stroke
        strokes = other()
        return strokes[rng.integers(len(strokes))]

    return [Sketch([replace(stroke) for stroke in in_two(sketch)]) for sketch in sketches]


def displaced(sketches, share, seed=0):
    """Return sketches with a random share of strokes moved."""
    rng = np.random.default_rng(seed)

    def move(sketch, stroke):
        if rng.random() >= share:
            return stroke
        extent = np.ptp(np.concatenate(sketch.strokes)[:, :2], axis=0).max()
        angle = rng.uniform(0, 2 * np.pi)
        return stroke + extent / 4 * np.array([np.cos(angle), np.sin(angle), 0])

    return [Sketch([move(sketch, stroke) for stroke in in_two(sketch)]) for sketch in sketches]


def in_two(sketch):
    """Return the strokes of a sketch, or the halves of a single stroke."""
    if len(sketch) > 1 or sketch.num_points < 3:
        return sketch.strokes
    (stroke,) = sketch
    middle = len(stroke) // 2
    return stroke[: middle + 1], stroke[middle:]


def thinned(sketches, share, seed=0):
    """Return sketches without a random share of strokes; each keeps at least one."""
    rng = np.random.default_rng(seed)
    result = []
    for sketch in sketches:
        strokes = in_two(sketch)
        kept = rng.random(len(strokes)) >= share
        kept[rng.integers(len(strokes))] = True
        result.append(Sketch([s for s, keep in zip(strokes, kept, strict=True) if keep]))
    return result


def pure_noise(lengths, seed=0):
    """Return sketches of normal noise; a pen value above 1/2 lifts the pen."""
    rng = np.random.default_rng(seed)
    return [from_points(rng.normal(size=(n, 3))) for n in lengths]


def untrained(lengths, seed=0):
    """Return samples of an untrained ChiroDiff."""
    model = ksd.diffusion.DiffusionModel(
        ksd.models.ChiroDiff(48, 2, seed=seed), ksd.diffusion.NoiseSchedule.linear(1000), seed=seed
    )
    points = model.generate(lengths=lengths, steps=10, sampler="ddim", seed=seed)
    return [from_points(p[:n]) for p, n in zip(points, lengths, strict=True)]


def damages(arrays):
    """Return `{kind of damage: {strength: sketches}}`, in order of increasing strength."""
    sketches = [from_points(points, arrays.representation) for points in arrays]
    shares = {"10%": 0.1, "25%": 0.25, "50%": 0.5, "100%": 1.0}
    return {
        "jitter": {str(a): jittered(arrays, a) for a in (0.1, 0.2, 0.4, 0.8, 1.6)},
        "rough": {str(a): rough(arrays, a) for a in (0.05, 0.1, 0.2, 0.4, 0.8)},
        "strokes replaced": {name: replaced(sketches, s) for name, s in shares.items()},
        "strokes moved": {name: displaced(sketches, s) for name, s in shares.items()},
        "strokes missing": {n: thinned(sketches, s) for n, s in shares.items() if s < 1},
        "untrained ChiroDiff": {"": untrained(arrays.lengths)},
        "pure noise": {"": pure_noise(arrays.lengths)},
    }


def distances(features, train, held_out, progress=False):
    """Return `[(kind, strength, distance)]` of held-out sketches, undamaged and damaged."""

    def features_of(sketches):
        return features(render_sketches(sketches, progress=progress), progress=progress)

    real = features_of(train)
    rows = [("held out", "", frechet_distance(real, features_of(held_out)))]
    for kind, strengths in damages(held_out).items():
        for strength, sketches in strengths.items():
            rows.append((kind, strength, frechet_distance(real, features_of(sketches))))
    return rows


def main(
    samples: int = 1000,
    digits: Path | None = None,
    weights: Path | None = None,
    progress: bool = False,
):
    """Print the table.

    Args:
        samples: Largest number of sketches of each kind.
        digits: Folder of MNIST's files; without it, scikit-learn's 1,797 digits.
        weights: File of the features' weights; by default the package's.
        progress: Whether to show progress bars.
    """
    features = EmbeddedFeatures(weights)
    columns = {}
    for name, (train, held_out) in (
        ("KanjiVG", load_kanjivg(progress=progress)),
        ("VMNIST", load_vmnist(digits, progress=progress)),
    ):
        count = min(samples, len(train), len(held_out))
        columns[f"{name} ({count:,})"] = distances(
            features, train.take(count), held_out.take(count), progress
        )
    table = Table("sketches", "damage", *columns, title=f"{features.name}, {features.fingerprint}")
    for rows in zip(*columns.values(), strict=True):
        kind, strength, _ = rows[0]
        table.add_row(kind, strength, *(f"{distance:.4g}" for _, _, distance in rows))
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
