"""`sparse-dm export` of a small run, and `sparse-dm sample` of the files."""

import json
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_sparse_dm as ksd
from keras_sparse_dm.cli import main
from keras_sparse_dm.export.averages import averages_of
from keras_sparse_dm.runs import formats
from keras_sparse_dm.runs.export import export_run
from keras_sparse_dm.runs.exported import load_exported
from keras_sparse_dm.runs.formats import tflite
from keras_sparse_dm.runs.samples import load_run

pytestmark = pytest.mark.slow


def command(*argv):
    return main([str(argument) for argument in argv])


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Folder of the run, and a folder of its exports in all formats, two of them twice."""
    folder = tmp_path_factory.mktemp("exported") / "here"
    assert command("export", trained, "--output-dir", folder, "--rounds", 2) == 0
    options = ("--format", "sparse", "tflite", "--quantize", "float16", "--rounds", 0)
    assert command("export", trained, "--output-dir", folder, *options) == 0
    return trained, folder


def records_of(folder):
    return {
        file["name"]: file for file in json.loads((folder / "export.json").read_text())["files"]
    }


def test_the_table_tells_what_the_files_are(exported, capsys):
    run, folder = exported
    records = records_of(folder)
    assert list(records) == [
        *("model.sparse", "model.tflite", "saved_model"),
        *("model-float16.sparse", "model-float16.tflite"),
    ]
    for name in ("model.sparse", "model.tflite"):
        assert records[name]["bytes"] == (folder / name).stat().st_size
    in_it = sum(f.stat().st_size for f in (folder / "saved_model").rglob("*") if f.is_file())
    assert records["saved_model"]["bytes"] == records["saved_model"]["dense_bytes"] == in_it
    for record in records.values():
        assert record["compressed_bytes"] < record["bytes"]
        timed = record["format"] != "sparse" and record["quantize"] == "none"
        assert (record["seconds"] is not None) == timed
        rounding = 1e-2 if record["quantize"] == "float16" else 1e-4
        assert 0 <= record["difference"] < rounding
    assert records["model.sparse"]["difference"] == 0
    readme = (folder / "README.md").read_text()
    assert all(f"| {name} |" in readme and f"## {name}\n" in readme for name in records)
    # The bytes of all weights except masks.
    model = keras.saving.load_model(run / "model.keras")
    weights = sum(v.numpy().size for v in model.weights if v.dtype == "float32")
    assert abs(records["model.sparse"]["dense_bytes"] - 4 * weights) < 100


def test_every_file_draws_what_the_run_draws(exported, tmp_path):
    run, folder = exported
    drawn = {}
    for source in (run, *(folder / name for name in records_of(folder))):
        path = tmp_path / f"{source.name}.npz"
        argv = ("sample", source, "-n", 5, "--seed", 7, "--output", path, "--verbose", 0)
        assert command(*argv) == 0
        drawn[source.name] = np.load(path, allow_pickle=False)
    of_run = drawn.pop(run.name)
    for name, samples in drawn.items():
        np.testing.assert_array_equal(samples["lengths"], of_run["lengths"])
        assert str(samples["representation"]) == "absolute"
        tolerance = 0.1 if "float16" in name else 1e-4
        np.testing.assert_allclose(samples["points"], of_run["points"], atol=tolerance)


# Packages that the snippets must not import.
ELSEWHERE = {
    "model.tflite": ("keras_sparse_dm", "keras", "tensorflow"),
    "saved_model": ("keras_sparse_dm", "keras", "tf_keras"),
    "model.sparse": (),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_snippet_works_elsewhere(exported, name):
    _, folder = exported
    readme = (folder / "README.md").read_text()
    snippet = re.search(rf"## {re.escape(name)}\n\n```python\n(.*?)```", readme, re.DOTALL)[1]
    assert len(snippet.splitlines()) <= 10
    blocked = f"import sys; sys.modules.update(dict.fromkeys({ELSEWHERE[name]}))\n"
    result = subprocess.run(
        [sys.executable, "-c", blocked + snippet], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    shape = eval(result.stdout)
    if name == "model.tflite":
        inputs = ksd.export.read_tflite_metadata(folder / name)["inputs"]
        assert shape == tuple(inputs["points"])
    else:
        assert shape == (2, 80, 3)


@pytest.mark.parametrize("part", ["sampler_step", "sampler"])
def test_samplers_draw_the_same(exported, tmp_path, part):
    run, folder = exported
    options = ("--format", "tflite", "--part", part, "--rounds", 0)
    assert command("export", run, "--output-dir", tmp_path, *options) == 0
    for source, name in ((tmp_path / "model.tflite", "a"), (folder / "model.tflite", "b")):
        argv = ("sample", source, "-n", 3, "--output", tmp_path / f"{name}.npz", "--verbose", 0)
        assert command(*argv) == 0
    a, b = (np.load(tmp_path / f"{name}.npz")["points"] for name in "ab")
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_integers_learn_from_the_runs_data(exported, tmp_path):
    run, _ = exported
    options = ("--format", "tflite", "--quantize", "int8", "--rounds", 0, "--length", 60)
    assert command("export", run, "--output-dir", tmp_path, *options) == 0
    (record,) = records_of(tmp_path).values()
    assert record["name"] == "model-int8.tflite"
    assert ksd.export.read_tflite_metadata(tmp_path / record["name"])["length"] == 60


def test_a_sparse_checkpoint_with_its_optimizer(exported, tmp_path):
    run, folder = exported
    options = ("--format", "sparse", "--with-optimizer")
    assert command("export", run, "--output-dir", tmp_path, *options) == 0
    model = ksd.export.load_sparse(tmp_path / "model.sparse")
    expected = keras.saving.load_model(run / "model.keras").optimizer
    assert int(model.optimizer.iterations) == int(expected.iterations) > 0
    ksd.sparsity.check_invariant(model)
    (record,) = records_of(tmp_path).values()
    without = records_of(folder)["model.sparse"]
    # Two moments and an average of each weight.
    assert record["dense_bytes"] > 3.5 * without["dense_bytes"]
    assert record["bytes"] > without["bytes"]


def test_units_without_use_are_cut_out(exported, tmp_path, capsys):
    run = shutil.copytree(exported[0], tmp_path / "copy")
    model = keras.saving.load_model(run / "model.keras")
    # Units that nothing reads.
    kernel, mask = model.denoiser.noise_projection.masks[0]
    for variable in (kernel, mask, averages_of(model)[id(kernel)]):
        variable.assign(np.where(np.arange(kernel.shape[0])[:, None] < 3, 0, variable))
    model.save(run / "model.keras")
    options = ("--format", "sparse", "--remove-dead-units", "--output-dir", tmp_path)
    assert command("export", run, *options) == 0
    assert "output_projection" in capsys.readouterr().out
    smaller = ksd.export.load_sparse(tmp_path / "model.sparse")
    assert smaller.denoiser.projection_units <= 5
    a, b = (m.generate(lengths=[30, 40], steps=3, seed=0) for m in (model, smaller))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_an_unfinished_run_says_which_checkpoint_it_exports(exported, tmp_path, capsys):
    run = shutil.copytree(exported[0], tmp_path / "copy")
    (run / "model.keras").unlink()
    assert command("export", run, "--format", "sparse") == 0
    assert f"Exporting {run / 'checkpoints' / 'last.keras'}" in capsys.readouterr().out
    assert "last.keras" in (run / "export" / "README.md").read_text()


def test_a_failure_keeps_what_was_written(exported, tmp_path, monkeypatch, capsys):
    run, folder = exported
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}

    def failing(*args, **kwargs):
        raise ValueError("no such thing")

    monkeypatch.setattr(tflite, "to_tflite", failing)
    assert command("export", run, "--format", "tflite", "--output-dir", copy) == 2
    assert "no such thing" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}


def test_bad_exports_are_refused_before_any_work(exported, tmp_path, capfd):
    run, folder = exported
    picture = tmp_path / "a.png"
    broken = tmp_path / "broken.tflite"
    broken.write_bytes((folder / "model.tflite").read_bytes()[:1000])
    cut = tmp_path / "cut.sparse"
    cut.write_bytes((folder / "model.sparse").read_bytes()[:-100])
    plain = tmp_path / "plain.sparse"
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    ksd.sparsify(model, 0.5)
    ksd.export.save_sparse(model, plain)
    bare = tmp_path / "bare.sparse"
    ksd.export.save_sparse(load_run(run, verbose=0).model, bare)
    file = tmp_path / "file"
    file.write_text("")
    file_of_tflite, export = folder / "model.tflite", ("export", run)
    to_picture = ("--output", picture)
    for argv, message in (
        (("export", tmp_path / "nowhere"), "there is no folder"),
        (("export", tmp_path), "holds no run"),
        ((*export, "--format", "onnx"), "--format must be one of sparse, tflite, saved_model"),
        ((*export, "--quantize", "float16"), "--quantize must be one of none for --format saved"),
        ((*export, "--format", "sparse", "--quantize", "int8"), "one of none, float16, bfloat16"),
        ((*export, "--part", "decoder"), "--part must be one of denoiser"),
        ((*export, "--length", 0), "--length must be 1 or more"),
        ((*export, "--rounds", -1), "--rounds must be 0 or more"),
        ((*export, "--format", "tflite", "--with-optimizer"), "--with-optimizer needs"),
        ((*export, "--with-optimizer", "--remove-dead-units"), "exclude each other"),
        ((*export, "--output-dir", file), "--output-dir must be a folder"),
        (("sample", tmp_path / "nowhere", *to_picture), "there is no .*nowhere"),
        (("sample", broken, *to_picture), "broken.tflite"),
        (("sample", cut, *to_picture), "cut.sparse"),
        (("sample", plain, *to_picture), "holds a Sequential, no diffusion model"),
        (("sample", bare, *to_picture), "does not tell how the run sampled"),
        (("sample", file, *to_picture), "file"),
        (("sample", file_of_tflite, "--eta", 1, *to_picture), "--eta must be 0 for"),
        (
            ("sample", file_of_tflite, "--sampler", "ddpm", *to_picture),
            "--sampler must be ddim, the only",
        ),
        (
            ("sample", file_of_tflite, "--steps", 51, *to_picture),
            "--steps must be at most the run's 50",
        ),
    ):
        assert command(*argv) == 2, argv
        err = capfd.readouterr().err
        assert re.search(message, err), (argv, err)
        assert "Traceback" not in err
    assert not picture.exists()


COUNT = """
from keras_sparse_dm.runs.formats.measures import ExportedFile

def write(run, folder, name, *, quantize, metadata, **others):
    path = folder / f"{name}.count"
    path.write_text(str(run.model.count_params()))
    yield ExportedFile(path.name, "count", quantize, 8, 4, 4, None)

def load(path):
    return int(path.read_text())

def snippet(folder, run, file):
    return [f'print(open("{file.name}").read())']
"""


def test_a_format_is_a_module_and_one_line(trained, tmp_path, monkeypatch):
    (tmp_path / "count_format.py").write_text(COUNT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        formats.FORMATS, "count", formats.Format("count_format", ".count", ("none",))
    )
    run = load_run(trained, verbose=0)
    export_run(run, tmp_path / "out", ["count"])
    assert load_exported(tmp_path / "out" / "model.count") == run.model.count_params()
    assert 'print(open("model.count").read())' in (tmp_path / "out" / "README.md").read_text()
