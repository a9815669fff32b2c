"""`sparse-dm evaluate` and `sparse-dm sample` on a small run."""

import csv
import json
import re
import shutil

import keras
import numpy as np
import pytest

from keras_sparse_dm.cli import main
from keras_sparse_dm.data import read_sketches
from keras_sparse_dm.metrics.intervals import Interval
from keras_sparse_dm.runs import samples
from keras_sparse_dm.runs.sketches import Sketches

SLOW_FIXTURES = {"run"}


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def command(*argv):
    return main([str(argument) for argument in argv])


def results_of(run):
    return json.loads((run / "evaluation.json").read_text())


def test_a_run_ends_with_an_evaluation(trained):
    results = results_of(trained)
    assert (results["samples"], results["real_samples"], results["held_out_samples"]) == (20, 51, 9)
    assert results["sampling"] == {"sampler": "ddim", "steps": 3, "eta": 0.0}
    (name,) = results["distances"]
    assert name == "FD-kanji"
    figures = results["distances"][name]
    for kind in ("generated", "held out"):
        for measure in ("frechet", "kernel", "precision", "recall"):
            value, low, high = figures[kind][measure]
            assert low <= value <= high
        assert figures[kind]["frechet"][0] > 0
    # The scribble of an untrained network is not a kanji.
    assert figures["generated"]["frechet"][0] > 1.5 * figures["held out"]["frechet"][0]
    text = (trained / "evaluation.md").read_text()
    assert str(Interval(*figures["generated"]["frechet"])) in text and "| FD-kanji |" in text
    assert "FD-kanji is not stable here" in text
    assert not re.search(r"\bFID\b", text)
    assert results["cost"]["sparse_sampling_flops"] == 3 * results["cost"]["sparse_flops"]
    with np.load(trained / "evaluation" / "samples.npz", allow_pickle=False) as stored:
        assert len(stored["lengths"]) == 20 and stored["lengths"].sum() == len(stored["points"])
    assert (trained / "evaluation" / "samples.png").stat().st_size > 1000
    assert not list((trained / "evaluation").glob("part-*"))


def test_distances_during_training_are_those_of_the_evaluation(trained):
    with open(trained / "metrics.csv", newline="") as file:
        first, second = (float(row["fd_kanji"]) for row in csv.DictReader(file))
    assert np.isnan(first)
    at_the_end = results_of(trained)["distances"]["FD-kanji"]["generated"]["frechet"][0]
    np.testing.assert_allclose(second, at_the_end, rtol=1e-4)


def test_samples_that_are_not_finite_are_counted(run, tmp_path, capsys):
    model = keras.saving.load_model(run / "model.keras")
    # No optimizer averages these weights.
    model.denoiser.time_frequencies.assign(np.full(4, np.nan))
    model.save(run / "model.keras")
    assert command("evaluate", run, "--samples", 10, "--verbose", 0) == 0
    assert results_of(run)["samples_not_finite"] == 10
    assert "10 samples are not finite" in capsys.readouterr().out
    picture = tmp_path / "a.png"
    assert command("sample", run, "-n", 3, "--output", picture, "--verbose", 0) == 0
    assert "3 of 3 samples are not finite" in capsys.readouterr().out


def test_evaluating_again_gives_the_same_and_other_seeds_other_numbers(run, capsys):
    first = results_of(run)
    assert command("evaluate", run, "--samples", 20, "--seed", 3, "--verbose", 0) == 0
    again = results_of(run)
    assert again["distances"] == first["distances"]
    assert "FD-kanji" in capsys.readouterr().out
    assert command("evaluate", run, "--samples", 20, "--seed", 4, "--verbose", 0) == 0
    assert results_of(run)["distances"] != first["distances"]
    options = ("--samples", 20, "--steps", 5, "--real", "validation", "--eta", 1, "--verbose", 0)
    assert command("evaluate", run, *options) == 0
    other = results_of(run)
    assert other["sampling"] == {"sampler": "ddim", "steps": 5, "eta": 1.0}
    assert (other["real_samples"], other["held_out_samples"]) == (9, 20)


