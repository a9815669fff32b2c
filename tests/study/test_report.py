"""Reports of studies with made-up results."""

import json
import re

import numpy as np
import pytest
from made_up_results import SKETCHES, made_up
from PIL import Image

from keras_sparse_dm.cli import main
from keras_sparse_dm.sparsity import registry
from keras_sparse_dm.study.grid import Study, grid
from keras_sparse_dm.study.report import write_study_report
from keras_sparse_dm.study.results import RESULT_FILE, SCHEMA_VERSION, claim_scale, read_results
from keras_sparse_dm.study.studies import find_study
from keras_sparse_dm.study.tasks import Options, tasks_of

SMALL = Study(
    "small",
    "Small",
    tuple(grid(SKETCHES, ("dense", "static", "rigl"), (0.5, 0.9), (0.05,), seeds=(0, 1))),
)


def store(folder, results):
    """Write results into a study's folder as `study run` does."""
    claim_scale(folder, "smoke")
    for run in results.runs:
        own = folder / run.folder
        own.mkdir(parents=True)
        names = ("preset", "method", "sparsity", "prune_rate", "seed", "category", "full")
        cell = {name: getattr(run, name) for name in (*names, "update_every")}
        same = ("scale", "settings", "version", "differences", "seconds", "report", "error")
        values = {"schema": SCHEMA_VERSION, "name": run.cell, "cell": cell}
        values |= {name: getattr(run, name) for name in same}
        if run.status == "failed":
            (folder / "failed").mkdir(exist_ok=True)
            (folder / "failed" / f"{run.cell}.json").write_text(json.dumps(values))
            continue
        values["evaluations"] = [
            vars(evaluation) for evaluation in results.evaluations if evaluation.cell == run.cell
        ]
        (own / RESULT_FILE).write_text(json.dumps(values))
        (own / "config.json").write_text(json.dumps({"settings": run.settings}))
        write_samples(own / "evaluation" / "samples.npz", run)
    assert read_results(folder).wrong == []


def write_samples(file, run):
    """Write circles as samples of a dense run, and squares as samples of a sparse run."""
    file.parent.mkdir()
    angle = np.linspace(0, 2 * np.pi, 9)
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(9)], axis=1)
    square = np.sign(circle) * [1, 1, 0]
    points = np.tile(circle if run.method == "dense" else square, (24, 1)).astype("float32")
    np.savez(file, points=points, lengths=np.full(24, 9), representation="absolute")


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "smoke"
    names = [cell.name for cell in SMALL.cells]
    results = made_up(
        SMALL,
        lambda cell, steps: 10.0 + cell.seed + cell.sparsity - (cell.method == "rigl"),
        missing=[name for name in names if "kanjivg-rigl-s0.9" in name],
        failed=[name for name in names if "vmnist-static-s0.9" in name],
    )
    store(folder, results)
    return folder


@pytest.fixture(scope="module")
def report(study_folder):
    """Path of a report. Writing it leaves the results unchanged."""
    before = {path: path.read_bytes() for path in study_folder.rglob("*") if path.is_file()}
    path = write_study_report(SMALL, study_folder, command="sparse-dm study report small")
    assert path == study_folder / "reports" / "small" / "report.md"
    assert {p: p.read_bytes() for p in before} == before
    return path


