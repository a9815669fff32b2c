"""Train the network of `keras_sparse_dm.metrics.EmbeddedFeatures`, and write its weights.

The network learns from drawings, which are warped slightly and differently in each epoch:

- KanjiVG: the most frequent components in each character, from the `kvg:element`s of the SVG files
  in the package `kanjivg`; a character can have several
- digits, traced to strokes: the digit
- QuickDraw: the category

Half of the drawings have damage like that of an imperfect generator: wobbly or rough lines, and
replaced, moved, missing or joined strokes. The network also predicts the kind and strength of the
damage; otherwise, it would learn to ignore damage that leaves the character readable, and so would
the distance.

The accuracies in the file are those on the default validation sketches of `load_kanjivg`,
`load_vmnist` and `load_quickdraw`, and on variants of the same characters.

    python scripts/train_feature_network.py [--digits FOLDER] [--quickdraw FOLDER] [--epochs 8]

Equal seeds and data give equal weights on one machine, except for rounding, which depends on the
order in which threads add.
"""

import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
import tyro
from rich.console import Console
from rich.table import Table

from keras_sparse_dm.data import (
    Sketch,
    from_points,
    kanjivg_folder,
    load_kanjivg,
    load_quickdraw,
    load_vmnist,
    rasterize,
)
from keras_sparse_dm.data.worker_processes import map_chunks
from keras_sparse_dm.metrics.features import embedded

# Filters, width of the kernel, and stride of each convolution.
LAYERS = ((24, 5, 2), (48, 3, 2), (96, 3, 2), (96, 3, 1), (192, 3, 2), (128, 3, 1))
# Layers whose spatial means are the features, and their weights. The earlier layer sees strokes and
# their junctions, and the last one the drawing. With full weight, the last layer would dominate the
# random part of the distance between two samples of the same drawings.
POOLED = {3: 1.0, 5: 0.5}
ALL = 10**6

# The first two bend lines; the others change strokes.
DAMAGES = ("wobbly", "rough", "replaced", "moved", "missing", "joined")
# Strengths of damage above which the drawing may no longer show its class.
UNTOLD = np.array([0.7, 0.7, 0, 0, 0, 0.3])
# Weight of the damage in the loss.
DAMAGE_WEIGHT = 2.0


@dataclass
class Task:
    """Drawings, and the classes that the network predicts for them.

    Args:
        name: name of the data set.
        classes: names of the outputs.
        one_of: whether exactly one class is right for each drawing; otherwise, any number can be.
        train, held_out: `(sketches, targets)`, a list of `Sketch`es and a float32 array of
            shape `(sketches, classes)` of zeros and ones.
        repeat: number of times that an epoch shows each drawing.
    """

    name: str
    classes: list[str]
    one_of: bool
    train: tuple[list[Sketch], np.ndarray]
    held_out: tuple[list[Sketch], np.ndarray]
    repeat: int = 1
    columns: slice = field(default_factory=lambda: slice(0))


def kanjivg_task(components, progress):
    """Return the task of KanjiVG: characters and variants, with the most frequent components."""
    folder = kanjivg_folder()
    _, validation = load_kanjivg(progress=progress)
    everything = load_kanjivg(characters="all", max_points=ALL, progress=progress)
    hidden = {name[:5] for name in validation.names}
    sketches, elements = ([], []), ([], [])
    for arrays in everything:
        for name, points in zip(arrays.names, arrays, strict=True):
            part = name[:5] in hidden
            # Hold out only the drawings that `load_kanjivg` returns for validation, no variants.
            if part and len(name) > 5:
                continue
            text = (folder / f"{name}.svg").read_text(encoding="utf-8")
            sketches[part].append(from_points(points, name=name))
            elements[part].append(set(re.findall(r'kvg:element="([^"]+)"', text)))
    counts = Counter(e for found in elements[0] for e in found)
    classes = [e for e, _ in sorted(counts.items(), key=lambda c: (-c[1], c[0]))[:components]]
    targets = [np.float32([[e in found for e in classes] for found in part]) for part in elements]
    return Task("KanjiVG", classes, False, *zip(sketches, targets, strict=True))


def one_of_task(name, loaded, repeat=1, most=ALL):
    """Return a task of sketches with one label each, trained on at most `most` sketches."""
    loaded = loaded[0].take(most), loaded[1]
    classes = sorted({label for arrays in loaded for label in arrays.labels})
    parts = [
        (
            [from_points(points) for points in arrays],
            np.float32([[label == c for c in classes] for label in arrays.labels]),
        )
        for arrays in loaded
    ]
    return Task(name, classes, True, *parts, repeat)


# Pictures ----------------------------------------------------------------------------------


