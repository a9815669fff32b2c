"""Reports of studies whose results are made up, so that what must come out is known."""

import dataclasses
import json
import re
import sqlite3
import statistics

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.cli import main
from keras_sparse_dm.study import paper_costs
from keras_sparse_dm.study.figures import figures_of, sample_sheet
from keras_sparse_dm.study.grid import STUDIES, Study, grid, settings_of
from keras_sparse_dm.study.paper import PAPER_COSTS, PAPER_FIDS
from keras_sparse_dm.study.report import write_study_report
from keras_sparse_dm.study.report_table import Column, Entry, Table, latex
from keras_sparse_dm.study.results import (
    RESULT_FILE,
    SCHEMA_VERSION,
    EvaluationResult,
    Results,
    RunResult,
    collect_results,
)
from keras_sparse_dm.study.scores import Approach, Scores
from keras_sparse_dm.study.tables import costs_of_the_runs, tables_of

SKETCHES = ("chirodiff_vmnist", "chirodiff_kanjivg")


def made_up(study, value, missing=(), failed=(), networks=("FD-kanji",), scale="smoke"):
    """Results of a study whose scores are `value(cell, steps)`."""
    runs, evaluations = [], []
    for cell in study.cells:
        if cell.name in missing:
            continue
        settings = settings_of(cell, "smoke")
        fails = cell.name in failed
        fields = {name: getattr(cell, name) for name in cell.__dataclass_fields__}
        cost = {"parameters": 1000, "active_parameters": 1000 - 800 * cell.sparsity}
        for kind, flops in (("training", 4e9), ("sampling", 3e8)):
            cost[f"dense_{kind}_flops"] = flops
            cost[f"sparse_{kind}_flops"] = flops * (1 - cell.sparsity)
        runs.append(
            RunResult(
                cell=cell.name,
                scale=scale,
                **fields,
                status="failed" if fails else "finished",
                settings=settings.to_dict(),
                version="1.2.3",
                differences=["epochs: 2 instead of 600", f"data set: not {cell.preset}"],
                seconds=None if fails else 9.0,
                error="the loss <x> | is\nnot finite" if fails else None,
                report={} if fails else {"cost": cost, "iterations": 8, "training_seconds": 7.0},
                folder=f"runs/{cell.name}",
            )
        )
        for steps in study.sampling_steps or (settings.sampling.steps,):
            score = {"frechet": [value(cell, steps), 0.0, 0.0]}
            distances = {n: {"generated": score, "held out": {"frechet": [0.5]}} for n in networks}
            if not fails:
                evaluations.append(EvaluationResult(cell.name, steps, 64, distances, cell.seed))
    return Results(runs, evaluations)


def scores_of(study, value=lambda cell, steps: 10.0 + cell.seed, score=None, **options):
    return Scores(study, made_up(study, value, **options), score)


def cells_of(table):
    """`{(data set, row title): {heading: Entry}}`; headings with their group."""
    headings = [f"{c.group}: {c.heading}" if c.group else c.heading for c in table.columns]
    found, dataset = {}, ""
    for block in table.blocks:
        for row in block:
            dataset = row[0].text or dataset
            found[dataset, row[1].text] = dict(zip(headings, row, strict=True))
    return found


@pytest.fixture
def no_paper_costs(monkeypatch):
    """The large network is traced in one test only."""
    none = paper_costs.CostAtPaperSetting(1, 1.0, 1.0, 1.0, 1.0, 1.0)
    monkeypatch.setattr("keras_sparse_dm.study.tables.cost_at_paper_setting", lambda *_: none)


# Scores -----------------------------------------------------------------------------------------


