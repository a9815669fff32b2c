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
    """Run Python on a backend, and return what it printed."""
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    # Tiny networks take longer to compile than to run.
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-5000:]
    return result.stdout


def is_installed(backend):
    return importlib.util.find_spec(backend) is not None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return `{backend: folder}` of what each installed backend made."""
    folders = {}
    for backend in BACKENDS:
        if is_installed(backend):
            folders[backend] = tmp_path_factory.mktemp(backend)
            run(backend, SCRIPT, "make", folders[backend])
    return folders


@pytest.mark.nightly
@pytest.mark.parametrize("backend", BACKENDS)
def test_trains_samples_measures_and_reads_the_files_of_the_others(made, backend):
    """`backend_script.py` holds the checks; on JAX and PyTorch it hides TensorFlow."""
    if backend not in made:
        pytest.skip(f"{backend} is not installed")
    others = [folder for name, folder in made.items() if name != backend]
    if not others:
        pytest.skip("no other backend is installed")
    run(backend, SCRIPT, "check", made[backend], *others)


@pytest.mark.nightly
@pytest.mark.parametrize("backend", BACKENDS)
def test_methods_options_and_precisions(backend):
    if not is_installed(backend):
        pytest.skip(f"{backend} is not installed")
    run(backend, SCRIPT, "methods")


BEFORE_THE_LOOP = """
import jax
import keras
import numpy as np

import keras_sparse_dm as ksd

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(2)])
ksd.sparsify(model, 0.5, seed=0)
before = [np.array(k.mask) for k in ksd.sparsity.masked_kernels(model)]
x = np.random.default_rng(0).normal(size=(250, 4, 8)).astype("float32")
batches = [(batch, batch[:, :2]) for batch in x]
"""
AFTER_THE_LOOP = """
assert loss < 0.5, loss
assert optimizer.topology_updates == 2
after = [np.array(k.mask) for k in ksd.sparsity.masked_kernels(model)]
assert [mask.sum() for mask in after] == [mask.sum() for mask in before]
assert any((a != b).any() for a, b in zip(after, before))
print("done")
"""


@pytest.mark.slow
def test_a_loop_in_jax(example, tmp_path):
    if not is_installed("jax"):
        pytest.skip("jax is not installed")
    script = tmp_path / "loop.py"
    loop = example("backends.md", "jax_loop", ("AdamW(1e-3)", "AdamW(3e-2)"))
    script.write_text(BEFORE_THE_LOOP + loop + AFTER_THE_LOOP)
    assert run("jax", script) == "done\n"
