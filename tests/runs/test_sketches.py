"""Runs on each data set of sketches, and the report of `sparse-dm data`."""

import csv
import gzip
import json
import re

import keras
import numpy as np
import pytest

from keras_sparse_dm.cli import main
from keras_sparse_dm.commands.train import train_command
from keras_sparse_dm.data import Sketch, write_sketch_json
from keras_sparse_dm.runs.callbacks import averaging_momentum
from keras_sparse_dm.sparsity import check_invariant

TINY = (
    *("--units", "8", "--num-layers", "1", "--noise.timesteps", "50", "--update-every", "2"),
    *("--prune-rate", "0.2", "--sampling.steps", "3", "--samples", "4", "--verbose", "0"),
    *("--sampling.evaluation", "0"),
)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def train(*argv):
    return train_command([str(argument) for argument in argv])


def drawing(seed, word="cat"):
    rng = np.random.default_rng(seed)
    strokes, t = [], 0
    for _ in range(2):
        n = int(rng.integers(3, 8))
        x, y = rng.integers(0, 99, (2, n)).cumsum(axis=1).tolist()
        strokes.append([x, y, [t := t + 20 for _ in range(n)]])
    return {"word": word, "key_id": str(seed), "recognized": seed % 2 == 0, "drawing": strokes}


@pytest.fixture
def quickdraw(tmp_path):
    folder = tmp_path / "quickdraw"
    folder.mkdir()
    for i, word in enumerate(("cat", "crab", "mosquito")):
        text = "".join(json.dumps(drawing(100 * i + k, word)) + "\n" for k in range(20))
        (folder / f"{word}.ndjson").write_text(text)
    return folder