@pytest.mark.slow
def test_equal_results_give_equal_reports(report, study_folder, tmp_path):
    path = report
    text = path.read_text(encoding="utf-8")
    for line in (
        "| Command | `sparse-dm study report small` |",
        "| Scale | smoke |",
        "| Runs | 16 of 20 |",
        "| Failed | 2 |",
        "| Seeds | 0, 1 |",
        "| Training, all runs | 112 s |",
        "| keras_sparse_dm | 1.2.3 |",
        "- `chirodiff_vmnist-static-s0.9-seed0`: the loss &lt;x> | is not finite",
        "2: `chirodiff_kanjivg-rigl-s0.9-p0.05-seed0`, `chirodiff_kanjivg-rigl-s0.9-p0.05-seed1`.",
    ):
        assert line in text, line
    assert re.search(r"\| Newest result \| \d{4}-\d\d-\d\d \d\d:\d\d UTC \|", text)
    # Differences of all runs come first, followed by those of some runs with their names.
    assert text.count("epochs: 2 instead of 600") == 1
    common = text.index("All runs:\n\n- epochs")
    assert common < text.index("KanjiVG:\n\n- data set: not chirodiff_kanjivg")
    names = {file.name for file in path.parent.iterdir()}
    assert names == {
        "report.md",
        "tables.tex",
        "sparsity-p0.05.png",
        "sparsity-p0.05.svg",
        "samples-chirodiff_vmnist.png",
        "samples-chirodiff_kanjivg.png",
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target in names
    again = write_study_report(
        SMALL, study_folder, tmp_path / "again", command="sparse-dm study report small"
    )
    for name in names:
        assert (again.parent / name).read_bytes() == (path.parent / name).read_bytes(), name


MY_METHODS = """
import keras
from keras_sparse_dm.sparsity import SparsityMethod

class Mine(SparsityMethod):
    name = "mine"
    gradient = None

    def growth_score(self, weights, gradient, seed):
        return keras.ops.abs(weights)

class Momentum(Mine):
    gradient = "momentum"
"""


@pytest.mark.slow
def test_methods_that_are_new_need_a_registry_line_or_nothing(tmp_path, monkeypatch):
    (tmp_path / "my_methods.py").write_text(MY_METHODS)
    monkeypatch.syspath_prepend(tmp_path)
    facts = registry.MethodFacts("my_methods:Mine", "Mine-DM", "#123456", "*")
    monkeypatch.setitem(registry.METHODS, "mine", facts)
    file = tmp_path / "own.yaml"
    file.write_text(
        "presets: [chirodiff_vmnist]\nsparsities: [0.5, 0.9]\nprune_rates: [0.1]\nseeds: [0]\n"
        "methods: [dense, mine, 'my_methods:Momentum']\n"
    )
    study = find_study(str(file))
    tasks = tasks_of(study, Options("smoke", tmp_path / "smoke"))
    methods = [task.settings.training.method for task in tasks[1::2]]
    assert methods == ["mine", "my_methods:Momentum"]
    assert [task.name for task in tasks] == [
        "chirodiff_vmnist-dense-seed0",
        "chirodiff_vmnist-mine-s0.5-p0.1-seed0",
        "chirodiff_vmnist-mine-s0.9-p0.1-seed0",
        "chirodiff_vmnist-my_methods.Momentum-s0.5-p0.1-seed0",
        "chirodiff_vmnist-my_methods.Momentum-s0.9-p0.1-seed0",
    ]
    store(tmp_path / "smoke", made_up(study, lambda cell, steps: 10.0 + cell.sparsity))
    path = write_study_report(study, tmp_path / "smoke")
    (table,) = [t for t in path.read_text().split("\n\n") if "Params" in t and "|" in t]
    rows = {row.split(" | ")[1]: row.split(" | ")[2:] for row in table.splitlines()}
    assert "10.50" in rows["Mine-DM, S = 0.5"][0] and "10.90" in rows["Momentum, S = 0.9"][0]
    # Momentum needs a dense gradient at each step: 2 f_S + f_D, relative to 3 f_D.
    assert rows["Mine-DM, S = 0.5"][2] == "0.50×" and rows["Momentum, S = 0.5"][2] == "0.67×"
    figure = (path.parent / "sparsity-p0.1.svg").read_text()
    assert "Mine-DM" in figure and "Momentum" in figure and "#123456" in figure


def test_sheets_show_dense_samples_above_the_best_sparse_ones(report):
    text = report.read_text(encoding="utf-8")
    assert "VMNIST: Dense; VMNIST: RigL-DM, S = 0.5, p = 0.05" in text
    sheet = np.asarray(Image.open(report.parent / "samples-chirodiff_vmnist.png").convert("L"))
    upper, lower = np.array_split(sheet, 2)
    # The vertical sides of squares give darker columns than any part of a circle.
    darkest = [(half < 128).sum(axis=0).max() for half in (upper, lower)]
    assert darkest[1] > 1.5 * darkest[0] > 0


def test_reports_at_smoke_scale_expect_only_the_seeds_that_were_run(tmp_path, no_paper_costs):
    study = Study("mine", "Mine", tuple(grid(SKETCHES[:1], ("dense",), seeds=(0, 1, 2))))
    results = made_up(study, lambda *_: 4.0, missing=[c.name for c in study.cells[1:]])
    store(tmp_path, results)
    text = write_study_report(study, tmp_path).read_text(encoding="utf-8")
    assert "| Runs | 1 of 1 |" in text and "Missing" not in text
    text = write_study_report(study, tmp_path, seeds=2).read_text(encoding="utf-8")
    assert "| Runs | 1 of 2 |" in text and "4.00 (1/2)" in text


def test_the_command(study_folder, tmp_path, capsys, monkeypatch, no_paper_costs):
    study = tmp_path / "mine.yaml"
    study.write_text(
        "presets: [chirodiff_vmnist]\nmethods: [dense, static]\nsparsities: [0.5]\nseeds: [0, 1]\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "smoke").symlink_to(study_folder)
    assert main(["study", "report", "mine.yaml", "--output-dir", "out"]) == 0
    assert "Report: out/report.md" in capsys.readouterr().out
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "`sparse-dm study report mine.yaml --folder studies/smoke`" in text
    assert "| Runs | 4 of 4 |" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tabel2"], "Did you mean 'table2"),
        (["table2"], "--folder must name the folder"),
        (["table2", "--folder", "nowhere"], "there is no folder nowhere"),
        (["table2", "--folder", "empty"], "empty holds no run of table2"),
        (["table1", "--folder", "small"], "holds no run of table1"),
        (["sketches", "--folder", "small", "--score", "FID"], "evaluated with: FD-kanji; received"),
        (["sketches", "--folder", "small", "--seeds", "0"], "--seeds must be 1 or more"),
        (["sketches", "--folder", "small", "--output-dir", "file"], "--output-dir file is not"),
        (["sketches", "--folders", "small"], "--folders"),
    ],
)
def test_bad_input(arguments, message, study_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").symlink_to(study_folder)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert main(["study", "report", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert {p.name for p in tmp_path.iterdir()} == {"small", "file", "empty"}
