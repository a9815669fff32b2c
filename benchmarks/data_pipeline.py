"""Speed of the data pipeline: preparation of sketches, and batches compared with training.

Reads, prepares and caches KanjiVG's SVG drawings, the same drawings in QuickDraw's raw format, and
traced digits, and measures the fit of the digits' strokes to the ink. Then counts shuffled and
padded batches of the digits per second, from `tf.data` alone and while the VMNIST network trains
on them.

    python benchmarks/data_pipeline.py [--sketches 10000] [--digits FOLDER] [--json-path F.json]
"""

import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import shapely
import tyro
from rich.console import Console
from rich.table import Table
from skimage.morphology import skeletonize

import keras_sparse_dm as ksd
from keras_sparse_dm.data import (
    kanjivg_folder,
    load_digits,
    load_kanjivg,
    load_quickdraw,
    load_vmnist,
    rasterize,
    read_svg,
    trace,
    train_batches,
)
from keras_sparse_dm.data.sketches.tracing import ink_of

BATCH_SIZE = 128


def seconds_of(work):
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def write_quickdraw(folder, sketches):
    """Write the first drawings of KanjiVG in QuickDraw's raw format: whole pixels and times."""
    files = sorted(kanjivg_folder().glob("*.svg"))[:sketches]
    with open(folder / "cat.ndjson", "w", encoding="utf-8") as file:
        for path in files:
            strokes = [
                [*np.round(s[:, :2] * 2).T.astype(int).tolist(), (s[:, 2] * 9000).tolist()]
                for s in read_svg(path)
            ]
            file.write(json.dumps({"word": "cat", "recognized": True, "drawing": strokes}) + "\n")


def ink_overlap(image, sketch):
    """Return the intersection over union of ink and strokes of the ink's mean width."""
    ink = ink_of(image)
    # Strokes of length l and width w, with round ends, cover about l w + pi w^2 / 4.
    length = sum(np.hypot(*np.diff(s[:, :2], axis=0).T).sum() for s in sketch)
    ends = np.pi * len(sketch)
    width = 2 * (np.sqrt(length**2 + ends * ink.sum()) - length) / ends
    size = max(ink.shape)
    drawn = rasterize(sketch, size, line_width=width, box=(0, 0, size, size)) < 128
    drawn = drawn[: ink.shape[0], : ink.shape[1]]
    return (drawn & ink).sum() / (drawn | ink).sum()


def skeleton_coverage(image, sketch):
    """Return the share of the skeleton's pixels with a stroke within one pixel of their centre."""
    rows, columns = np.nonzero(skeletonize(ink_of(image)))
    strokes = [s[:, :2] if len(s) > 1 else np.repeat(s[:, :2], 2, axis=0) for s in sketch]
    points = shapely.points(columns + 0.5, rows + 0.5)
    return (shapely.distance(points, shapely.MultiLineString(strokes)) <= 1).mean()


def fit_of_strokes(images):
    """Return measures of the fit of traced strokes to the ink of digits."""
    traced = [(image, trace(image)) for image in images]
    coverage = np.array([skeleton_coverage(*pair) for pair in traced])
    return {
        "VMNIST: overlap of the strokes, drawn, with the ink": float(
            np.mean([ink_overlap(*pair) for pair in traced])
        ),
        "VMNIST: skeleton within a pixel of the strokes": float(coverage.mean()),
        "VMNIST: digits with less than 0.9 of it": float(np.mean(coverage < 0.9)),
    }


def main(
    sketches: int = 10_000,
    digits: Path | None = None,
    seconds: float = 20.0,
    json_path: Path | None = None,
):
    """Measure the data pipeline and print a table.

    Args:
        sketches: Sketches of each data set to prepare.
        digits: Folder of MNIST's files; without it, scikit-learn's 1,797 digits.
        seconds: Duration of the training.
        json_path: File for the figures, as JSON.
    """
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_quickdraw(folder, sketches)
        options = {"cache_dir": folder / "cache", "max_sketches": sketches, "progress": False}
        options["max_points"] = 10**6
        for name, load in (
            ("KanjiVG, SVG", lambda: load_kanjivg(characters="all", **options)),
            ("QuickDraw, raw", lambda: load_quickdraw(folder, "cat", **options)),
            ("VMNIST, traced", lambda: load_vmnist(digits, **options)),
        ):
            taken, (train, validation) = seconds_of(load)
            figures[f"{name}: sketches"] = len(train) + len(validation)
            figures[f"{name}: sketches / s"] = (len(train) + len(validation)) / taken
            figures[f"{name}: seconds from the cache"] = seconds_of(load)[0]
    figures |= fit_of_strokes(load_digits(digits).images[:sketches])
    # Resampled to the size of the paper's training set.
    arrays = train.subset(np.random.default_rng(0).integers(0, len(train), 8500))
    dataset = train_batches(arrays, BATCH_SIZE, seed=0)
    stream = iter(dataset)
    next(stream)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < 5:
        next(stream)
        count += 1
    fed = count / (time.perf_counter() - begin)

    preset = ksd.models.get_preset("chirodiff_vmnist")
    model = ksd.diffusion.DiffusionModel(
        ksd.models.ChiroDiff(**preset.denoiser_arguments(), seed=0), preset.noise.to_schedule()
    )
    ksd.sparsify(model, 0.5, seed=0)
    model.compile(keras.optimizers.AdamW(1e-3, weight_decay=1e-2, global_clipnorm=0.1))
    callback = ksd.DynamicSparsity("rigl", update_every=800, prune_rate=0.05)
    model.fit(dataset, steps_per_epoch=20, verbose=0, callbacks=[callback])  # traces
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        model.fit(dataset, steps_per_epoch=20, verbose=0, callbacks=[callback])
        steps += 20
    trained = steps / (time.perf_counter() - begin)
    figures["batches / s, tf.data alone"] = fed
    figures["batches / s, VMNIST network training"] = trained
    figures["ratio"] = fed / trained

    table = Table("", "value", title=f"batches of {BATCH_SIZE}")
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:,.3f}")
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
