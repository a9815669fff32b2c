"""Loading of version 1 files, which the script beside them wrote."""

import runpy
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_sparse_dm as ksd
from keras_sparse_dm.export import load_sparse, read_header, save_sparse
from keras_sparse_dm.sparsity import check_invariant

VERSION_1 = Path(__file__).parent / "version_1"


@pytest.fixture(scope="module")
def written():
    return runpy.run_path(VERSION_1 / "write.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["functional", "unnamed", "rigl", "snfs", "diffusion"])
def test_version_1(written, name, tmp_path):
    path = VERSION_1 / f"{name}.sparse"
    header = read_header(path)
    assert header["format_version"] == 1 and header["metadata"] == {"made": name}
    with np.load(VERSION_1 / f"{name}.npz") as archive:
        expected = {key: archive[key] for key in archive.files}
    # The loaded model can be saved in the new version without a change.
    again = save_sparse(load_sparse(path), tmp_path / "m", optimizer=header["optimizer"])
    assert read_header(again)["format_version"] == 2
    for file in (path, again):
        model = load_sparse(file)
        check_invariant(model)
        found = written["found"](name, model)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if key.startswith("outputs"):
                np.testing.assert_allclose(found[key], value, atol=1e-4, err_msg=key)
            else:
                np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_version_1_is_refused_where_it_does_not_fit(written, monkeypatch):
    monkeypatch.setattr(
        written["Unnamed"], "__init__", lambda self, **kwargs: keras.Model.__init__(self, **kwargs)
    )
    with pytest.raises(ValueError, match="unnamed.sparse") as error:
        load_sparse(VERSION_1 / "unnamed.sparse")
    assert "\n" not in str(error.value)
    assert ksd.export.read_header(VERSION_1 / "unnamed.sparse")["optimizer"] is False
