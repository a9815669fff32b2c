"""Features of images or sketches: their mean and covariance from batches, and caches of both.

Features are what a network makes of each sample, arrays of shape (samples, features). The
Fréchet distance needs only their number, mean and covariance, which `FeatureStatistics` keeps;
the other measures need the features. Those of a real data set never change, so that
`cached_statistics` and `cached_features` keep them on disk.
"""

import contextlib
import warnings
import zipfile
from pathlib import Path

import numpy as np

from keras_sparse_dm.data.cache import (
    cache_folder,
    fingerprint_of,
    new_cache_file,
    warn_of_damage,
)
from keras_sparse_dm.files import whole_file

# Part of the cache files' names: raise it with every change of their layout.
CACHE_VERSION = 1
# Rows that are centred at once, which bounds the memory beside the features themselves.
BLOCK = 4096


class FeatureStatistics:
    """Number, mean and covariance of features that come in batches, in float64.

    Batches are merged by the update of Chan et al. (1979), which never takes the difference of
    large sums: batches of any size and in any order give the same to rounding, also for
    features far from zero.

    ```python
    statistics = FeatureStatistics()
    for images in batches:
        statistics.update(network(images))
    frechet_distance(statistics, FeatureStatistics.load("real.npz"))
    ```

    Attributes:
        count: Number of samples so far.
        mean: Float64 array (features,); None before the first update.
        scatter: Float64 array (features, features), the sum over samples of the outer product
            of their deviation from the mean; None before the first update.
    """

    def __init__(self):
        self.count = 0
        self.mean = None
        self.scatter = None

    def __repr__(self):
        return f"FeatureStatistics(count={self.count}, features={self.features})"

    @classmethod
    def from_features(cls, features):
        """Statistics of an array (samples, features) of at least one sample."""
        return cls().update(features)

    @property
    def features(self):
        """Number of features of a sample; None before the first update."""
        return None if self.mean is None else len(self.mean)

    @property
    def covariance(self):
        """Float64 array (features, features), divided by count - 1.

        Raises:
            ValueError: for fewer than 2 samples.
        """
        if self.count < 2:
            raise ValueError(
                f"A covariance needs 2 samples or more; these statistics are of {self.count}."
            )
        return self.scatter / (self.count - 1)

    def update(self, features):
        """Adds samples.

        Args:
            features: Float array (samples, features) of any number of samples, computed with
                in float64; not changed.

        Returns:
            The statistics themselves.

        Raises:
            ValueError: for an array of another shape, another number of features than before,
                or values that are not finite. The statistics are then as before.
        """
        features = checked_features("features", features, 0, copy=False)
        self._check_width("features", features.shape[1])
        for start in range(0, len(features), BLOCK):
            block = np.asarray(features[start : start + BLOCK], np.float64)
            mean = block.mean(axis=0)
            block = block - mean
            self._add(len(block), mean, block.T @ block)
        return self

    def merge(self, other):
        """Adds the samples of other statistics, such as another process's.

        Args:
            other: `FeatureStatistics` of as many features, or of no sample; not changed.

        Returns:
            The statistics themselves.

        Raises:
            ValueError: for anything else.
        """
        if not isinstance(other, FeatureStatistics):
            raise ValueError(f"`other` must be `FeatureStatistics`; received {other!r}.")
        if other.count:
            self._check_width("other", other.features)
            self._add(other.count, other.mean, other.scatter)
        return self

    def _check_width(self, argument, features):
        if self.mean is not None and features != self.features:
            raise ValueError(
                f"`{argument}` must be of {self.features} features as those before; received "
                f"{features}."
            )

    def _add(self, count, mean, scatter):
        if not self.count:
            self.count, self.mean, self.scatter = count, mean.copy(), scatter.copy()
            return
        total = self.count + count
        difference = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(difference, difference) * (self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total

    def save(self, path):
        """Writes an `.npz` file, whole or not at all, without pickles.

        Args:
            path: The file, named as it is to be called.

        Raises:
            ValueError: if there is no sample yet.
        """
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            self._write(file)

    def _write(self, file):
        if not self.count:
            raise ValueError("Statistics of no sample cannot be saved; call `update` first.")
        np.savez(file, count=self.count, mean=self.mean, scatter=self.scatter)

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Args:
            path: The file.

        Returns:
            The `FeatureStatistics`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or holds something else.
        """
        path = Path(path)
        try:
            return cls._read(path)
        except OSError:
            raise
        except Exception as error:  # a damaged zip raises almost anything
            raise ValueError(
                f"`path` must be a file that `FeatureStatistics.save` wrote; {str(path)!r} "
                f"cannot be read ({type(error).__name__}: {error})."
            ) from error

    @classmethod
    def _read(cls, path):
        # The zip's checksums tell damage; no pickles, so reading runs no code.
        with _open_npz(path) as stored:
            count, mean, scatter = (stored[name] for name in ("count", "mean", "scatter"))
        if count.shape or count.dtype.kind not in "iu" or count < 1:
            raise ValueError("its number of samples is not a positive integer")
        if mean.ndim != 1 or not len(mean) or scatter.shape != 2 * mean.shape:
            raise ValueError(f"mean and scatter are of shapes {mean.shape} and {scatter.shape}")
        for array in (mean, scatter):
            if array.dtype != np.float64 or not np.isfinite(array).all():
                raise ValueError("mean and scatter are not finite float64 numbers")
        statistics = cls()
        statistics.count, statistics.mean, statistics.scatter = int(count), mean, scatter
        return statistics


def checked_features(argument, features, minimum=1, copy=True):
    """Features as an array, with errors that name the argument.

    Args:
        argument: The argument's name.
        features: What was given for it.
        minimum: The smallest number of samples.
        copy: Whether to turn the values into float64; otherwise any real type stays.

    Returns:
        The array (samples, features).

    Raises:
        ValueError: for other shapes, fewer samples, values that are no real numbers or not
            finite.
    """
    try:
        features = np.asarray(features)
        if features.dtype.kind not in "fiub":
            # Types that NumPy does not know itself, as bfloat16.
            features = features.astype(np.float64, casting="safe")
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{argument}` must be an array of real numbers; {error}.") from error
    if features.ndim != 2 or len(features) < minimum or not features.shape[1]:
        samples = f" with {minimum} samples or more" if minimum else ""
        raise ValueError(
            f"`{argument}` must be of shape (samples, features){samples}; received shape "
            f"{features.shape}."
        )
    for start in range(0, len(features), BLOCK):
        finite = np.isfinite(features[start : start + BLOCK]).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"`{argument}` must be finite; it holds NaN or infinite values, first in sample "
                f"{start + int(np.argmin(finite))}."
            )
    return features.astype(np.float64, copy=False) if copy else features


def checked_pair(names, a, b, minimum=1):
    """Two sets of features as float64 arrays of as many features; see `checked_features`."""
    a, b = (checked_features(name, x, minimum) for name, x in zip(names, (a, b), strict=True))
    check_widths(names, a.shape[1], b.shape[1])
    return a, b


def check_widths(names, a, b):
    """Raises the ValueError that says so where two sets are not of as many features."""
    if a != b:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must have as many features; received {a} and {b}."
        )


def checked_integer(argument, value, minimum):
    """`value` as an int; a ValueError that names the argument if it is none, or too small."""
    try:
        if isinstance(value, (bool, str)) or int(value) != value or value < minimum:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"`{argument}` must be an integer, {minimum} or more; received {value!r}."
        ) from None
    return int(value)


# Caches ------------------------------------------------------------------------------------


def cached_statistics(make, fingerprint, cache_dir=None):
    """Statistics of a data set's features: made once, later read from disk.

    Args:
        make: Called without arguments where the cache holds nothing. Returns
            `FeatureStatistics`, or features (samples, features), or an iterable of batches of
            features, of which the statistics are then taken without keeping them.
        fingerprint: What the features depend on: data, preprocessing and network, each by its
            own fingerprint or settings. Anything but None that JSON can write, such as
            `{"data": images.fingerprint, "size": 32, "network": weights_checksum}`.
        cache_dir: Folder for the cache; by default what the environment variable
            `KERAS_SPARSE_DM_CACHE` names, else the user's cache folder. Where it cannot be
            written, a warning says so and the statistics are made each time.

    Returns:
        The `FeatureStatistics`. A damaged file gives a warning and is made anew.

    Raises:
        ValueError: if `fingerprint` is None or cannot be written as JSON, or `make` gives
            something else.
    """
    cache = _cache_file("statistics", fingerprint, cache_dir)
    return _cached(cache, FeatureStatistics._read, make, _to_statistics, FeatureStatistics._write)


def cached_features(make, fingerprint, cache_dir=None):
    """Features of a data set: made once, later read from disk.

    Args:
        make: Called without arguments where the cache holds nothing. Returns features
            (samples, features), or an iterable of batches of them.
        fingerprint: As for `cached_statistics`. Both may be given the same.
        cache_dir: As for `cached_statistics`.

    Returns:
        The features, a float32 array (samples, features) in memory. A damaged file gives a
        warning and is made anew.

    Raises:
        ValueError: if `fingerprint` is None or cannot be written as JSON, or `make` gives
            something else or values that are not finite.
    """
    cache = _cache_file("features", fingerprint, cache_dir)
    return _cached(cache, _read_features, make, _to_features, _write_features)


def _cache_file(kind, fingerprint, cache_dir):
    try:
        if fingerprint is None:
            raise TypeError("None says nothing of them")
        digits = fingerprint_of([CACHE_VERSION, fingerprint])
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`fingerprint` must be what data, preprocessing and network are told by, as JSON can "
            f"write it; received {fingerprint!r} ({error})."
        ) from error
    return cache_folder(cache_dir) / f"{kind}-v{CACHE_VERSION}-{digits}.npz"


def _cached(cache, read, make, convert, write):
    try:
        return read(cache)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # a damaged zip raises almost anything; the remedy is the same
        warn_of_damage(cache, error, stacklevel=4)
    value = convert(make())
    try:
        # Under a name of its own and renamed: whole, whoever else writes it at the same time.
        with new_cache_file(cache, leftovers=f"{cache.name.split('-')[0]}-v*.tmp") as file:
            write(value, file)
    except OSError as error:
        warnings.warn(
            f"the cache file {cache} cannot be written ({error}); its contents will be made "
            "again next time; cache_dir or KERAS_SPARSE_DM_CACHE sets another folder",
            stacklevel=3,
        )
    return value


@contextlib.contextmanager
def _open_npz(path):
    """Context that gives the arrays of an `.npz` file."""
    # Opened once: between two looks at the path another process may put a file there.
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz file")
        file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            yield stored


def _batches(made):
    """What `make` gave, as an iterable of batches."""
    if hasattr(made, "shape"):
        return [made]
    try:
        return iter(made)
    except TypeError:
        raise ValueError(
            "`make` must return features (samples, features) or an iterable of batches of them; "
            f"received {made!r}."
        ) from None


def _to_statistics(made):
    if isinstance(made, FeatureStatistics):
        statistics = made
    else:
        statistics = FeatureStatistics()
        for batch in _batches(made):
            statistics.update(batch)
    if not statistics.count:
        raise ValueError("`make` must return statistics or features of 1 sample or more.")
    return statistics


def _to_features(made):
    batches = [
        checked_features("make()", batch, 0, copy=False).astype(np.float32)
        for batch in _batches(made)
    ]
    if len({batch.shape[1] for batch in batches}) != 1:
        shapes = [batch.shape for batch in batches[:3]]
        raise ValueError(
            "`make` must return features, or batches that are of as many features each; received "
            f"{len(batches)} batches, the first of shapes {shapes}."
        )
    # Once more: values too large for float32 are infinite by now.
    return checked_features("make()", np.concatenate(batches), 1, copy=False)


def _read_features(path):
    with _open_npz(path) as stored:
        features = stored["features"]
    if features.dtype != np.float32:
        raise ValueError(f"its features are of type {features.dtype}, not float32")
    return checked_features("features", features, 1, copy=False)


def _write_features(features, file):
    np.savez(file, features=features)
