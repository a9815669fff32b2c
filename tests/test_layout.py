"""The order of the package's folders: each imports only from those before it."""

import ast
from pathlib import Path

import pytest

import keras_sparse_dm

ROOT = Path(keras_sparse_dm.__file__).parent
# Files that need nothing of the package, and then its folders in order.
FIRST = {"_keras", "checks", "datasets", "files", "places", "renamed", "seeds"}
ORDER = ["masks", "layers", "sparsity", "diffusion", "presets", "models", "data", "convert"]
ORDER += ["metrics", "export", "runs", "study", "commands", "cli"]
# The package itself, which names all folders, and its old names.
LAST = {"__init__", "experiments"}


def modules(folder):
    """List `(file, name)` of a folder's modules, or of a single file."""
    files = [ROOT / f"{folder}.py"] if (ROOT / f"{folder}.py").exists() else []
    for file in [*files, *sorted((ROOT / folder).rglob("*.py"))]:
        name = ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
        yield file, name.removesuffix(".__init__")


def imported(file):
    """Yield the modules of the package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name and name.startswith("keras_sparse_dm"))


@pytest.mark.parametrize("folder", ORDER)
def test_a_folder_imports_only_from_those_before_it(folder):
    allowed = FIRST | set(ORDER[: ORDER.index(folder) + 1])
    wrong = [
        (str(file.relative_to(ROOT)), name)
        for file, _ in modules(folder)
        for name in imported(file)
        if name != "keras_sparse_dm" and name.split(".")[1] not in allowed
    ]
    assert not wrong


def test_every_folder_has_its_place():
    names = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names - {"__pycache__"} == FIRST | set(ORDER) | LAST


@pytest.mark.parametrize("file", sorted(FIRST))
def test_the_first_files_import_nothing_of_the_package(file):
    ((path, _),) = modules(file)
    assert not [name for name in imported(path) if name != "keras_sparse_dm"]


def test_there_are_no_import_cycles():
    """Check imports at the top of files and inside functions."""
    files = dict((name, file) for folder in ORDER for file, name in modules(folder))
    graph = {name: {n for n in imported(file) if n in files} for name, file in files.items()}
    while graph:
        leaves = [name for name, needs in graph.items() if not needs - {name} & graph.keys()]
        assert leaves, f"import each other: {sorted(graph)}"
        for leaf in leaves:
            del graph[leaf]
        graph = {name: needs - set(leaves) for name, needs in graph.items()}


@pytest.mark.parametrize("folder", ORDER)
def test_no_file_is_longer_than_400_lines(folder):
    lengths = {file.name: len(file.read_text().splitlines()) for file, _ in modules(folder)}
    assert max(lengths.values()) <= 400, lengths
