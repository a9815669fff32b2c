"""Helpers that tests in several folders share; `conftest.py` holds the fixtures."""

import os
from pathlib import Path

import numpy as np
import pytest
from keras.ops import convert_to_numpy as numpy

from keras_sparse_dm.sparsity.kernels import masked_kernels

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def shared_folder(name):
    """Return a folder of `shared` beside the repository; without it, skip, or fail in CI."""
    folder = SHARED / name
    if not folder.is_dir():
        message = f"no folder shared/{name} beside the repository"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


def masks_of(model):
    """Return `{kernel name: mask}` of a sparse model, as NumPy arrays."""
    return {k.name: numpy(k.mask) for k in masked_kernels(model)}


def assert_same_arrays(ours, theirs):
    """Assert that two lists, or two dictionaries, hold equal arrays in equal order."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = ours.values(), theirs.values()
    for a, b in zip(ours, theirs, strict=True):
        a, b = numpy(a), numpy(b)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