def test_mean_and_sd_over_seeds_and_categories():
    study = STUDIES["table2"]
    rng = np.random.default_rng(0)
    values = {cell.name: float(rng.uniform(5, 50)) for cell in study.cells}
    scores = scores_of(study, lambda cell, steps: values[cell.name])
    sizes = set()
    for approach, cells in scores.cells.items():
        score = scores.score(approach)
        own = [values[cell.name] for cell in cells]
        sizes.add((approach.preset, len(own)))
        assert score.mean == pytest.approx(statistics.mean(own))
        assert score.sd == pytest.approx(statistics.stdev(own))
        assert str(score) == f"{statistics.mean(own):.2f} ± {statistics.stdev(own):.2f}"
    assert sizes == {
        ("chirodiff_quickdraw", 9),
        ("chirodiff_kanjivg", 3),
        ("chirodiff_vmnist", 3),
    }


def test_one_run_has_no_sd_and_what_is_missing_is_counted():
    study = Study("mine", "Mine", tuple(grid(SKETCHES[:1], ("dense", "static"), (0.5,))))
    missing = [f"chirodiff_vmnist-dense-seed{seed}" for seed in (0, 2)]
    failed = [f"chirodiff_vmnist-static-s0.5-seed{seed}" for seed in (0, 1, 2)]
    scores = scores_of(study, missing=missing, failed=failed)
    dense, static = scores.cells
    assert str(scores.score(dense)) == "11.00 (1/3)"
    assert scores.score(static).mean is None and str(scores.score(static)) == "– (0/3)"
    assert scores.missing == missing and list(scores.failed) == failed
    assert scores.best_sparse(scores.cells) is None


def test_which_distance_is_reported():
    study = Study("mine", "Mine", tuple(grid(SKETCHES[:1], ("dense",))))
    results = made_up(study, lambda *_: 1.0, networks=("FD-kanji", "FID-quickdraw"))
    scores = Scores(study, results)
    assert scores.name == "FID-quickdraw" and scores.is_papers("chirodiff_vmnist")
    assert not scores.is_papers("ldm_celebahq")
    assert Scores(study, results, "FD-kanji").name == "FD-kanji"
    with pytest.raises(SettingsError, match="FD-kanji, FID-quickdraw; received FID"):
        Scores(study, results, "FID")
    # One that was not measured everywhere is not taken.
    del results.evaluations[0].distances["FID-quickdraw"]
    assert Scores(study, results).name == "FD-kanji"


# Tables -----------------------------------------------------------------------------------------


def test_bold_beats_dense_and_the_best_sparse_is_underlined(no_paper_costs):
    value = {"dense": 10.0, "static": 12.0, "rigl": 9.0, "magran": 8.0}
    (table,) = tables_of(scores_of(STUDIES["table2"], lambda cell, steps: value[cell.method]))
    rows = cells_of(table)
    assert len(rows) == 12
    for (_, approach), row in rows.items():
        entry = row["FD-kanji ± SD (↓)"]
        assert entry.bold == approach.startswith(("RigL", "MagRan"))
        assert entry.underlined == approach.startswith("MagRan")
        assert entry.text == f"{value[approach.split('-')[0].lower()]:.2f} ± 0.00"
    # What stands alone is not the best of anything.
    scores = scores_of(study := STUDIES["table2"], missing=_but_dense_and_rigl(study))
    (table,) = tables_of(scores)
    assert not any(row["FD-kanji ± SD (↓)"].underlined for row in cells_of(table).values())
    # The best one is underlined where none beats dense.
    value["dense"] = 1.0
    (table,) = tables_of(scores_of(STUDIES["table2"], lambda cell, steps: value[cell.method]))
    entries = [row["FD-kanji ± SD (↓)"] for row in cells_of(table).values()]
    assert not any(entry.bold for entry in entries)
    assert sum(entry.underlined for entry in entries) == 3


def _but_dense_and_rigl(study):
    return [cell.name for cell in study.cells if cell.method not in ("dense", "rigl")]


