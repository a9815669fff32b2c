"""Confidence intervals: coverage of known values, fast routes, resampling, errors."""

import functools
import time
import warnings
from typing import NamedTuple

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from keras_sparse_dm.metrics import FeatureStatistics
from keras_sparse_dm.metrics.frechet import FewSamplesWarning, frechet_distance
from keras_sparse_dm.metrics.intervals import Interval, bootstrap_interval
from keras_sparse_dm.metrics.kernel import kernel_distance, squared_discrepancy
from keras_sparse_dm.metrics.precision_recall import PrecisionRecall, precision_recall

pytestmark = pytest.mark.filterwarnings("error")


def sets(n=60, m=50, features=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, features)), 0.4 + 1.3 * rng.normal(size=(m, features))


# Coverage -----------------------------------------------------------------------------------


def draws(features, samples, seed=0):
    """Return a function that draws two sets of Gaussian samples, and their distance."""
    rng = np.random.default_rng(seed)
    scales = 1 / np.sqrt(1 + np.arange(features))
    mean = 0.3 * scales

    def draw():
        a, b = rng.normal(size=(2, samples, features))
        return a * scales, mean + 1.2 * b * scales

    return draw, np.sum(mean**2) + np.sum((0.2 * scales) ** 2)


@pytest.mark.slow
def test_corrected_intervals_hold_the_distance_of_unlimited_samples():
    draw, distance = draws(features=12, samples=200)
    intervals = [
        bootstrap_interval(frechet_distance, *draw(), resamples=60, correct_bias=True)
        for _ in range(150)
    ]
    hits = [interval.low <= distance <= interval.high for interval in intervals]
    assert 0.89 <= np.mean(hits) <= 0.99
    # The correction is right on average, where the plain distance is far off.
    values = [interval.value for interval in intervals]
    assert np.mean(values) == pytest.approx(distance, abs=0.1 * distance)
    assert np.mean([frechet_distance(*draw()) for _ in range(50)]) > 1.3 * distance


@pytest.mark.slow
def test_plain_intervals_hold_the_expectation_for_as_many_samples():
    draw, _ = draws(features=12, samples=200)
    expected = np.mean([frechet_distance(*draw()) for _ in range(1500)])
    intervals = [bootstrap_interval(frechet_distance, *draw(), resamples=60) for _ in range(150)]
    hits = [interval.low <= expected <= interval.high for interval in intervals]
    assert 0.89 <= np.mean(hits) <= 0.99


def test_the_level_decides_how_often():
    # The difference of means, whose expectation is known exactly.
    rng = np.random.default_rng(1)
    hits = [
        bootstrap_interval(
            lambda a, b: np.mean(b) - np.mean(a),
            rng.normal(size=(40, 1)),
            1 + rng.normal(size=(60, 1)),
            resamples=80,
            level=0.6,
            seed=i,
        )
        for i in range(200)
    ]
    assert np.mean([hit.low <= 1 <= hit.high for hit in hits]) == pytest.approx(0.6, abs=0.11)
    assert {hit.level for hit in hits} == {0.6}


def test_the_spread_is_that_of_the_value():
    # The standard error of a mean of n samples is known.
    b = np.random.default_rng(2).normal(size=(400, 1))
    interval = bootstrap_interval(
        lambda a, b: np.mean(b), np.zeros((4, 1)), b, resamples=2000, resample="b"
    )
    reach = 1.959964 * b.std(ddof=1) / np.sqrt(400)
    assert interval.value == pytest.approx(b.mean())
    assert interval.high - interval.value == pytest.approx(reach, rel=0.05)
    assert interval.value - interval.low == pytest.approx(reach, rel=0.05)


# Statistics ---------------------------------------------------------------------------------


def assert_like(interval, other, rel=1e-6):
    for name in ("value", "low", "high", "level"):
        assert getattr(interval, name) == pytest.approx(getattr(other, name), rel=rel)


@pytest.mark.parametrize("options", [{}, {"resample": "b"}, {"correct_bias": True}])
@pytest.mark.parametrize(
    ("known", "plain"),
    [
        (frechet_distance, lambda a, b: frechet_distance(a, b)),
        (kernel_distance, lambda a, b: squared_discrepancy(a, b)),
        (squared_discrepancy, lambda a, b: squared_discrepancy(a, b)),
        (
            functools.partial(kernel_distance, degree=2, coef0=0),
            lambda a, b: squared_discrepancy(a, b, degree=2, coef0=0),
        ),
    ],
    ids=["frechet", "kernel", "squared discrepancy", "other kernel"],
)
def test_fast_routes_equal_any_functions_route(known, plain, options):
    a, b = sets()
    b += 2  # far enough from 0 that no end is clipped
    fast = bootstrap_interval(known, a, b, resamples=20, seed=5, **options)
    assert_like(fast, bootstrap_interval(plain, a, b, resamples=20, seed=5, **options))


@pytest.mark.parametrize("options", [{}, {"resample": "a"}])
@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall_give_an_interval_each(k, options):
    known = functools.partial(precision_recall, k=k) if k != 3 else precision_recall
    fast = bootstrap_interval(known, *sets(), resamples=20, **options)
    plain = bootstrap_interval(
        lambda a, b: precision_recall(a, b, k), *sets(), resamples=20, **options
    )
    assert tuple(fast) == tuple(plain) == PrecisionRecall._fields
    values = precision_recall(*sets(), k=k)
    for name in fast:
        assert fast[name].value == getattr(values, name)
        low, high = (0, np.inf) if name == "density" else (0, 1)
        ends = np.clip([plain[name].low, plain[name].high], low, high)
        assert (fast[name].low, fast[name].high) == pytest.approx(ends)


