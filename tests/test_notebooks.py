"""Checks of the saved notebooks, which CI runs separately: complete and equal to their scripts."""

import base64
import io
import json
import re
from pathlib import Path

import jupytext
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Texts that would reveal the machine or its user.
PATHS = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|var|usr|opt|Users|mnt|private)/|\b[A-Z]:\\\\")
LOGS = re.compile(r"WARNING|Warning:|^[IWEF]\d{4}", re.MULTILINE)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def outputs(path):
    return [output for cell in code_cells(path) for output in cell["outputs"]]


def pictures(path):
    encoded = (output.get("data", {}).get("image/png") for output in outputs(path))
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in encoded if png]


def test_every_notebook_has_a_script_and_every_script_a_notebook():
    assert len(NOTEBOOKS) == 4
    assert [path.stem for path in NOTEBOOKS] == sorted(p.stem for p in FOLDER.glob("*.py"))


@each_notebook
def test_notebook_is_that_of_its_script(path):
    script, notebook = jupytext.read(path.with_suffix(".py")), jupytext.read(path)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ]


@each_notebook
def test_all_cells_ran_in_order_without_errors(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output["output_type"] for output in outputs(path)} <= {
        "display_data",
        "execute_result",
        "stream",
    }


@each_notebook
def test_pictures_are_saved_and_large_enough_to_read(path):
    assert len(pictures(path)) >= 3
    for picture in pictures(path):
        assert 400 <= picture.width <= 1000
        # Larger than an empty picture.
        assert len(picture.convert("L").getcolors()) > 16


@each_notebook
def test_outputs_show_no_logs_and_nothing_of_the_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not PATHS.search(text)
    for output in outputs(path):
        assert output.get("name") != "stderr"
        assert not LOGS.search("".join(output.get("text", ())))


@each_notebook
def test_notebook_is_small(path):
    assert path.stat().st_size < 1_000_000


@each_notebook
def test_each_code_cell_follows_text_or_belongs_to_the_one_before(path):
    """Text must follow at most two code cells, to guide the reader."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    kinds = "".join("c" if cell["cell_type"] == "code" else "t" for cell in cells)
    assert kinds.startswith("t")
    assert "ccc" not in kinds