def test_tables_5_and_6_compare_with_static():
    value = {("static", None): 10.0, ("rigl", 0.5): 11.0, ("rigl", 0.05): 9.0}
    value |= {("magran", 0.5): 9.5, ("magran", 0.05): 10.5}
    for name in ("table5", "table6"):
        study = STUDIES[name]
        scores = scores_of(study, lambda cell, steps: value[cell.method, cell.prune_rate])
        (table,) = tables_of(scores)
        headings = [f"{column.group} {column.heading}".strip() for column in table.columns]
        rates = [f"{m} p = {p}" for m in ("RigL-DM", "MagRan-DM") for p in (0.5, 0.05)]
        assert headings == ["Dataset", "Source", "Static-DM", *rates]
        for ours, _ in table.blocks:
            assert [entry.bold for entry in ours[2:]] == [False, False, True, True, False]
            assert [entry.underlined for entry in ours[2:]] == [False, False, True, False, False]


@pytest.mark.parametrize("number", range(1, 7))
def test_the_papers_numbers_stand_beside_ours(number, no_paper_costs):
    """All of a table's, in its order, with its marks."""
    (table,) = tables_of(scores_of(STUDIES[f"table{number}"]))
    pattern = re.compile(r"\d+\.\d\d( ± \d+\.\d\d)?")
    printed = [
        entry
        for block in table.blocks
        for row in block
        for entry in row
        if entry.italic and pattern.fullmatch(entry.text)
    ]
    wanted = [row for row in PAPER_FIDS if row.table == number]
    texts = [f"{r.mean:.2f}" + ("" if r.sd is None else f" ± {r.sd:.2f}") for r in wanted]
    assert [entry.text for entry in printed] == texts
    base = "static" if number > 4 else "dense"
    for entry, row in zip(printed, wanted, strict=True):
        key = (row.preset, row.full, row.sampling_steps)
        alike = [r for r in wanted if (r.preset, r.full, r.sampling_steps) == key]
        (level,) = (r.mean for r in alike if r.method == base)
        assert entry.bold == (row.mean < level)
    # Never ours under the name of the paper's score.
    assert all("FID" not in c.heading for c in table.columns if "Paper" not in c.group)


def test_layouts_of_full_data_and_sampling_steps():
    (table,) = tables_of(scores_of(STUDIES["table3"], lambda cell, steps: 3.0 + cell.full))
    rows = {row[0].text: [entry.text for entry in row[1:]] for row in table.blocks[0]}
    assert rows["MagRan-DM, S = 0.5"] == ["4.00", "3.00", "26.70", "30.71"]
    (table,) = tables_of(scores_of(STUDIES["table4"], lambda cell, steps: steps / 4))
    rows = cells_of(table)
    ours = rows["Bedrooms", "RigL-DM, S = 0.1"]
    assert [ours[f"FD-kanji (↓): {n} steps"].text for n in (50, 100, 200)] == [
        "12.50",
        "25.00",
        "50.00",
    ]
    assert ours["Paper, FID (↓): 200 steps"].text == "20.49"


def test_sketches_have_a_table_for_each_sparsity():
    scores = scores_of(STUDIES["sketches"])
    tables = tables_of(scores)
    assert ["S = 0.5. " in t.caption for t in tables] == [True, False]
    assert ["S = 0.9. " in t.caption for t in tables] == [False, True]
    headings = [column.heading for column in tables[0].columns]
    assert headings[2:4] == ["Dense", "Static-DM"] and len(headings) == 8
    of_kanji = {row[0].text: row for row in cells_by_block(tables[1])[1]}
    assert "29.01 ± 1.48" in [entry.text for entry in of_kanji[""]]


def cells_by_block(table):
    return [list(block) for block in table.blocks]


