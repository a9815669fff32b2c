"""Precision, recall, density and coverage: explicit loops, known cases, errors."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_sparse_dm.metrics.precision_recall import (
    checked_arguments,
    precision_recall,
    precision_recall_of_subsets,
)


def by_loops(real, generated, k):
    def radius(xs, i):
        return sorted(math.dist(xs[i], xs[j]) for j in range(len(xs)) if j != i)[k - 1]

    real, generated = real.tolist(), generated.tolist()
    reach_real = [radius(real, i) for i in range(len(real))]
    reach_generated = [radius(generated, j) for j in range(len(generated))]
    inside = [
        [math.dist(x, y) <= reach for x, reach in zip(real, reach_real, strict=True)]
        for y in generated
    ]
    reached = [
        any(math.dist(x, y) <= reach for y, reach in zip(generated, reach_generated, strict=True))
        for x in real
    ]
    return (
        sum(map(any, inside)) / len(generated),
        sum(reached) / len(real),
        sum(map(sum, inside)) / (k * len(generated)),
        sum(map(any, zip(*inside, strict=True))) / len(real),
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(6, 30), st.integers(6, 30), st.integers(1, 6), st.integers(1, 5), st.integers(0))
def test_equals_loops(n, m, features, k, seed):
    rng = np.random.default_rng(seed)
    real = rng.normal(size=(n, features))
    generated = 0.5 + rng.normal(size=(m, features))
    copies = min(n, m) // 3
    generated[:copies] = real[:copies]  # copies of real samples,
    real[-2:] = real[0]  # and of each other
    expected = by_loops(real, generated, k)
    assert precision_recall(real, generated, k) == pytest.approx(expected, abs=1e-12)
    assert precision_recall(real, generated, k, batch_size=4) == pytest.approx(expected, abs=1e-12)


def test_identical_sets():
    real = np.random.default_rng(0).normal(size=(200, 7))
    # Each ball contains the copies of its own sample and of k neighbours, one on the boundary.
    assert precision_recall(real, real[::-1]) == pytest.approx((1, 1, 4 / 3, 1))


def test_identical_sets_far_from_zero_and_in_float32():
    real = (1000 + np.random.default_rng(1).normal(size=(200, 64))).astype(np.float32)
    assert precision_recall(real, real.copy()) == pytest.approx((1, 1, 4 / 3, 1))


def test_all_samples_the_same():
    # Every radius is 0, so rounding errors of distances of 0 must not matter.
    same = np.tile(np.random.default_rng(2).normal(size=(1, 33)), (20, 1))
    assert precision_recall(same, same) == pytest.approx((1, 1, 20 / 3, 1))


def test_disjoint_sets():
    rng = np.random.default_rng(3)
    assert precision_recall(rng.normal(size=(50, 4)), 100 + rng.normal(size=(60, 4))) == (0,) * 4


def test_one_mode_of_two_is_precise_and_recalls_half():
    rng = np.random.default_rng(4)
    left, right = rng.normal(size=(300, 2)), 100 + rng.normal(size=(300, 2))
    both, one = np.concatenate([left, right]), rng.normal(size=(300, 2))
    result = precision_recall(both, one, k=5)
    assert result.precision > 0.9
    assert 0.42 < result.recall <= 0.5
    assert 0.42 < result.coverage <= 0.5
    swapped = precision_recall(one, both, k=5)
    assert 0.42 < swapped.precision <= 0.5
    assert swapped.recall > 0.9


def test_same_distribution_is_as_expected():
    # Naeem et al. 2020: density 1, coverage 1 - (N-1)...(N-k) / ((2N-1)...(2N-k)), whatever the
    # distribution.
    rng = np.random.default_rng(5)
    n, k = 100, 5
    results = np.mean(
        [precision_recall(*rng.gamma(2, size=(2, n, 3)), k=k) for _ in range(60)], axis=0
    )
    missed = math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    assert results[2] == pytest.approx(1, abs=0.03)
    assert results[3] == pytest.approx(1 - missed, abs=0.01)


def test_order_of_samples_does_not_matter():
    rng = np.random.default_rng(6)
    real, generated = rng.normal(size=(2, 150, 5))
    expected = precision_recall(real, generated)
    assert precision_recall(rng.permutation(real), rng.permutation(generated)) == expected


@pytest.mark.parametrize("blocks", [None, 500], ids=["one block", "many blocks"])
def test_of_subsets_is_that_of_each(monkeypatch, blocks):
    if blocks:
        monkeypatch.setattr(sys.modules[precision_recall.__module__], "BLOCK_VALUES", blocks)
    rng = np.random.default_rng(7)
    real, generated = rng.normal(size=(150, 3)), 0.4 + rng.normal(size=(120, 3))
    generated[:5] = real[:5]
    members = [np.zeros((n, 6), bool) for n in (150, 120)]
    for member in members:
        member[: len(member) // 2] = True
        rng.permuted(member, axis=0, out=member)
    members[0][:, 4] = True  # all of one set
    results = precision_recall_of_subsets(*checked_arguments(real, generated, 4), *members)
    expected = [
        precision_recall(real[a], generated[b], 4)
        for a, b in zip(members[0].T, members[1].T, strict=True)
    ]
    np.testing.assert_allclose(results, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "`k` must be a whole number, 1 or more; received 0"),
        ({"k": 8}, "`k` must be below .* 9 in `real` and 8 in `generated`; received 8"),
        ({"batch_size": 0}, "`batch_size` must be a whole number, 1 or more; received 0"),
        (
            {"real": np.zeros((9, 3))},
            "`real` and `generated` .* same number of features; .* 3 and 2",
        ),
        ({"real": np.zeros(9)}, r"`real` must be of shape .* received shape \(9,\)"),
        ({"generated": np.full((8, 2), np.inf)}, "`generated` must be finite"),
    ],
)
def test_refuses(change, message):
    arguments = {"real": np.zeros((9, 2)), "generated": np.zeros((8, 2))} | change
    with pytest.raises(ValueError, match=message):
        precision_recall(**arguments)