def test_any_named_tuple_will_do():
    class Both(NamedTuple):
        mean: float
        width: float

    intervals = bootstrap_interval(
        lambda a, b: Both(np.float32(b.mean()), b.std()), *sets(), resamples=10
    )
    assert list(intervals) == ["mean", "width"]
    assert intervals["width"].value == pytest.approx(sets()[1].std())


def test_halves_smaller_than_the_number_of_features():
    a, b = sets(30, 24, 20)  # covariances of halves are singular, those of the whole sets are not
    assert_like(
        bootstrap_interval(frechet_distance, a, b, resamples=10),
        bootstrap_interval(_silent_distance, a, b, resamples=10),
    )


def test_constant_features_are_no_trouble():
    a, b = sets()
    a[:, 1] = b[:, 1] = 3
    assert_like(
        bootstrap_interval(frechet_distance, a, b, resamples=10),
        bootstrap_interval(frechet_distance, a[:, [0, 2, 3]], b[:, [0, 2, 3]], resamples=10),
    )


def _silent_distance(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        return frechet_distance(a, b)


def test_too_few_samples_are_warned_of_once():
    a, b = sets(30, 24, 40)
    with pytest.warns(FewSamplesWarning, match="41 samples or more") as caught:
        bootstrap_interval(frechet_distance, a, b, resamples=10)
    assert [warning.filename for warning in caught] == [__file__]


def test_statistics_are_taken_as_they_are():
    a, b = sets()
    fixed = bootstrap_interval(frechet_distance, FeatureStatistics.from_features(a), b)
    assert_like(fixed, bootstrap_interval(frechet_distance, a, b, resample="b"))
    other = bootstrap_interval(frechet_distance, b, FeatureStatistics.from_features(a))
    assert other.value == pytest.approx(fixed.value)
    both = bootstrap_interval(frechet_distance, a, b)
    assert fixed.high - fixed.low < both.high - both.low


def test_ends_stay_where_the_measure_can_be():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 50, 3))
    corrected = bootstrap_interval(frechet_distance, a, b, correct_bias=True)
    assert 0 == corrected.low <= corrected.value < corrected.high
    assert bootstrap_interval(kernel_distance, a, b).low < 0  # an unbiased estimate may be negative
    for name, interval in bootstrap_interval(precision_recall, a, a.copy()).items():
        assert 0 <= interval.low <= interval.value <= interval.high
        assert name == "density" or interval.high == 1


def test_the_seed_decides():
    first, again, other = (
        bootstrap_interval(frechet_distance, *sets(), resamples=10, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first.value == other.value


def test_a_thousand_samples_of_256_features_take_seconds():
    a, b = sets(1000, 1000, 256)
    with threadpool_limits(1):  # waiting threads count as processor time
        start = time.process_time()
        bootstrap_interval(frechet_distance, a, b, resamples=20)
        taken = time.process_time() - start
    assert taken < 4  # 40 seconds for 200 resamples


def test_progress_is_shown_only_when_asked_for(capsys):
    bootstrap_interval(frechet_distance, *sets(), resamples=3)
    assert capsys.readouterr().err == ""
    bootstrap_interval(frechet_distance, *sets(), resamples=3, progress=True)
    assert "Resampling" in capsys.readouterr().err


# Printing and errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(12.34, 11.8, 12.91), "12.3 [11.8, 12.9]"),
        (Interval(0.003456, 0.00312, 0.00377), "0.00346 [0.00312, 0.00377]"),
        (Interval(1234.5, 1200.1, 1270.2), "1234 [1200, 1270]"),
        (Interval(0.5, 0.0, 1.0), "0.5 [0.0, 1.0]"),
        (Interval(1.0, 1.0, 1.0), "1 [1, 1]"),
    ],
)
def test_prints(interval, text):
    assert str(interval) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resamples": 1}, "`resamples` must be a whole number, 2 or more; received 1"),
        ({"level": 95}, "`level` must lie between 0 and 1; received 95"),
        ({"level": "0.9"}, "`level` must lie between 0 and 1; received '0.9'"),
        ({"seed": -1}, "`seed` must be a whole number, 0 or more; received -1"),
        ({"resample": "generated"}, '`resample` must be "both", "a" or "b"; received'),
        ({"statistic": "frechet"}, "`statistic` must be a function of two arrays; received 'fr"),
        ({"statistic": lambda a, b: None}, "`statistic` must return a finite .* returned None"),
        ({"statistic": lambda a, b: np.nan}, "`statistic` must return a finite .* returned nan"),
        ({"features_a": np.zeros((3, 4))}, "`features_a` must be of 4 samples or more .* 3"),
        ({"features_a": np.zeros((9, 2))}, "same number of features; received 2 and 4"),
        ({"features_b": np.full((9, 4), np.nan)}, "`features_b` must be finite"),
        (
            {"features_b": FeatureStatistics.from_features(np.eye(4)), "resample": "b"},
            "must be an array to resample",
        ),
        (
            {"features_b": np.zeros((7, 4)), "statistic": precision_recall},
            "must be of 8 samples or more each, .* k = 3; received 60 and 7",
        ),
    ],
)
def test_refuses(change, message):
    a, b = sets()
    arguments = {"statistic": frechet_distance, "features_a": a, "features_b": b} | change
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("ignore", FewSamplesWarning)
        bootstrap_interval(**arguments)
