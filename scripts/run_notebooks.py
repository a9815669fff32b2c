"""Runs notebooks/*.py in fresh kernels and saves each with its outputs as the .ipynb beside it.

    python scripts/run_notebooks.py [NAME ...]

The scripts are what is edited and reviewed (jupytext's percent format); the notebooks are made of
them. A notebook whose cells raise is not saved, and whatever the .ipynb held stays.
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
    """Executes a script's cells; returns the notebook with their outputs.

    Args:
        script: Path of the `.py` file.
        timeout: Seconds that one cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises.
    """
    notebook = jupytext.read(script, fmt="py:percent")
    for i, cell in enumerate(notebook.cells):
        # The same in every run, so that only what has changed differs.
        cell.id = f"cell-{i}"
    resources = {"metadata": {"path": str(script.parent)}}
    nbclient.NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources=resources
    ).execute()
    for cell in notebook.cells:
        # When each cell ran.
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = without_logs(cell.outputs)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    return notebook


def without_logs(outputs):
    """A cell's outputs but what TensorFlow logs, whatever TF_CPP_MIN_LOG_LEVEL says."""
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
    """Runs notebooks and saves them with their outputs.

    Args:
        names: Names of notebooks without their endings; all by default.
    """
    for script in [FOLDER / f"{name}.py" for name in names] or sorted(FOLDER.glob("*.py")):
        begin = time.perf_counter()
        notebook = run(script)
        with whole_file(script.with_suffix(".ipynb")) as temporary:
            nbformat.write(notebook, temporary)
        print(f"{script.stem}: {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    tyro.cli(main)