@pytest.mark.slow
def test_an_interrupted_generation_goes_on_where_it_was(run, monkeypatch, capsys):
    monkeypatch.setattr(Sketches, "part_size", 8)
    options = ("evaluate", run, "--samples", 30, "--verbose", 0)
    assert command(*options) == 0
    whole = results_of(run)
    with np.load(run / "evaluation" / "samples.npz") as stored:
        points = stored["points"]
    generate_part, calls = samples._generate_part, []

    def generating(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate_part(*args)

    monkeypatch.setattr(samples, "_generate_part", generating)
    before = (run / "evaluation.json").read_bytes()
    assert command(*options) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert len(list((run / "evaluation").glob("part-*.npz"))) == 2
    assert (run / "evaluation.json").read_bytes() == before
    # A damaged part is generated again.
    next((run / "evaluation").glob("part-*.npz")).write_bytes(b"half")
    assert command(*options) == 0
    assert len(calls) == 3 + 3
    assert results_of(run)["distances"] == whole["distances"]
    with np.load(run / "evaluation" / "samples.npz") as stored:
        np.testing.assert_array_equal(stored["points"], points)


def test_a_run_without_its_model_is_evaluated_at_its_checkpoint(run):
    (run / "model.keras").unlink()
    assert command("evaluate", run, "--samples", 8, "--verbose", 0) == 0
    assert results_of(run)["model"] == "last.keras"


def test_samples_of_every_kind(run, tmp_path):
    for name in ("a.png", "a.svg", "a.npz", "a.json", "a.gif"):
        assert command("sample", run, "-n", 5, "--output", tmp_path / name, "--verbose", 0) == 0
        assert (tmp_path / name).stat().st_size > 200
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert len(stored["lengths"]) == 5
    sketches = list(read_sketches(tmp_path / "a.json"))
    assert [s.name for s in sketches] == [f"sample {i}" for i in range(5)]


def test_bad_evaluations_are_refused_before_any_work(run, tmp_path, capfd):
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = shutil.copytree(run, tmp_path / "broken")
    (broken / "model.keras").write_bytes(b"half")
    bare = shutil.copytree(run, tmp_path / "bare")
    (bare / "model.keras").unlink()
    shutil.rmtree(bare / "checkpoints")
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"none")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    picture = tmp_path / "a.png"
    for argv, message in (
        (("evaluate", tmp_path / "nowhere"), "there is no folder"),
        (("evaluate", empty), "holds no run"),
        (("evaluate", broken), "model.keras cannot be read"),
        (("evaluate", bare), "holds no model yet"),
        (("evaluate", run, "--samples", 7), "--samples must be 8 or more"),
        (("evaluate", run, "--steps", 0), "--steps must be 1 or more"),
        (("evaluate", run, "--steps", 51), "--steps must be at most the run's 50 timesteps"),
        (("evaluate", run, "--eta", 2), "--eta"),
        (("evaluate", run, "--sampler", "euler"), "--sampler must be one of ddim, ddpm"),
        (("evaluate", run, "--real", "test"), "--real must be one of train, validation"),
        (("evaluate", run, "--weights", "nowhere.pth"), "--weights: there is no file nowhere.pth"),
        (("evaluate", run, "--weights", weights), "--weights .*weights.pth"),
        (("evaluate", run, "--data-dir", empty), "--data-dir"),
        (("sample", run, "--output", "a.txt"), "--output must end in .png"),
        (("sample", run, "--output", tmp_path / "no" / "a.png"), "--output: the folder"),
        (("sample", run, "-n", 0, "--output", picture), "-n must be 1 or more"),
        (("sample", run, "--steps", 51, "--output", picture), "--steps must be at most"),
    ):
        assert command(*argv) == 2, argv
        err = capfd.readouterr().err
        assert re.search(message, err), (argv, err)
        assert "Traceback" not in err
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert not picture.exists()


def test_features_of_real_data_are_computed_once(run, monkeypatch):
    assert command("evaluate", run, "--samples", 9, "--seed", 9, "--verbose", 0) == 0
    drawn = []
    pictures = Sketches.pictures

    def counting(kind, examples, progress):
        drawn.append(len(examples))
        return pictures(kind, examples, progress)

    monkeypatch.setattr(Sketches, "pictures", counting)
    assert command("evaluate", run, "--samples", 9, "--seed", 9, "--verbose", 0) == 0
    assert drawn == [9]
