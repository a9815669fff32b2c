"""Tables of studies with made-up results."""

import re

import pytest
from made_up_results import SKETCHES, scores_of
from markdown_it import MarkdownIt

from keras_sparse_dm.study.grid import Study, grid
from keras_sparse_dm.study.paper import PAPER_COSTS
from keras_sparse_dm.study.paper_fids import PAPER_FIDS
from keras_sparse_dm.study.report_table import Column, Entry, Table, latex
from keras_sparse_dm.study.studies import STUDIES
from keras_sparse_dm.study.tables import costs_of_the_runs, tables_of


def cells_of(table):
    """Return `{(data set, row title): {heading with its group: Entry}}`."""
    headings = [f"{c.group}: {c.heading}" if c.group else c.heading for c in table.columns]
    found, dataset = {}, ""
    for block in table.blocks:
        for row in block:
            dataset = row[0].text or dataset
            found[dataset, row[1].text] = dict(zip(headings, row, strict=True))
    return found


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
    # A sparse model without others is not underlined.
    scores = scores_of(study := STUDIES["table2"], missing=_but_dense_and_rigl(study))
    (table,) = tables_of(scores)
    assert not any(row["FD-kanji ± SD (↓)"].underlined for row in cells_of(table).values())
    # The best sparse model is underlined even if it is worse than dense.
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
    """All FIDs of a table, in its order and with its marks."""
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
    # Our scores never have the name of the paper's.
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
    """Figures that are listed as unexplained are excepted; they have a note."""
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
    """Return the set of numbers of columns of the rows, for each table in a LaTeX file."""
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