def draw_all(sketches, seed, warped, damaged, progress=False, title=""):
    """Return pictures of drawings, warped and damaged at random by seed and index.

    Args:
        sketches: list of `Sketch`es.
        seed: whole number.
        warped: whether to turn, shear, stretch and shift drawings a little, and vary the pen width.
        damaged: share of the drawings to damage.
        progress: whether to show a progress bar.
        title: title of the progress bar.

    Returns:
        uint8 array `(n, size, size)`, and float32 `(n, kinds)`: the strength of each kind of
        damage, from 0 for none to 1.
    """
    drawn = map_chunks(
        partial(draw_chunk, seed=seed, warped=warped, damaged=damaged),
        enumerate(sketches),
        total=len(sketches),
        chunk=256,
        workers=None,
        progress=progress,
        title=title,
        unit="drawings",
    )
    pictures, strengths = zip(*drawn, strict=True)
    return np.stack(pictures), np.float32(strengths)


def draw_chunk(items, seed, warped, damaged):
    others = [sketch for _, sketch in items]
    drawn = []
    for number, sketch in items:
        rng = np.random.default_rng([seed, number])
        strengths = np.zeros(len(DAMAGES))
        if rng.random() < damaged:
            # One kind of damage, or two.
            for kind in rng.choice(len(DAMAGES), 1 + (rng.random() < 0.3), replace=False):
                sketch, strengths[kind] = damage(sketch, DAMAGES[kind], others, rng)
        drawn.append((draw_one(sketch, rng if warped else None), strengths))
    return drawn


def damage(sketch, kind, others, rng):
    """Return the damaged sketch, and the strength of the damage from 0 to 1."""
    strokes = list(sketch)
    extent = extent_of(strokes)
    if kind in ("wobbly", "rough"):
        low, high, spacing = (0.004, 0.1, 8) if kind == "wobbly" else (0.002, 0.05, 1)
        strength = rng.random()
        amount = extent * low * (high / low) ** strength
        strokes = [
            np.column_stack([s[:, :2] + smooth_noise(len(s), amount, rng, spacing), s[:, 2]])
            for s in strokes
        ]
        return Sketch(strokes), 0.2 + 0.8 * strength
    if len(strokes) == 1 and kind != "joined":
        # The picture does not show the place of a single stroke, so use its halves.
        middle = len(strokes[0]) // 2
        strokes = [part for part in (strokes[0][: middle + 1], strokes[0][middle:]) if len(part)]
    chosen = rng.random(len(strokes)) < rng.uniform(0.05, 0.6 if kind == "missing" else 1)
    if kind in ("missing", "joined"):
        chosen[0] = False  # the first stroke stays and has no stroke before it to join
    else:
        chosen[rng.integers(len(strokes))] = True
    changed = []
    for stroke, change in zip(strokes, chosen, strict=True):
        if not change:
            changed.append(stroke)
        elif kind == "replaced":
            other = others[rng.integers(len(others))]
            other = other.strokes[rng.integers(len(other))]
            changed.append(other)
        elif kind == "moved":
            angle, distance = rng.uniform(0, 2 * np.pi), extent * rng.uniform(0.1, 0.4)
            changed.append(stroke + distance * np.array([np.cos(angle), np.sin(angle), 0]))
        elif kind == "joined":
            changed[-1] = np.concatenate([changed[-1], stroke])
    return Sketch(changed), chosen.mean()


