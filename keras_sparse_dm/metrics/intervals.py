"""Confidence intervals for measures of two sets of features, from random halves of the sets."""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from tqdm import tqdm

from keras_sparse_dm.checks import whole_number
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.metrics.features.checks import checked_pair
from keras_sparse_dm.metrics.features.statistics import FeatureStatistics
from keras_sparse_dm.metrics.frechet import (
    checked_sets,
    distance_of_checked,
    frechet_distance,
    mean_and_root,
    warn_of_few_samples,
)
from keras_sparse_dm.metrics.kernel import (
    Kernel,
    discrepancies,
    kernel_distance,
    squared_discrepancy,
)
from keras_sparse_dm.metrics.precision_recall import (
    checked_arguments,
    precision_recall,
    precision_recall_of_subsets,
)

loky = lazy_module("loky")
threadpoolctl = lazy_module("threadpoolctl")

NAMES = ("features_a", "features_b")
# Resamples computed at once; each copies half of both sets.
MAX_THREADS = 8


@dataclass(frozen=True)
class Interval:
    """Value with its confidence interval; prints as `12.3 [11.8, 12.9]`.

    Args:
        value: The value.
        low, high: The interval's ends.
        level: Confidence level, between 0 and 1.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self):
        length = self.high - self.low
        if not 0 < length < np.inf:
            return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"
        # Enough decimals for two digits of the interval's length.
        decimals = min(max(0, 1 - int(np.floor(np.log10(length)))), 15)
        value, low, high = (f"{x:.{decimals}f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def bootstrap_interval(
    statistic,
    features_a,
    features_b,
    resamples=200,
    level=0.95,
    seed=0,
    *,
    resample="both",
    correct_bias=False,
    progress=False,
):
    """Confidence interval for a measure of two sets of samples, from random halves of the sets.

    A bootstrap that draws with replacement fails for these measures. Its sets contain duplicates,
    which reduce the rank of covariances and the distances of neighbours and so bias the result
    upwards a second time: for 1,000 samples of 64 features, its percentile interval never
    contained the right value in 200 trials. This function draws halves without replacement
    instead (half-sampling, Shao and Wu 1989). The values of halves vary around the value of the
    whole sets as much as the value of whole sets varies around its expectation. The interval is
    the value plus and minus the normal quantile times the halves' standard deviation.

    Without `correct_bias`, the interval is for the expectation of the measure with *the same
    numbers of samples*, which is the right quantity to compare at equal numbers. With
    `correct_bias`, it is for the measure with unlimited samples: a bias proportional to 1/n is
    twice as large in halves, and the difference is subtracted. The Fréchet distance has such a
    bias if there are more samples than features, and the kernel distance has none; precision,
    recall and coverage do not follow this law.

    In 200 trials each, with 200 to 1,000 samples of 16 to 128 features, 95% intervals contained
    the right Fréchet distance in 94% to 99% of the trials (with or without correction), the right
    kernel distance in 95%, and the right precision, recall, density and coverage in 90% to 98%.
    For equal distributions the intervals are too wide and always contained the right value.

    Args:
        statistic: `frechet_distance`, `kernel_distance` (then the estimate from all samples, see
            `squared_discrepancy`) or `precision_recall`, all of which have fast implementations,
            also with options, as in `functools.partial(precision_recall, k=5)`. Or any function
            of two arrays (samples, features) that returns a number or a named tuple of numbers;
            it is called once for each resample.
        features_a, features_b: Float arrays (samples, features), 4 samples or more each. For
            `frechet_distance` one may be `FeatureStatistics`, which is not resampled.
        resamples: Number of halves, 2 or more. With 200, the interval's length is accurate to
            5%.
        level: Confidence level, between 0 and 1.
        seed: Integer, 0 or more, that draws the halves.
        resample: `"both"`, or `"a"` or `"b"` to draw halves of one set only, such as the
            generated samples when several models are compared with the same real samples.
        correct_bias: Whether value and interval are for unlimited samples.
        progress: Whether to show a progress bar (on standard error) while resamples are computed
            one by one; kernel distance, precision and recall take a single pass.

    Returns:
        `Interval`, or a dictionary of them by name if the statistic returns a named tuple. Ends
        outside the measure's range (below 0 for the Fréchet distance, precision and the like,
        above 1 for precision, recall and coverage) are moved to its border.

    Raises:
        ValueError: for arguments out of their range, features that the statistic refuses, or a
            statistic that returns something else or values that are not finite.
    """
    resamples = whole_number("`resamples`", resamples, 2)
    seed = whole_number("`seed`", seed, 0)
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
        raise ValueError(f"`level` must lie between 0 and 1; received {level!r}.")
    if resample not in ("both", "a", "b"):
        raise ValueError(f'`resample` must be "both", "a" or "b"; received {resample!r}.')
    if not callable(statistic):
        raise ValueError(f"`statistic` must be a function of two arrays; received {statistic!r}.")
    route = _route(statistic, features_a, features_b)
    members = _halves(route.sets, resample, resamples, seed)
    values = _numbers(route.value())
    halves = np.array([list(_numbers(v).values()) for v in route.of_subsets(*members, progress)])
    factor = NormalDist().inv_cdf(0.5 + level / 2)
    intervals = {}
    for (name, value), varied in zip(values.items(), halves.T, strict=True):
        reach = factor * varied.std(ddof=1)
        if correct_bias:
            value = 2 * value - varied.mean()
        low, high = route.bounds.get(name, (-np.inf, np.inf))
        ends = (float(np.clip(end, low, high)) for end in (value, value - reach, value + reach))
        intervals[name] = Interval(*ends, float(level))
    return intervals[""] if list(intervals) == [""] else intervals


def _halves(sets, resample, resamples, seed):
    """Return, for each set, a boolean array (samples, resamples), or None to use the whole set."""
    random = np.random.default_rng(seed)
    members = []
    for name, features, letter in zip(NAMES, sets, "ab", strict=True):
        if isinstance(features, FeatureStatistics) or resample not in ("both", letter):
            members.append(None)
            continue
        if len(features) < 4:
            raise ValueError(
                f"`{name}` must be of 4 samples or more to draw halves of; received "
                f"{len(features)}."
            )
        halves = np.zeros((len(features), resamples), bool)
        halves[: len(features) // 2] = True
        members.append(random.permuted(halves, axis=0))
    if all(member is None for member in members):
        raise ValueError(
            "`features_a` or `features_b` must be an array to resample: statistics cannot be "
            f'halved. Give features for the set to resample; received resample="{resample}".'
        )
    return members


def _numbers(result):
    """Return a statistic's result as a dictionary of floats; a single number has the name ""."""
    fields = result._asdict() if hasattr(result, "_asdict") else {"": result}
    try:
        numbers = {name: float(value) for name, value in fields.items()}
        if not np.isfinite(list(numbers.values())).all():
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            "`statistic` must return a finite number or a named tuple of them; it returned "
            f"{result!r}."
        ) from None
    return numbers


