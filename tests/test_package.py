import configparser
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import keras_sparse_dm as ksd
from keras_sparse_dm import lazy

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    *("tensorflow", "keras", "tensorflow_datasets", "tensorflow_model_optimization"),
    "matplotlib",
)


def python(*argv, timeout=120, **arguments):
    return subprocess.run(
        [sys.executable, *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout,
        **arguments,
    )


def test_importing_the_package_and_its_command_line_loads_nothing_heavy():
    code = (
        "import sys, keras_sparse_dm as ksd\n"
        "assert 'keras_sparse_dm.cli' not in sys.modules\n"
        "import keras_sparse_dm.cli, keras_sparse_dm.runs.settings\n"
        "from keras_sparse_dm.models import get_preset, PRESETS\n"
        "ksd.data, ksd.diffusion, ksd.metrics, ksd.convert, ksd.models\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_using_the_library_loads_neither_the_toolkit_nor_the_command_line():
    code = (
        "import sys\n"
        # Import the submodule first, which must not hide the function of the same name.
        "import keras_sparse_dm.metrics.costs.cost\n"
        "import keras_sparse_dm as ksd\n"
        "from keras_sparse_dm.metrics import cost\n"
        "assert callable(cost) and callable(ksd.metrics.cost)\n"
        "model = ksd.models.ChiroDiff(4, 1)\n"
        "ksd.sparsify(model, 0.5)\n"
        "ksd.diffusion.DiffusionModel(model, ksd.diffusion.NoiseSchedule.linear(1000))\n"
        # Keras itself loads matplotlib if it is installed.
        "heavy = ('tensorflow_datasets', 'tensorflow_model_optimization', 'keras_sparse_dm.cli',"
        " 'torch')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    result = python("-c", code, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "first",
    [
        "keras",
        pytest.param("keras_sparse_dm.layers", marks=pytest.mark.slow),
        pytest.param("keras_sparse_dm.models.unet", marks=pytest.mark.slow),
    ],
)
def test_saved_classes_are_known_whatever_is_imported_first(first):
    names = ("SparseDense", "SparseOptimizer", "ChiroDiff", "UNet", "LatentDiffusion")
    code = (
        f"import {first}, keras, keras_sparse_dm\n"
        f"for name in {names!r}:\n"
        "    assert keras.saving.get_registered_object('keras_sparse_dm>' + name), name\n"
    )
    result = python("-c", code, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("argv", [["train.py", "--help"], ["-m", "keras_sparse_dm.cli", "--help"]])
def test_help_loads_nothing_slow(argv):
    result = python("-X", "importtime", *argv)
    assert result.returncode == 0 and "train" in result.stdout
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "keras_sparse_dm.cli" in loaded or "keras_sparse_dm.commands" in loaded
    assert not loaded & {"keras", "tensorflow", "matplotlib", "sklearn", "skimage"}


def test_train_py_reports_a_bad_value_as_the_command_does(tmp_path):
    result = python("train.py", "--sparsity", "1.5", "--output-dir", str(tmp_path / "run"))
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("train.py: error: --sparsity") and "received 1.5" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name",
    [
        "layers.SparseDense",
        "layers.SparseGRU",
        "sparsity.densities",
        "sparsity.prune_and_grow",
        "sparsity.check_invariant",
        "sparsify",
        "DynamicSparsity",
        "sparsity_report",
        "diffusion.NoiseSchedule.linear",
        "diffusion.NoiseSchedule.scaled_linear",
        "diffusion.NoiseSchedule.cosine",
        "diffusion.ddim",
        "diffusion.ddpm",
        "diffusion.DiffusionModel",
        "models.ChiroDiff.from_preset",
        "convert.load_pytorch",
        "data.read_sketches",
        "metrics.cost",
        "export.save_sparse",
        "export.load_sparse",
        "export.read_header",
        "export.file_sizes",
        "export.to_saved_model",
        "export.remove_dead_units",
        "export.read_metadata",
    ],
)
def test_the_public_surface_is_reachable_and_documented(name):
    value = ksd
    for part in name.split("."):
        value = getattr(value, part)
    assert callable(value)
    assert value.__doc__ and len(value.__doc__.split()) > 4


def test_everything_that_is_announced_exists():
    subpackages = (
        ksd.data,
        ksd.diffusion,
        ksd.export,
        ksd.metrics,
        ksd.models,
        ksd.runs,
        ksd.study,
    )
    for module in (ksd, *subpackages):
        for name in module.__all__:
            assert getattr(module, name) is not None
            assert name in dir(module) or name == "__version__"
    with pytest.raises(AttributeError, match="nonsense"):
        ksd.nonsense  # noqa: B018


def test_metadata_and_console_script():
    metadata = importlib.metadata.metadata("keras_sparse_dm")
    assert metadata["Version"] == ksd.__version__
    assert "Apache-2.0" in str(metadata.get("License-Expression") or metadata.get("License"))
    (script,) = [
        entry
        for entry in importlib.metadata.entry_points(group="console_scripts")
        if entry.name == "sparse-dm"
    ]
    assert script.load()(["--version"]) == 0
    extras = metadata.get_all("Provides-Extra")
    assert {"test", "dev", "gpu", "convert"} <= set(extras)


def test_errors_name_every_package_of_the_extra():
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg")
    lines = options["options.extras_require"]["train"].split("\n")
    extra = {canonicalize_name(Requirement(line).name) for line in lines if line}
    named = {title for title, target in lazy.OPTIONAL.values() if "[train]" in target}
    assert {canonicalize_name(title) for title in named} == extra


@pytest.mark.nightly  # `.ci/run` checks a real plain installation
def test_what_works_without_the_extra():
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    result = python("tests/plain_install.py", "--hide", env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "works" in result.stdout