@pytest.mark.slow
def test_costs_are_those_that_the_paper_prints():
    """But for those that are listed as unexplained, which have a note."""
    for study in (STUDIES["table1"], STUDIES["table2"]):
        (table,) = tables_of(scores_of(study))
        rows = [row for block in table.blocks for row in block]
        wanted = [row for row in PAPER_COSTS if f"table{row.table}" == study.name]
        assert len(rows) == len(wanted) == 12
        names = {"parameters": "Params", "training": "Train FLOPs", "sampling": "Test FLOPs"}
        headings = [f"{c.group} {c.heading}".strip() for c in table.columns]
        for row, paper in zip(rows, wanted, strict=True):
            row = dict(zip(headings, row, strict=True))
            for column, name in names.items():
                ours, theirs = row[name], row[f"Paper {name}"]
                assert theirs.text.removesuffix("×") == getattr(paper, column)
                explained = column not in paper.unexplained
                assert (ours.text == theirs.text) == explained, (paper, column, ours.text)
                assert bool(theirs.notes) == (not explained)
                for note in theirs.notes:
                    assert paper.unexplained[column] in table.notes[note - 1]


def test_costs_of_the_runs_are_the_reports():
    study = Study("mine", "Mine", tuple(grid(SKETCHES[:1], ("dense", "rigl"), (0.75,), (0.5,))))
    missing = ["chirodiff_vmnist-rigl-s0.75-p0.5-seed1"]
    table = costs_of_the_runs(scores_of(study, missing=missing))
    dense, rigl = ([entry.text for entry in row] for row in table.blocks[0])
    assert dense[2:] == ["3/3", "1000", "1.00×", "8", "4.00e9", "1.00×", "3.00e8", "1.00×", "7"]
    assert rigl[2:] == ["2/3", "1000", "0.40×", "8", "1.00e9", "0.25×", "7.50e7", "0.25×", "7"]


def columns_of_latex(text):
    """Numbers of columns of all rows of the tables in a LaTeX file, `\\multicolumn` as its span."""
    counts = []
    for body in re.findall(r"\\toprule(.*?)\\bottomrule", text, re.S):
        rows = [line for line in body.splitlines() if line.endswith(r" \\")]
        spans = [sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)", r)) for r in rows]
        counts.append(
            {len(re.findall(r"(?<!\\)&", r)) + 1 + s for r, s in zip(rows, spans, strict=True)}
        )
    return counts


