"""The Fréchet distance: torch-fidelity's answers, closed forms, singular covariances, errors."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_sparse_dm.metrics import frechet_distance


def test_equals_torch_fidelity(reference):
    answers = reference.arrays("fid.npz")
    assert frechet_distance(answers["set_a"], answers["set_b"]) == pytest.approx(
        float(answers["fid_ab"]), rel=1e-6
    )
    # Fewer samples than features.
    assert frechet_distance(answers["set_c"], answers["set_d"]) == pytest.approx(
        float(answers["fid_cd"]), rel=1e-6
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 30), st.integers(0, 2**31))
def test_is_a_distance_for_any_numbers_of_samples_and_features(n, m, features, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, features)), 3 + 2 * rng.normal(size=(m, features))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distance = frechet_distance(a, b)
        assert distance == pytest.approx(frechet_distance(b, a), rel=1e-9)
        assert distance >= np.sum((a.mean(0) - b.mean(0)) ** 2) * (1 - 1e-12)
        assert 0 <= frechet_distance(a, a[::-1]) < 1e-9
        assert frechet_distance(a, a + 2) == pytest.approx(4 * features, rel=1e-6)


def test_of_one_feature_is_the_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, (50, 1)), rng.normal(4, 3, (70, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros(5), np.zeros((5, 2)), r"`features_a` must be of shape .* received shape \(5,\)"),
        (np.zeros((5, 2)), np.zeros((1, 2)), "`features_b` must .* 2 samples or more"),
        (np.zeros((5, 2)), np.zeros((5, 3)), "as many features; received 2 and 3"),
        (np.full((5, 2), np.nan), np.zeros((5, 2)), "`features_a` must be finite"),
    ],
    ids=["one axis", "one sample", "other features", "nan"],
)
def test_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)
