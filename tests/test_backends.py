"""TensorFlow, JAX and PyTorch: training, sampling and files, each in its own process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "backend_script.py"
BACKENDS = ("tensorflow", "jax", "torch")


def run(backend, *arguments):
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    # Tiny networks take longer to compile than to run.
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-5000:]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return `{backend: folder}` of what each installed backend made."""
    folders = {}
    for backend in BACKENDS:
        if importlib.util.find_spec(backend) is not None:
            folders[backend] = tmp_path_factory.mktemp(backend)
            run(backend, "make", folders[backend])
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_trains_samples_measures_and_reads_the_files_of_the_others(made, backend):
    """`backend_script.py` holds the checks; on JAX and PyTorch it hides TensorFlow."""
    if backend not in made:
        pytest.skip(f"{backend} is not installed")
    others = [folder for name, folder in made.items() if name != backend]
    if not others:
        pytest.skip("no other backend is installed")
    for folder in others:
        run(backend, "check", made[backend], folder)
