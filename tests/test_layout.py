"""The order of the package's folders: each imports only from those before it."""

import ast
from pathlib import Path

import pytest

import keras_sparse_dm
from keras_sparse_dm.lazy import OPTIONAL

ROOT = Path(keras_sparse_dm.__file__).parent
# Files that need nothing of the package, and then its folders in order.
FIRST = {"_keras", "checks", "datasets", "files", "lazy", "places", "renamed", "seeds"}
ORDER = ["compiled", "own_loss", "masks", "layers", "sparsity", "diffusion", "presets", "models"]
ORDER += ["data", "convert", "metrics", "export", "runs", "study", "commands", "cli"]
# The package itself, which names all folders, and its old names.
LAST = {"__init__", "experiments"}


def modules(folder):
    """List `(file, name)` of a folder's modules, or of a single file."""
    files = [ROOT / f"{folder}.py"] if (ROOT / f"{folder}.py").exists() else []
    for file in [*files, *sorted((ROOT / folder).rglob("*.py"))]:
        name = ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
        yield file, name.removesuffix(".__init__")


def all_imported(file):
    """Yield `(name, lazily)` of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, False
            yield from ((f"{node.module}.{alias.name}", False) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy_module":
            yield ast.literal_eval(node.args[0]), True


def imported(file):
    """List the modules of the package that a file imports, at once or on first use."""
    return [name for name, _ in all_imported(file) if name.startswith("keras_sparse_dm")]


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
    """Check imports at the top of files, and modules that load on first use."""
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


def every_file():
    return sorted(ROOT.rglob("*.py"))


def test_no_import_stands_inside_a_function():
    """`lazy_module` at the top of a file does the same, and is seen there."""
    inside = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in every_file()
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert not inside


def test_optional_packages_load_on_first_use():
    """Otherwise the plain installation could not import the file, and would not say why."""
    at_once = [
        (str(file.relative_to(ROOT)), name)
        for file in every_file()
        for name, lazily in all_imported(file)
        # TensorFlow is part of the plain installation, and optional on other backends.
        if not lazily and name.split(".")[0] in OPTIONAL.keys() - {"tensorflow"}
    ]
    assert not at_once
