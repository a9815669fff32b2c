"""Settings and fixtures of all tests: quiet TensorFlow, reference answers, examples."""

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

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_folder(name):
    """Return `shared/NAME` beside the repository; without it, skip the test, or fail it in CI."""
    folder = SHARED / name
    if not folder.is_dir():
        message = f"no folder shared/{name} beside the repository"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


class Reference:
    """Answers of the original programs: arrays by file, and the weights that gave them."""

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


@pytest.fixture(scope="session")
def reference():
    return Reference(shared_folder("reference"))


@pytest.fixture(scope="session")
def paper_text():
    (file,) = shared_folder("paper").glob("*.txt")
    return file.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def fresh_start():
    """Reset the global random state before every test."""
    keras.utils.set_random_seed(1234)


@pytest.fixture(scope="module", autouse=True)
def free_memory():
    """Free the memory of traced functions after each file of tests."""
    yield
    keras.backend.clear_session()
    gc.collect()


ROOT = Path(__file__).resolve().parents[1]


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