@pytest.fixture
def mnist(tmp_path):
    """Folder of sixty digits 1, each at another place."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    images = np.zeros((60, 28, 28), np.uint8)
    for i, image in enumerate(images):
        image[4 : 24 - i % 5, 8 + i % 9 : 11 + i % 9] = 255
    for name, magic, values in (
        ("images-idx3", 3, images),
        ("labels-idx1", 1, np.ones(60, np.uint8)),
    ):
        header = bytes([0, 0, 8, magic]) + np.array(values.shape, ">i4").tobytes()
        file = folder / f"t10k-{name}-ubyte.gz"
        file.write_bytes(gzip.compress(header + values.tobytes()))
    return folder


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
def test_fewer_drawings_than_a_presets_batch_train_as_one_batch(quickdraw, tmp_path, capsys):
    run = tmp_path / "run"
    options = ("--data-dir", quickdraw, "--epochs", "4", "--output-dir", run)
    assert train("chirodiff_quickdraw", *TINY, *options) == 0
    report = report_of(run)
    assert (report["batch_size"], report["iterations"], report["topology_updates"]) == (51, 4, 2)
    out = capsys.readouterr().out
    assert "60 sketches read, 60 kept (cat 20, crab 20, mosquito 20)" in out
    assert "1 batches of 51 (all; the preset's batch size is 128)" in out
    model = keras.saving.load_model(run / "model.keras")
    check_invariant(model)
    # The averages forget the untrained weights, and a resumed run has the same averages.
    inner = model.optimizer.inner_optimizer
    assert inner.ema_momentum == averaging_momentum(0.9999, 4) == 0.0
    assert (run / "samples.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_batch_that_was_asked_for_is_not_changed(quickdraw, tmp_path, capfd):
    options = ("--data-dir", quickdraw, "--batch-size", "100", "--output-dir", tmp_path / "run")
    assert train("chirodiff_quickdraw", *TINY, *options) == 2
    assert "--batch-size: batch_size=100 is more than the 51 sketches" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_options_of_quickdraw(quickdraw, tmp_path, capfd):
    run = tmp_path / "run"
    options = ("--data-dir", quickdraw, "--epochs", "1", "--output-dir", run)
    few = ("--categories", "cat", "crab", "--recognized", "--max-sketches", "8")
    more = ("--max-strokes", "1", "--simplify", "0.05", "--jitter", "0.1")
    assert train("chirodiff_quickdraw", *TINY, *few, *more, *options, "--batch-size", "6") == 0
    report = report_of(run)
    assert (report["training_sketches"], report["validation_sketches"]) == (13, 3)
    stored = json.loads((run / "config.json").read_text())["settings"]["data"]
    assert stored["categories"] == ["cat", "crab"] and stored["recognized"] is True
    # A resumed run has the same configuration, although JSON has lists for tuples.
    assert train("--output-dir", run, "--resume") == 0
    assert train("--output-dir", run, "--resume", "--categories", "cat") == 2
    error = capfd.readouterr().err
    assert "--categories is ['cat'] but was ['cat', 'crab']" in error


def test_what_quickdraw_lacks_is_told_by_option(quickdraw, tmp_path, capfd):
    for options, message in (
        (("--data-dir", quickdraw, "--categories", "crap"), "--categories: .*did you mean 'crab'"),
        (("--data-dir", quickdraw, "--categories", "owl"), "--data-dir: .*raw/owl.ndjson"),
        ((), "--data-dir: .*raw/cat.ndjson"),
        (("--data-dir", quickdraw, "--max-points", "4"), "--max-points: max_points=4 leaves no"),
    ):
        assert train("chirodiff_quickdraw", *options) == 2
        err = capfd.readouterr().err
        assert re.search(message, err, re.DOTALL), err


@pytest.mark.slow
def test_digits_are_traced_and_trained_on(mnist, tmp_path):
    run = tmp_path / "run"
    options = ("--data-dir", mnist, "--epochs", "3", "--batch-size", "16", "--output-dir", run)
    assert train("chirodiff_vmnist", *TINY, *options) == 0
    report = report_of(run)
    assert (report["training_sketches"], report["validation_sketches"]) == (51, 9)
    assert report["points_per_sketch"] > 15
    rows = list(csv.DictReader((run / "metrics.csv").open(newline="")))
    assert float(rows[-1]["val_loss"]) < report["validation_loss_untrained"]


@pytest.mark.slow
def test_sketches_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 12, 2)).cumsum(axis=1)
    sketches = [
        Sketch((np.column_stack([p, np.arange(12)]),), str(i)) for i, p in enumerate(points)
    ]
    write_sketch_json(tmp_path / "mine.json", sketches)
    run = tmp_path / "run"
    options = ("--dataset", "files", "--data-dir", tmp_path / "mine.json", "--epochs", "1")
    assert train(*TINY, *options, "--batch-size", "8", "--output-dir", run) == 0
    assert report_of(run)["training_sketches"] == 25


def test_short_runs_average_over_a_tenth_of_their_steps():
    assert averaging_momentum(0.9999, 25_200) == 0.9999
    assert averaging_momentum(0.9999, 600) == pytest.approx(1 - 1 / 60)
    assert averaging_momentum(0.9999, 5) == 0.0
    assert averaging_momentum(0.9, 600) == 0.9
    assert averaging_momentum(0.0, 600) == 0.0


# sparse-dm data


@pytest.mark.slow
def test_a_data_set_in_figures_and_a_picture(quickdraw, capsys, tmp_path):
    assert main(["data", "quickdraw", "--data-dir", str(quickdraw), "--batch-size", "16"]) == 0
    out = capsys.readouterr().out
    assert "60 sketches read, 60 kept (cat 20, crab 20, mosquito 20)" in out
    assert "training      51 sketches, 3 batches of 16 an epoch" in out
    assert "strokes       2.0 a sketch on average; minimum 2, median 2, maximum 2" in out
    # The histogram counts every sketch once.
    bins = [line.split() for line in out.splitlines() if " to " in line and "  " in line]
    counts = [int(words[3].replace(",", "")) for words in bins if words[0].isdigit()]
    assert sum(counts) == 60
    assert (tmp_path / "work" / "quickdraw.png").stat().st_size > 5000


@pytest.mark.slow
def test_a_data_set_as_an_animation(quickdraw, capsys, tmp_path):
    picture = tmp_path / "drawn.gif"
    options = ("--data-dir", str(quickdraw), "--categories", "cat", "--picture", str(picture))
    assert main(["data", "quickdraw", *options]) == 0
    from PIL import Image

    with Image.open(picture) as gif:
        assert gif.n_frames > 10


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["celebahq"], "kanjivg, quickdraw, vmnist, files; received 'celebahq'"),
        (["kanjivg", "--dataset", "vmnist"], "received 'vmnist'"),
        (["kanjivg", "--batch-size", "0"], "--batch-size must be 1 or more"),
        (["kanjivg", "--picture", "a.txt"], "--picture must end in .png"),
        (["kanjivg", "--picture", "nowhere/a.png"], "--picture: the folder nowhere"),
        (["kanjivg", "--spacing", "0"], "--spacing"),
        (["files"], "--data-dir must be given"),
        (["vmnist", "--data-dir", "nowhere"], "--data-dir: .*nowhere"),
        ([], "Missing .*NAME"),
    ],
)
def test_bad_options_of_data_are_named(argv, message, capfd, tmp_path):
    assert main(["data", *argv]) == 2
    err = capfd.readouterr().err
    assert re.search(message, err), err
    assert not list((tmp_path / "work").iterdir())
