"""Kernel distance: double loops, torch-fidelity's formula, known expectations, errors."""

import numpy as np
import pytest

from keras_sparse_dm.metrics import kernel as module
from keras_sparse_dm.metrics.kernel import KernelDistance, kernel_distance, squared_discrepancy


def sets(n=40, m=30, features=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, features)), 0.3 + 1.2 * rng.normal(size=(m, features))


def by_loops(a, b, degree=3, gamma=None, coef0=1.0):
    gamma = 1 / a.shape[1] if gamma is None else gamma

    def kernel(x, y):
        return (gamma * sum(p * q for p, q in zip(x, y, strict=True)) + coef0) ** degree

    def within(xs):
        n = len(xs)
        pairs = [kernel(xs[i], xs[j]) for i in range(n) for j in range(n) if i != j]
        return sum(pairs) / (n * (n - 1))

    across = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    return within(a) + within(b) - 2 * across


def as_torch_fidelity(a, b, subsets, size, seed, degree=3, gamma=None, coef0=1.0):
    """Return mean and SD over torch-fidelity's subsets, by its formula."""
    random = np.random.RandomState(seed)
    gamma = 1.0 / a.shape[1] if gamma is None else gamma
    values = []
    for _ in range(subsets):
        x = a[random.choice(len(a), size, replace=False)]
        y = b[random.choice(len(b), size, replace=False)]
        xx, yy, xy = ((gamma * p @ q.T + coef0) ** degree for p, q in ((x, x), (y, y), (x, y)))
        within = (xx.sum(1) - np.diagonal(xx)).sum() + (yy.sum(1) - np.diagonal(yy)).sum()
        values.append(within / (size * (size - 1)) - 2 * xy.sum(0).sum() / size**2)
    return np.mean(values), np.std(values)


KERNELS = [{}, {"degree": 1}, {"degree": 2, "gamma": 0.7, "coef0": -0.5}]


@pytest.mark.parametrize("kernel", KERNELS)
def test_of_all_samples_equals_double_loops(kernel):
    a, b = sets()
    assert squared_discrepancy(a, b, **kernel) == pytest.approx(by_loops(a, b, **kernel), rel=1e-9)


def test_in_blocks_it_is_the_same(monkeypatch):
    a, b = sets()
    expected = squared_discrepancy(a, b)
    monkeypatch.setattr(module, "BLOCK_VALUES", 70)  # two rows at once
    assert squared_discrepancy(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("subsets", [2, 50], ids=["each subset's kernel", "one kernel of all"])
def test_equals_torch_fidelitys_formula(subsets, kernel):
    a, b = sets()
    expected = as_torch_fidelity(a, b, subsets, 20, 2020, **kernel)
    distance = kernel_distance(a, b, subsets, 20, seed=2020, **kernel)
    assert isinstance(distance, KernelDistance)
    assert distance == pytest.approx(expected, rel=1e-9)


def test_the_seed_decides():
    a, b = sets()
    first, again, other = (kernel_distance(a, b, 5, 10, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first.std > 0


def test_whole_sets_have_no_spread():
    a, b = sets(25, 25)
    distance = kernel_distance(a, b, 4, 25)
    assert distance.mean == pytest.approx(squared_discrepancy(a, b))
    assert distance.std == pytest.approx(0, abs=1e-12)


def test_linear_kernel_is_the_squared_distance_of_means_in_expectation():
    # Unbiased for any number of samples: |mu_a - mu_b|^2 / features, here 0.25.
    rng = np.random.default_rng(3)
    values = [
        squared_discrepancy(rng.normal(size=(8, 4)), 0.5 + rng.normal(size=(6, 4)), degree=1)
        for _ in range(2000)
    ]
    assert np.mean(values) == pytest.approx(0.25, abs=4 * np.std(values) / np.sqrt(2000))


def test_same_distribution_is_zero_on_average_and_others_are_not():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 600, 10))
    alike, shifted = kernel_distance(a, b, 50, 200), kernel_distance(a, b + 0.5, 50, 200)
    assert abs(alike.mean) < 0.02 < 0.2 < shifted.mean
    assert min(kernel_distance(a, b, 30, 20, seed=s).mean for s in range(20)) < 0  # not clipped


def test_float32_is_computed_in_float64():
    a, b = (100 + x.astype(np.float32) for x in sets())
    expected = squared_discrepancy(a.astype(np.float64), b.astype(np.float64))
    assert squared_discrepancy(a, b) == expected


def test_prints_as_one_line():
    assert str(KernelDistance(0.01234567, 0.00123)) == "0.01235 ± 0.0012"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subset_size": 31}, "`subset_size` must not exceed .* 40 in .* and 30 in .* received 31"),
        ({}, "`subset_size` must not exceed .* received 1000"),
        ({"subset_size": 1}, "`subset_size` must be a whole number, 2 or more; received 1"),
        ({"subsets": 0}, "`subsets` must be a whole number, 1 or more; received 0"),
        ({"degree": 2.5}, "`degree` must be a whole number, 1 or more; received 2.5"),
        ({"gamma": np.nan}, "`gamma` must be a finite number; received nan"),
        ({"coef0": "one"}, "`coef0` must be a finite number; received 'one'"),
        ({"seed": -1}, "`seed` must be a whole number, 0 or more; received -1"),
        ({"seed": 2**32}, r"`seed` must be below 2\*\*32"),
        ({"features_b": np.zeros((30, 4))}, "same number of features; received 5 and 4"),
        ({"features_b": np.full((30, 5), np.nan)}, "`features_b` must be finite"),
        ({"features_a": np.zeros((1, 5))}, "`features_a` must .* 2 samples or more"),
    ],
)
def test_refuses(change, message):
    a, b = sets()
    with pytest.raises(ValueError, match=message):
        kernel_distance(**({"features_a": a, "features_b": b} | change))