@pytest.mark.parametrize("name", [*STUDIES])
def test_tables_are_well_formed(name, no_paper_costs):
    study = STUDIES[name]
    scores = scores_of(study, missing=[study.cells[0].name], failed=[study.cells[-1].name])
    for table in [*tables_of(scores), costs_of_the_runs(scores)]:
        width = len(table.columns)
        text = table.to_latex()
        (counts,) = columns_of_latex(text)
        assert counts == {width}
        (alignment,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
        assert len(alignment) == width
        depth = 0
        for brace in re.findall(r"(?<!\\)[{}]", text):
            depth += 1 if brace == "{" else -1
            assert depth >= 0
        assert depth == 0 and len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
        begun, ended = (re.findall(rf"\\{word}\{{(\w+)\}}", text) for word in ("begin", "end"))
        assert begun == ended[::-1] == ["table", "tabular"]
        assert text.isascii()
        tokens = MarkdownIt("commonmark").enable("table").parse(table.to_markdown())
        kinds = [token.type for token in tokens]
        assert kinds.count("table_open") == 1
        assert kinds.count("th_open") == width
        assert kinds.count("td_open") == width * sum(map(len, table.blocks))


def test_text_is_escaped():
    assert latex("50% of a_b & S = 0.5, ±1 {x}") == (r"50\% of a\_b \& $S = 0.5$, $\pm$1 \{x\}")
    entry = Entry("a|b", bold=True, underlined=True, notes=(1, 2))
    assert entry.to_markdown() == r"**<ins>a\|b</ins>**<sup>1</sup><sup>2</sup>"
    assert entry.to_latex() == r"\textbf{\underline{a|b}}\textsuperscript{1,2}"
    table = Table("t", "Caption", [Column("a", numbers=False), Column("b", "both")], [[]])
    table.blocks[0].append([Entry("x"), Entry("y", notes=(table.note("Why."),))])
    assert table.note("Why.") == 1
    assert table.to_markdown().splitlines()[-1] == "<sup>1</sup> Why."


# Figures ----------------------------------------------------------------------------------------


def lines_of(axis):
    """`{label: (x, y)}` of lines with error bars and of horizontal ones."""
    found = {}
    for container in axis.containers:
        line = container.lines[0]
        found[container.get_label()] = (list(line.get_xdata()), list(line.get_ydata()))
    for line in axis.lines:
        if not line.get_label().startswith("_"):
            found[line.get_label()] = (list(line.get_xdata()), list(line.get_ydata()))
    return found


def test_score_against_sparsity():
    def value(cell, steps):
        return 20.0 + 10 * cell.sparsity + cell.seed + (cell.method == "rigl")

    figures = figures_of(scores_of(STUDIES["figure3"], value))
    assert list(figures) == ["sparsity-p0.5"]
    caption, figure = figures["sparsity-p0.5"]
    assert "p = 0.5" in caption
    assert [axis.get_title() for axis in figure.axes] == ["QuickDraw", "KanjiVG", "VMNIST"]
    for axis in figure.axes:
        lines = lines_of(axis)
        assert set(lines) == {"Dense", "Static-DM", "RigL-DM", "MagRan-DM"}
        assert lines["Dense"][1] == pytest.approx([21.0, 21.0])
        x, y = lines["RigL-DM"]
        sparsities = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
        np.testing.assert_allclose(x, sparsities, atol=0.03)
        np.testing.assert_allclose(y, 22 + 10 * sparsities)
    assert figure.axes[0].get_ylabel() == "FD-kanji (lower is better)"


def test_the_papers_level_is_drawn_for_its_own_score_only():
    study = STUDIES["figure3"]
    for network, drawn in (("FD-kanji", False), ("FID-quickdraw", True), ("FID", False)):
        scores = scores_of(study, networks=(network,))
        _, figure = figures_of(scores)["sparsity-p0.5"]
        assert ("Dense, paper" in lines_of(figure.axes[0])) == drawn
        if drawn:
            assert lines_of(figure.axes[0])["Dense, paper"][1] == [29.78, 29.78]


def test_score_against_prune_rate_and_sampling_steps():
    scores = scores_of(STUDIES["figure5"], lambda cell, steps: 30 + (cell.prune_rate or 0))
    ((name, (_, figure)),) = figures_of(scores).items()
    assert name == "prune-rate" and [a.get_title() for a in figure.axes] == ["CelebA-HQ"]
    lines = lines_of(figure.axes[0])
    assert set(lines) == {"Dense", "RigL-DM, S = 0.25", "MagRan-DM, S = 0.5"}
    assert lines["MagRan-DM, S = 0.5"][1] == pytest.approx([30.05, 30.1, 30.2, 30.3, 30.5])
    scores = scores_of(STUDIES["figure4"], lambda cell, steps: 1000 / steps)
    ((name, (_, figure)),) = figures_of(scores).items()
    assert name == "sampling-steps"
    for axis in figure.axes:
        assert lines_of(axis)["Dense"][1] == pytest.approx([20, 10, 1000 / 150, 5])
    names = figures_of(scores_of(STUDIES["sketches"]))
    assert list(names) == ["sparsity-p0.05", "sparsity-p0.5", "prune-rate"]
    assert list(figures_of(scores_of(STUDIES["table6"]))) == ["prune-rate"]
    assert figures_of(scores_of(STUDIES["table2"])) == {}


# The report -------------------------------------------------------------------------------------

SMALL = Study(
    "small",
    "Small",
    tuple(grid(SKETCHES, ("dense", "static", "rigl"), (0.5, 0.9), (0.05,), seeds=(0, 1))),
)


def store(folder, results):
    """Leaves results in a study's folder as `study run` does."""
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
    assert not collect_results(folder)


def write_samples(file, run):
    """Circles of dense runs, squares of sparse ones."""
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
    """Path of the report, whose writing leaves the results as they were."""
    before = {path: path.read_bytes() for path in study_folder.rglob("*") if path.is_file()}
    path = write_study_report(SMALL, study_folder, command="sparse-dm study report small")
    assert path == study_folder / "reports" / "small" / "report.md"
    assert {p: p.read_bytes() for p in before} == before
    return path


def test_the_report_whole_and_again_with_the_same_bytes(report, study_folder, tmp_path):
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
    # What is common to all is said once, and what is not is said of whom.
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


def test_sheets_show_dense_above_and_the_best_sparse_below(report):
    text = report.read_text(encoding="utf-8")
    assert "VMNIST: Dense; VMNIST: RigL-DM, S = 0.5, p = 0.05" in text
    sheet = np.asarray(Image.open(report.parent / "samples-chirodiff_vmnist.png").convert("L"))
    upper, lower = np.array_split(sheet, 2)
    # A square has vertical lines, which leave columns darker than any of a circle.
    darkest = [(half < 128).sum(axis=0).max() for half in (upper, lower)]
    assert darkest[1] > 1.5 * darkest[0] > 0


def test_sheets_of_images(tmp_path):
    for name, level in (("dense", 40), ("sparse", 200)):
        np.savez(tmp_path / f"{name}.npz", images=np.full((9, 8, 8, 3), level, "uint8"))
    files = [(name, tmp_path / f"{name}.npz") for name in ("dense", "sparse")]
    sample_sheet(files, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    upper, lower = np.array_split(sheet, 2)
    assert (upper == 40).mean() > 0.3 and not (upper == 200).mean() > 0.01
    assert (lower == 200).mean() > 0.3


def test_studies_at_smoke_scale_want_the_seeds_that_there_are(tmp_path, no_paper_costs):
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
        (["tabel2"], "Did you mean table2"),
        (["table2"], "--folder must name the folder"),
        (["table2", "--folder", "nowhere"], "there is no folder nowhere"),
        (["table2", "--folder", "empty"], "empty holds no results.sqlite"),
        (["table2", "--folder", "other"], "is of schema version 99"),
        (["table1", "--folder", "small"], "holds no run of table1"),
        (["sketches", "--folder", "small", "--score", "FID"], "evaluated by: FD-kanji; received"),
        (["sketches", "--folder", "small", "--seeds", "0"], "--seeds must be 1 or more"),
        (["sketches", "--folder", "small", "--output-dir", "file"], "--output-dir file is no"),
        (["sketches", "--folders", "small"], "--folders"),
    ],
)
def test_bad_input(arguments, message, study_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").symlink_to(study_folder)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    with sqlite3.connect(tmp_path / "other" / "results.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    assert main(["study", "report", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert {p.name for p in tmp_path.iterdir()} == {"small", "file", "empty", "other"}


def test_approaches_are_told_apart_by_what_differs():
    cells = grid(SKETCHES[:1], ("rigl",), (0.5,), (0.05, 0.5), (0,), update_every=(100, 800))
    scores = scores_of(Study("mine", "Mine", tuple(cells)))
    titles = [approach.title(True, True) for approach in scores.cells]
    assert titles[0] == "RigL-DM, S = 0.5, p = 0.05, ΔT = 100" and len(set(titles)) == 4
    same = dataclasses.replace(cells[0], seed=5)
    assert Approach.of(same) == Approach.of(cells[0])
    # The paper's numbers are of its own interval.
    papers = Approach("chirodiff_vmnist", False, "rigl", 0.9, 0.05, None)
    assert scores.paper_fid(papers).mean == 52.25
    assert scores.paper_fid(dataclasses.replace(papers, update_every=800)).mean == 52.25
    assert scores.paper_fid(dataclasses.replace(papers, update_every=100)) is None