def draw_one(sketch, rng=None):
    if rng is None:
        return rasterize(sketch, embedded.SIZE)
    angle, shear = rng.normal(0, 0.06), rng.normal(0, 0.06)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    warp = turn @ np.array([[1, shear], [0, 1]]) @ np.diag(np.exp(rng.normal(0, 0.08, 2)))
    strokes = [np.column_stack([s[:, :2] @ warp.T, s[:, 2]]) for s in sketch]
    points = np.concatenate(strokes)[:, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    # Damage can leave a single dot, whose extent is zero.
    side = ((high - low).max() or 1.0) * (1 + rng.uniform(0.08, 0.3))
    middle = (low + high) / 2
    room = (side - (high - low)) / 2
    middle = middle + rng.uniform(-1, 1, 2) * np.minimum(room, 0.08 * side)
    return rasterize(
        Sketch(strokes),
        embedded.SIZE,
        line_width=embedded.SIZE * 3 / 109 * np.exp(rng.normal(0, 0.2)),
        box=(*(middle - side / 2), *(middle + side / 2)),
    )


def extent_of(strokes):
    points = np.concatenate(strokes)[:, :2]
    return (points.max(axis=0) - points.min(axis=0)).max()


def smooth_noise(length, amount, rng, spacing):
    """Return random offsets `(length, 2)`, drawn every `spacing` points and interpolated."""
    knots = np.arange(0, length + spacing, spacing)
    noise = rng.normal(0, amount, (2, len(knots)))
    return np.stack([np.interp(np.arange(length), knots, axis) for axis in noise], axis=1)


# Network -----------------------------------------------------------------------------------


def build(outputs):
    x = inputs = keras.Input((embedded.SIZE, embedded.SIZE, 1))
    for i, (filters, width, stride) in enumerate(LAYERS):
        x = keras.layers.Conv2D(
            filters, width, stride, padding="same", use_bias=False, name=f"conv_{i}"
        )(x)
        x = keras.layers.BatchNormalization(momentum=0.98, epsilon=1e-3, name=f"norm_{i}")(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    # Most classes are rare, so initial probabilities are small.
    last = keras.layers.Dense(outputs, bias_initializer=keras.initializers.Constant(-4.0))
    return keras.Model(inputs, last(x))


def folded(model):
    """Return `(kernel, bias)` of each convolution, including its batch normalization."""
    layers = []
    for i in range(len(LAYERS)):
        (kernel,) = model.get_layer(f"conv_{i}").get_weights()
        norm = model.get_layer(f"norm_{i}")
        gamma, beta, mean, variance = norm.get_weights()
        scale = gamma / np.sqrt(variance + norm.epsilon)
        layers.append((kernel * scale, beta - mean * scale))
    return layers


def feature_scale(layers, tasks, count=4000):
    """Return the weight of each feature's layer, divided by the feature's standard deviation.

    The deviations are those over undamaged training drawings, equally many of the first two tasks.
    """
    pictures = [draw_all(task.train[0][:count], 0, False, 0.0)[0] for task in tasks[:2]]
    deviations = 0
    for part in pictures:
        x = tf.constant(ink(part))
        means = []
        for (kernel, bias), (_, _, stride) in zip(layers, LAYERS, strict=True):
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, stride, "SAME") + bias)
            means.append(tf.reduce_mean(x, axis=(1, 2)).numpy())
        deviations += np.concatenate([means[i].var(axis=0) for i in POOLED]) / len(pictures)
    deviations = np.sqrt(deviations)
    weights = np.repeat(list(POOLED.values()), [LAYERS[i][0] for i in POOLED])
    # Features that hardly vary carry no information, so do not amplify their noise.
    return weights / np.maximum(deviations, 0.1 * np.median(deviations))


def make_loss(tasks):
    """Return the loss: classes of recognizable drawings, and damage, averaged over drawings."""
    kinds = len(DAMAGES)

    def loss(targets, numbers, strengths, outputs):
        told = tf.reduce_all(strengths <= tf.constant(UNTOLD, tf.float32), axis=1)
        total = DAMAGE_WEIGHT * tf.reduce_sum(
            tf.nn.sigmoid_cross_entropy_with_logits(strengths, outputs[:, -kinds:])
        )
        for i, task in enumerate(tasks):
            of_task = tf.cast((numbers == i) & told, tf.float32)
            y, logits = targets[:, task.columns], outputs[:, task.columns]
            if task.one_of:
                values = tf.nn.softmax_cross_entropy_with_logits(y, logits)
            else:
                values = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(y, logits), axis=1)
            total += tf.reduce_sum(values * of_task)
        return total / tf.cast(tf.shape(targets)[0], tf.float32)

    return loss


def accuracies(model, tasks):
    """Return accuracies on held-out drawings, as a dictionary.

    For each task, the mean average precision or the share of right answers on undamaged drawings;
    for the damage, the correlation of its strength with the prediction, on damaged drawings.
    """
    result = {}
    for task in tasks:
        sketches, targets = task.held_out
        pictures, _ = draw_all(sketches, 0, False, 0.0)
        outputs = model.predict(ink(pictures), batch_size=256, verbose=0)[:, task.columns]
        if task.one_of:
            right = outputs.argmax(axis=1) == targets.argmax(axis=1)
            result[f"{task.name}: accuracy"] = float(right.mean())
        else:
            from sklearn.metrics import average_precision_score, f1_score

            seen = targets.any(axis=0)
            result[f"{task.name}: mean average precision"] = float(
                average_precision_score(targets[:, seen], outputs[:, seen], average="macro")
            )
            result[f"{task.name}: F1"] = float(f1_score(targets, outputs > 0, average="micro"))
        result[f"{task.name}: held-out drawings"] = float(len(sketches))
    pictures, strengths = draw_all([s for t in tasks for s in t.held_out[0]], 1, False, 0.5)
    outputs = model.predict(ink(pictures), batch_size=256, verbose=0)[:, -len(DAMAGES) :]
    told = 1 / (1 + np.exp(-outputs))
    for i, kind in enumerate(DAMAGES):
        result[f"damage: correlation, {kind}"] = float(
            np.corrcoef(told[:, i], strengths[:, i])[0, 1]
        )
    return result


def ink(pictures):
    return (1 - np.float32(pictures) / 255)[..., None]


