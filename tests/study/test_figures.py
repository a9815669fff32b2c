"""Figures of studies with made-up results."""

import numpy as np
import pytest
from made_up_results import SKETCHES, scores_of
from PIL import Image

from keras_sparse_dm.study.figures import figures_of, sample_sheet
from keras_sparse_dm.study.grid import Study, grid
from keras_sparse_dm.study.studies import STUDIES
from keras_sparse_dm.study.tables import tables_of


def lines_of(axis):
    """Return `{label: (x, y)}` of lines with error bars and of horizontal lines."""
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


def test_the_papers_fid_is_drawn_only_beside_the_same_score():
    study = STUDIES["figure3"]
    for network, drawn in (("FD-kanji", False), ("FID-quickdraw", True), ("FID", False)):
        scores = scores_of(study, networks=(network,))
        _, figure = figures_of(scores)["sparsity-p0.5"]
        assert ("Dense, paper" in lines_of(figure.axes[0])) == drawn
        if drawn:
            assert lines_of(figure.axes[0])["Dense, paper"][1] == [29.78, 29.78]


def test_options_have_lines_and_rows_of_their_own(no_paper_costs):
    options = {"grow_init": ("zeros", "normal")}
    cells = grid(SKETCHES[:1], ("dense", "rigl"), (0.5, 0.9), (0.1,), (0,), **options)
    study = Study("mine", "Mine", tuple(cells))
    scores = scores_of(study, lambda cell, steps: 10.0 + len(cell.options))
    ((_, figure),) = figures_of(scores).values()
    lines = lines_of(figure.axes[0])
    assert lines["RigL-DM"][1] == [10, 10] and lines["RigL-DM, grow init = normal"][1] == [11, 11]
    (table,) = tables_of(scores)
    rows = {row[1].text: row[2].text for block in table.blocks for row in block}
    assert rows["RigL-DM, S = 0.9"] == "10.00"
    assert rows["RigL-DM, S = 0.9, grow init = normal"] == "11.00"


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


def test_sheets_of_images(tmp_path):
    for name, level in (("dense", 40), ("sparse", 200)):
        np.savez(tmp_path / f"{name}.npz", images=np.full((9, 8, 8, 3), level, "uint8"))
    files = [(name, tmp_path / f"{name}.npz") for name in ("dense", "sparse")]
    sample_sheet(files, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    upper, lower = np.array_split(sheet, 2)
    assert (upper == 40).mean() > 0.3 and not (upper == 200).mean() > 0.01
    assert (lower == 200).mean() > 0.3