def _with_progress(items, progress, total=None):
    return tqdm(items, "Resampling", total, unit=" halves", disable=not progress)


def _route(statistic, features_a, features_b):
    """Return the object that computes a statistic of halves, a fast one if there is one."""
    function, options = statistic, {}
    if isinstance(statistic, functools.partial) and not statistic.args:
        function, options = statistic.func, statistic.keywords
    for known, route in _ROUTES:
        if function is known and set(options) <= route.options:
            return route(features_a, features_b, **options)
    return _Any(features_a, features_b, statistic)


class _Any:
    """Any statistic, called once for each pair of subsets."""

    bounds = {}

    def __init__(self, features_a, features_b, statistic):
        self.statistic = statistic
        self.sets = checked_pair(NAMES, features_a, features_b)

    def value(self):
        return self.statistic(*self.sets)

    def of_subsets(self, members_a, members_b, progress):
        a, b = self.sets
        for i in _with_progress(_count(members_a, members_b), progress):
            yield self.statistic(
                a if members_a is None else a[members_a[:, i]],
                b if members_b is None else b[members_b[:, i]],
            )


class _Frechet:
    options = frozenset()
    bounds = {"": (0, np.inf)}

    def __init__(self, features_a, features_b):
        self.sets = checked_sets(features_a, features_b)
        warn_of_few_samples(*self.sets, stacklevel=4)  # bootstrap_interval's caller

    def value(self):
        return distance_of_checked(*self.sets)

    def of_subsets(self, members_a, members_b, progress):
        whole = [
            mean_and_root(x) if members is None else None
            for x, members in zip(self.sets, (members_a, members_b), strict=True)
        ]

        def distance(i):
            (mean_a, root_a), (mean_b, root_b) = (
                _quick_mean_and_root(x[members[:, i]]) if fixed is None else fixed
                for x, members, fixed in zip(self.sets, (members_a, members_b), whole, strict=True)
            )
            traces = np.sum(root_a**2) + np.sum(root_b**2)
            overlap = _quick_overlap(root_a @ root_b.T)
            return np.sum((mean_a - mean_b) ** 2) + traces - 2 * overlap

        # One thread per resample is faster than threads inside the linear algebra, which wait for
        # each other on busy cores.
        with (
            threadpoolctl.threadpool_limits(1),
            ThreadPoolExecutor(min(loky.cpu_count(), MAX_THREADS)) as executor,
        ):
            numbers = _count(members_a, members_b)
            yield from _with_progress(executor.map(distance, numbers), progress, len(numbers))


