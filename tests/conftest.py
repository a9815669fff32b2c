"""Fixtures of all tests: quiet TensorFlow, private caches, the reference answers, areas."""

import collections
import gc
import importlib.util
import os
import re
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")
# Convolutions with channels first need oneDNN, which is off by default without AVX-512.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import pytest
from support import ROOT, shared_folder

TESTS = Path(__file__).parent
# A marker for the tests of each folder, to select several at once: -m "sparsity or layers".
AREAS = sorted(path.name for path in TESTS.iterdir() if list(path.glob("test_*.py")))


def pytest_configure(config):
    for area in AREAS:
        config.addinivalue_line("markers", f"{area}: tests in tests/{area}")
    config.addinivalue_line("markers", "torch: tests that need PyTorch")
    config.addinivalue_line("markers", "cases(n): all but the first n cases of a test are nightly")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
    """Mark tests by area, those that need PyTorch, and by `cases` and `SLOW_FIXTURES`.

    `SLOW_FIXTURES` names the fixtures of a file that take long: tests with one of them are slow.
    """
    seen = collections.Counter()
    for item in items:
        area = item.path.relative_to(TESTS).parts[0]
        if area in AREAS:
            item.add_marker(area)
        if "torch" in item.fixturenames:
            item.add_marker("torch")
        cases = item.get_closest_marker("cases")
        test = item.nodeid.partition("[")[0]
        seen[test] += 1
        if cases and seen[test] > cases.args[0]:
            item.add_marker("nightly")
        if item.get_closest_marker("tensorflow") and keras.backend.backend() != "tensorflow":
            item.add_marker(pytest.mark.skip(reason="checks TensorFlow"))
        if getattr(item.module, "SLOW_FIXTURES", set()) & set(item.fixturenames):
            item.add_marker("slow")


class Reference:
    """Answers of the original programs: arrays by file, and the weights behind them."""

    def __init__(self, folder):
        self.folder = folder
        spec = importlib.util.spec_from_file_location(
            "reference_weights", folder / "reference_weights.py"
        )
        self._weights = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._weights)

    def arrays(self, name):
        """Return the arrays of one file, by name."""
        with np.load(self.folder / name) as archive:
            return {key: archive[key] for key in archive.files}

    def state_dict(self, name):
        """Return `{PyTorch tensor name: array}` of the network of one file."""
        names, _ = self._weights.load(self.folder / name)
        return self._weights.state_dict(names)


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """Give a test an empty cache folder of its own."""
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", str(tmp_path / "own-cache"))


@pytest.fixture(scope="module")
def private_cache(tmp_path_factory):
    """Give the tests of a file one empty cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_SPARSE_DM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Run a test in an empty working folder, with an empty cache folder in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="PyTorch (the extra `convert`) is not installed")


@pytest.fixture(scope="session")
def reference():
    return Reference(shared_folder("reference"))


@pytest.fixture(scope="session")
def paper_text():
    (file,) = shared_folder("paper").glob("*.txt")
    return file.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def fresh_start():
    """Begin every test with the same global random state."""
    keras.utils.set_random_seed(1234)


# Imported modules stay: garbage collection need not look through them again after each file.
gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def free_memory():
    """Free what a file of tests has traced before the next file runs."""
    yield
    keras.backend.clear_session()
    gc.collect()


def examples_of(page):
    """Return `{identifier: source}` of the Python of a page in `docs/`, or of the README."""
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    found = re.findall(
        r"<!-- example: (\w+) -->\n\n```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL
    )
    assert len(dict(found)) == len(found), f"{page} has two examples of the same name"
    return dict(found)


def shorten(source, pairs):
    for long, short in pairs:
        assert long in source, long
        source = source.replace(long, short)
    return source


@pytest.fixture
def example():
    """Function that returns one example of a page, with pairs of texts replaced."""
    return lambda page, name, *shortened: shorten(examples_of(page)[name], shortened)


@pytest.fixture
def run_page():
    """Function that runs all examples of a page in one namespace, and returns the namespace."""

    def run(page, *shortened):
        names = {"__name__": "docs"}
        source = shorten("\n".join(examples_of(page).values()), shortened)
        exec(compile(source, page, "exec"), names)
        return names

    return run
