"""Run notebooks/*.py in fresh kernels, and save each with its outputs as a .ipynb file beside it.

    python scripts/run_notebooks.py [NAME ...]

Edit the scripts, which are in jupytext's percent format; the notebooks are generated from them. If
a cell raises an error, the .ipynb file does not change.
"""

import time
from pathlib import Path

import jupytext
import nbclient
import nbformat
import tyro

from keras_sparse_dm.files import whole_file

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def run(script, timeout=3600):
    """Execute a script's cells, and return the notebook with their outputs.

    Args:
        script: Path of the `.py` file.
        timeout: Longest time of a cell, in seconds.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises.
    """
    notebook = jupytext.read(script, fmt="py:percent")
    for i, cell in enumerate(notebook.cells):
        # Constant identifiers, so that files differ only in changed cells.
        cell.id = f"cell-{i}"
    resources = {"metadata": {"path": str(script.parent)}}
    nbclient.NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources=resources
    ).execute()
    for cell in notebook.cells:
        # The times at which cells ran.
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = without_logs(cell.outputs)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    return notebook


def without_logs(outputs):
    """Return a cell's outputs without the messages that TensorFlow logs at any log level."""
    kept = []
    for output in outputs:
        if output.output_type == "stream":
            lines = output.text.splitlines(keepends=True)
            output.text = "".join(line for line in lines if not line.startswith("INFO:tensorflow"))
            if output.name == "stderr" or not output.text:
                continue
        kept.append(output)
    return kept


def main(names: tyro.conf.Positional[tuple[str, ...]] = ()):
    """Run notebooks and save them with their outputs.

    Args:
        names: Names of notebooks without `.py`; all by default.
    """
    for script in [FOLDER / f"{name}.py" for name in names] or sorted(FOLDER.glob("*.py")):
        begin = time.perf_counter()
        notebook = run(script)
        with whole_file(script.with_suffix(".ipynb")) as temporary:
            nbformat.write(notebook, temporary)
        print(f"{script.stem}: {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    tyro.cli(main)