def _quick_mean_and_root(features):
    """Return `mean_and_root` to about 8 digits, in a third of the time."""
    mean = features.mean(axis=0)
    centred = (features - mean) / np.sqrt(len(features) - 1)
    if centred.shape[0] > centred.shape[1]:
        try:
            return mean, np.linalg.cholesky(centred.T @ centred).T
        except np.linalg.LinAlgError:  # singular: the centred rows are a root too
            pass
    return mean, centred


def _quick_overlap(product):
    """Return the sum of a matrix's singular values to about 8 digits."""
    if product.shape[0] > product.shape[1]:
        product = product.T
    squares = np.linalg.eigvalsh(product @ product.T)
    return np.sqrt(np.maximum(squares, 0)).sum()


class _KernelDistance:
    options = frozenset({"degree", "gamma", "coef0"})
    bounds = {}

    def __init__(self, features_a, features_b, **kernel):
        self.sets = checked_pair(NAMES, features_a, features_b, 2)
        self.kernel = Kernel(self.sets[0].shape[1], **kernel)

    def value(self):
        everyone = [np.ones((len(x), 1), bool) for x in self.sets]
        return discrepancies(*self.sets, *everyone, self.kernel)[0]

    def of_subsets(self, members_a, members_b, progress):
        members = _whole_too(self.sets, members_a, members_b)
        return discrepancies(*self.sets, *members, self.kernel)


class _PrecisionRecall:
    options = frozenset({"k"})
    bounds = {
        "precision": (0, 1),
        "recall": (0, 1),
        "density": (0, np.inf),
        "coverage": (0, 1),
    }

    def __init__(self, features_a, features_b, k=3):
        *self.sets, self.k = checked_arguments(features_a, features_b, k)
        if 2 * (self.k + 1) > min(map(len, self.sets)):
            raise ValueError(
                f"`features_a` and `features_b` must be of {2 * (self.k + 1)} samples or more "
                f"each, so that halves hold more than k = {self.k}; received "
                f"{len(self.sets[0])} and {len(self.sets[1])}."
            )

    def value(self):
        return precision_recall(*self.sets, k=self.k)

    def of_subsets(self, members_a, members_b, progress):
        members = _whole_too(self.sets, members_a, members_b)
        return precision_recall_of_subsets(*self.sets, self.k, *members)


def _count(*members):
    return range(next(m.shape[1] for m in members if m is not None))


def _whole_too(sets, *members):
    """Return the members of all subsets, with every sample of a set that is used whole."""
    resamples = len(_count(*members))
    return [
        np.ones((len(x), resamples), bool) if m is None else m
        for x, m in zip(sets, members, strict=True)
    ]


_ROUTES = (
    (frechet_distance, _Frechet),
    (kernel_distance, _KernelDistance),
    (squared_discrepancy, _KernelDistance),
    (precision_recall, _PrecisionRecall),
)
