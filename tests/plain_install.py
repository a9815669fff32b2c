"""Check of what the plain installation does, and of what it says where it needs an extra.

`.ci/run` runs this where only `pip install -e .` has been run; `tests/test_package.py` runs it with
`--hide`, which hides the packages of the extra `train`.
"""

import contextlib
import importlib.abc
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_sparse_dm.lazy import OPTIONAL, MissingPackage

PACKAGES = {name: title for name, (title, target) in OPTIONAL.items() if "train" in target}
SENTENCE = "{} is not installed; install it with: pip install 'keras_sparse_dm[train]'"


class Hidden(importlib.abc.MetaPathFinder):
    """Finder that finds none of the packages, as if they were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def check_work(folder):
    """Train a diffusion model sparsely, sample, save and export it."""
    import keras
    import numpy as np

    import keras_sparse_dm as ksd

    denoiser = ksd.models.ChiroDiff(8, 1)
    model = ksd.diffusion.DiffusionModel(denoiser, ksd.diffusion.NoiseSchedule.linear(1000))
    report = ksd.sparsify(model, sparsity=0.5, seed=0)
    assert "total" in str(report)
    model.compile(keras.optimizers.AdamW(1e-3, use_ema=True))
    points = np.random.default_rng(0).normal(size=(16, 12, 3)).astype("float32")
    data = {"points": points, "lengths": np.full(16, 12, "int32")}
    rigl = ksd.DynamicSparsity("rigl", update_every=2, prune_rate=0.3)
    model.fit(data, batch_size=4, epochs=2, verbose=0, callbacks=[rigl])
    ksd.sparsity.check_invariant(model)
    assert model.optimizer.topology_updates == 4
    samples = model.generate(lengths=[12, 6], steps=2, seed=0)

    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    np.testing.assert_allclose(
        loaded.generate(lengths=[12, 6], steps=2, seed=0), samples, atol=1e-5
    )
    ksd.export.save_sparse(model, folder / "sparse.safetensors")
    ksd.sparsity.check_invariant(ksd.export.load_sparse(folder / "sparse.safetensors"))
    ksd.export.to_saved_model(model, folder / "saved_model")
    assert ksd.export.read_metadata(folder / "saved_model")["kind"] == "sketches"
    ksd.export.to_tflite(model, folder / "model.tflite", length=12)
    drawn = ksd.export.generate_from_tflite(folder / "model.tflite", lengths=[12, 6], steps=2)
    assert drawn.shape == (2, 12, 3) and np.isfinite(drawn).all()


def check_errors(folder, hide):
    """Check the sentence where something needs the extra, in Python and on the command line."""
    import numpy as np

    import keras_sparse_dm as ksd

    sketch = np.zeros((4, 3), "float32")
    needs = {
        "matplotlib": lambda: ksd.data.draw([ksd.data.from_points(sketch)]),
        "pillow": lambda: ksd.data.rasterize([np.ones((2, 2))], 8),
        "scikit-learn": lambda: ksd.metrics.precision_recall(np.eye(20), np.eye(20)),
        "tensorboard": lambda: ksd.DynamicSparsity("rigl", log_dir=folder),
        "tyro": lambda: ksd.runs.RunSettings,
    }
    for title, act in needs.items():
        try:
            act()
        except MissingPackage as error:
            assert str(error) == SENTENCE.format(title), error
        else:
            raise AssertionError(f"worked without {title}")

    for name in ("train", "evaluate", "sample", "export", "study", "data", "convert"):
        told = command(hide, name, "--help")
        assert told == (1, f"sparse-dm {name}: error: {SENTENCE.format('tyro')}"), told
    assert command(hide, "--help") == (0, "")


def command(hide, *argv):
    """Run `sparse-dm` and return its exit code and errors."""
    if hide:
        from keras_sparse_dm.cli import main

        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            return main(argv), errors.getvalue().strip()
    arguments = [sys.executable, "-m", "keras_sparse_dm.cli", *argv]
    result = subprocess.run(arguments, capture_output=True, text=True)
    return result.returncode, result.stderr.strip()


if __name__ == "__main__":
    hide = sys.argv[1:] == ["--hide"]
    if hide:
        sys.meta_path.insert(0, Hidden())
    with tempfile.TemporaryDirectory() as folder:
        check_work(Path(folder))
        check_errors(Path(folder), hide)
    print("The plain installation works.")
