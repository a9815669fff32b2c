"""Files of keras_sparse_dm 0.1 load, and training resumes as if uninterrupted."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_sparse_dm.sparsity import check_invariant

FOLDER = Path(__file__).parent / "version_1"
spec = importlib.util.spec_from_file_location("version_1_models", FOLDER / "models.py")
models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(models)


def assert_state(model, file):
    expected = np.load(FOLDER / file)
    found = models.state(model)
    assert set(found) == set(expected)
    for name in expected:
        # Processors may round differently.
        np.testing.assert_allclose(found[name], expected[name], 1e-4, 1e-7, err_msg=name)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("name", models.MODELS)
def test_a_keras_file_loads_and_resumes(name, recwarn, tmp_path):
    model = keras.models.load_model(FOLDER / f"{name}.keras")
    assert not [w for w in recwarn if "skip" in str(w.message).lower()]
    assert_state(model, f"{name}-saved.npz")
    check_invariant(model)
    # Also in the present format.
    model.save(tmp_path / "again.keras")
    for again in (model, keras.models.load_model(tmp_path / "again.keras")):
        models.fit(again)
        assert_state(again, f"{name}-resumed.npz")
        check_invariant(again)