def spread_threads():
    """Bind TensorFlow's threads evenly to cores.

    TensorFlow leaves the choice to the operating system, which may keep all threads on one core of
    a virtual machine.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))

    def threads():
        return {int(name) for name in os.listdir("/proc/self/task")}

    before = threads()
    x = np.ones((512, 512), "float32")
    start = tf.function(lambda: (tf.matmul(x, x), tf.matmul(x, x, transpose_b=True)))
    for _ in range(3):
        start()
    for i, thread in enumerate(sorted(threads() - before)):
        os.sched_setaffinity(thread, {cores[i % len(cores)]})


def main(
    output: Path = embedded.WEIGHTS,
    digits: Path | None = None,
    quickdraw: Path | None = None,
    components: int = 256,
    epochs: int = 12,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: bool = True,
):
    """Train the network and write its weights.

    Args:
        output: The file of weights to write.
        digits: Folder of MNIST's files; without it, scikit-learn's 1,797 digits.
        quickdraw: Folder of QuickDraw's files, to learn all their categories; without it, none.
        components: Number of KanjiVG's components to predict, the most frequent ones.
        epochs: Number of epochs.
        batch_size: Drawings per step.
        learning_rate: Highest learning rate; it rises over the first 5% of the steps, then
            falls to 0 with the cosine.
        seed: Seed of weights, order and warping.
        progress: Whether to show progress bars.
    """
    begin = time.perf_counter()
    # Before any model exists, so that the bound threads do all computations.
    spread_threads()
    keras.utils.set_random_seed(seed)
    tasks = [
        kanjivg_task(components, progress),
        one_of_task("digits", load_vmnist(digits, max_points=ALL, progress=progress), most=4000),
    ]
    if quickdraw is not None:
        categories = sorted({file.name.partition(".")[0] for file in quickdraw.iterdir()})
        loaded = load_quickdraw(quickdraw, categories, max_points=ALL, progress=progress)
        # Repeat small data sets up to eight times per epoch.
        repeat = max(1, min(8, 10_000 // len(loaded[0])))
        tasks.append(one_of_task("QuickDraw", loaded, repeat))
    outputs = 0
    for task in tasks:
        task.columns = slice(outputs, outputs + len(task.classes))
        outputs += len(task.classes)

    sketches = [s for task in tasks for s in task.train[0] * task.repeat]
    targets = np.zeros((len(sketches), outputs), np.float32)
    numbers = np.repeat(range(len(tasks)), [len(t.train[0]) * t.repeat for t in tasks])
    for i, task in enumerate(tasks):
        targets[numbers == i, task.columns] = np.tile(task.train[1], (task.repeat, 1))

    model = build(outputs + len(DAMAGES))
    steps = len(sketches) // batch_size
    rate = keras.optimizers.schedules.CosineDecay(
        0.0,
        (epochs * steps) * 19 // 20,
        warmup_target=learning_rate,
        warmup_steps=epochs * steps // 20,
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=0.01)
    loss = make_loss(tasks)

    @tf.function
    def step(pictures, y, of_task, strengths):
        x = (1 - tf.cast(pictures, tf.float32) / 255)[..., None]
        with tf.GradientTape() as tape:
            value = loss(y, of_task, strengths, model(x, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(value, variables), variables)
        return value

    console = Console()
    for epoch in range(epochs):
        pictures, strengths = draw_all(
            sketches, seed * 1000 + epoch + 1, True, 0.5, progress, f"Drawing, epoch {epoch + 1}"
        )
        order = np.random.default_rng([seed, epoch]).permutation(len(sketches))
        values = []
        for i in range(steps):
            rows = order[i * batch_size : (i + 1) * batch_size]
            values.append(step(pictures[rows], targets[rows], numbers[rows], strengths[rows]))
        console.print(
            f"epoch {epoch + 1} of {epochs}: loss {np.mean(values):.3f}, "
            f"{time.perf_counter() - begin:.0f} s"
        )

    accuracy = accuracies(model, tasks)
    description = {
        "strides": [stride for _, _, stride in LAYERS],
        "pooled": list(POOLED),
        "accuracy": {name: round(value, 4) for name, value in accuracy.items()},
        "drawings": {task.name: len(task.train[0]) for task in tasks},
        "classes": {task.name: task.classes for task in tasks},
        "epochs": epochs,
        "seed": seed,
        "licence": "KanjiVG, Ulrich Apel, CC BY-SA 3.0; The Quick, Draw! Dataset, CC BY 4.0; MNIST",
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    layers = [(np.float32(kernel), np.float32(bias)) for kernel, bias in folded(model)]
    embedded.write_weights(output, layers, feature_scale(layers, tasks), description)
    table = Table("on held-out drawings", "", title=f"{output}, {output.stat().st_size:,} bytes")
    for name, value in description["accuracy"].items():
        table.add_row(name, f"{value:g}")
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
