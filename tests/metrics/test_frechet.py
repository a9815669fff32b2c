"""Fréchet distance: torch-fidelity's results, closed forms, singular covariances, errors."""

import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_sparse_dm.metrics import FeatureStatistics
from keras_sparse_dm.metrics.frechet import FewSamplesWarning, frechet_distance

pytestmark = pytest.mark.filterwarnings("error")

of = FeatureStatistics.from_features


def both_ways(a, b):
    """Return the distances of features, of statistics, and of both mixed."""
    return [frechet_distance(*pair) for pair in ((a, b), (of(a), of(b)), (a, of(b)), (of(a), b))]


def test_equals_torch_fidelity(reference):
    answers = reference.arrays("fid.npz")
    distances = both_ways(answers["set_a"], answers["set_b"])
    assert distances == pytest.approx([float(answers["fid_ab"])] * 4, rel=1e-6)
    assert distances == pytest.approx([distances[0]] * 4, rel=1e-8)


def test_equals_torch_fidelity_for_fewer_samples_than_features(reference):
    answers = reference.arrays("fid.npz")
    with pytest.warns(FewSamplesWarning):
        distances = both_ways(answers["set_c"], answers["set_d"])
    assert distances == pytest.approx([float(answers["fid_cd"])] * 4, rel=1e-6)
    assert distances == pytest.approx([distances[0]] * 4, rel=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 30), st.integers(0, 2**31))
def test_is_a_distance_for_any_numbers_of_samples_and_features(n, m, features, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, features)), 3 + 2 * rng.normal(size=(m, features))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FewSamplesWarning)
        distance = frechet_distance(a, b)
        assert distance == pytest.approx(frechet_distance(b, a), rel=1e-9)
        assert both_ways(a, b) == pytest.approx([distance] * 4, rel=1e-8)
        assert distance >= np.sum((a.mean(0) - b.mean(0)) ** 2) * (1 - 1e-12)
        for itself in both_ways(a, a[::-1]):
            assert 0 <= itself < 1e-9
        assert frechet_distance(a, a + 2) == pytest.approx(4 * features, rel=1e-6)


def test_is_the_formula_with_scipys_root():
    rng = np.random.default_rng(1)
    a, b = (
        rng.normal(size=(90, 12)) * np.arange(1, 13),
        rng.normal(size=(70, 12)) @ rng.normal(size=(12, 12)),
    )
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t - 2 * root)
    assert both_ways(a, b) == pytest.approx([expected] * 4, rel=1e-9)


def test_of_one_feature_is_the_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, (50, 1)), rng.normal(4, 3, (70, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert both_ways(a, b) == pytest.approx([expected] * 4)


def test_of_features_far_from_zero_and_of_float32():
    # A difference of sums of squares would lose all digits.
    rng = np.random.default_rng(2)
    a = rng.normal(size=(400, 6)).astype(np.float32)
    b = (1 + rng.normal(size=(300, 6))).astype(np.float32)
    near = frechet_distance(a, b)
    assert both_ways(a.astype(float) + 1e6, b.astype(float) + 1e6) == pytest.approx(
        [near] * 4, rel=1e-7
    )


def test_constant_features_are_no_trouble():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(50, 5)), rng.normal(size=(60, 5))
    a[:, 2] = b[:, 2] = 7
    a[:, 4] = 0
    rest = frechet_distance(a[:, [0, 1, 3, 4]], b[:, [0, 1, 3, 4]])
    assert both_ways(a, b) == pytest.approx([rest] * 4, rel=1e-8)
    alike = np.full((9, 3), 2.5)
    assert both_ways(alike, alike + 1) == pytest.approx([3] * 4)


def test_order_of_samples_does_not_matter():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(300, 20)), rng.normal(size=(200, 20))
    distance = frechet_distance(a, b)
    shuffled = rng.permutation(a), rng.permutation(b)
    assert both_ways(*shuffled) == pytest.approx([distance] * 4, rel=1e-10)


@pytest.mark.parametrize("make", [np.asarray, of], ids=["features", "statistics"])
def test_warns_of_too_few_samples_for_the_features(make):
    rng = np.random.default_rng(5)
    enough, few = make(rng.normal(size=(9, 8))), make(rng.normal(size=(8, 8)))
    frechet_distance(enough, enough)
    message = "`features_b` has 8 samples of 8 features: .* needs 9 samples or more of each set"
    with pytest.warns(FewSamplesWarning, match=message) as caught:
        frechet_distance(enough, few)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="`features_a` has 8 samples and `features_b` has 8"):
        frechet_distance(few, few)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros(5), np.zeros((5, 2)), r"`features_a` must be of shape .* received shape \(5,\)"),
        (np.zeros((5, 2)), np.zeros((1, 2)), "`features_b` must .* 2 samples or more"),
        (of(np.zeros((1, 2))), np.zeros((5, 2)), "`features_a` must .* received statistics of 1"),
        (FeatureStatistics(), np.zeros((5, 2)), "`features_a` must .* received statistics of 0"),
        (np.zeros((5, 2)), np.zeros((5, 3)), "same number of features; received 2 and 3"),
        (np.zeros((5, 2)), of(np.zeros((5, 3))), "same number of features; received 2 and 3"),
        (np.full((5, 2), np.nan), np.zeros((5, 2)), "`features_a` must be finite.* in sample 0"),
        (np.zeros((5, 2)), [["a", "b"]] * 5, "`features_b` must be an array of real numbers"),
        (np.zeros((5, 2)), np.zeros((5, 2), complex), "`features_b` must be .* of real numbers"),
    ],
    ids=[
        "one axis",
        "one sample",
        "statistics of one",
        "statistics of none",
        "other features",
        "statistics of other features",
        "nan",
        "text",
        "complex",
    ],
)
def test_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)
