"""Mean and covariance of features, merged from batches."""

import contextlib
import zipfile
from pathlib import Path

import numpy as np

from keras_sparse_dm.files import whole_file
from keras_sparse_dm.metrics.features.checks import BLOCK, checked_features


class FeatureStatistics:
    """Number, mean and covariance of features, updated batch by batch in float64.

    The update of Chan et al. (1979) merges batches without differences of large sums. So batches of
    any size and order give the same result up to rounding, also for features far from zero.

    ```python
    statistics = FeatureStatistics()
    for images in batches:
        statistics.update(network(images))
    frechet_distance(statistics, FeatureStatistics.load("real.npz"))
    ```

    Attributes:
        count: Number of samples so far.
        mean: Float64 array (features,); None before the first update.
        scatter: Float64 array (features, features), the sum of the outer products of the
            samples' deviations from the mean; None before the first update.
    """

    def __init__(self):
        self.count = 0
        self.mean = None
        self.scatter = None

    def __repr__(self):
        return f"FeatureStatistics(count={self.count}, features={self.features})"

    @classmethod
    def from_features(cls, features):
        """Return the statistics of an array (samples, features) of 1 sample or more."""
        return cls().update(features)

    @property
    def features(self):
        """Number of features; None before the first update."""
        return None if self.mean is None else len(self.mean)

    @property
    def covariance(self):
        """Covariance, a float64 array (features, features), divided by count - 1.

        Raises:
            ValueError: for fewer than 2 samples.
        """
        if self.count < 2:
            raise ValueError(
                f"A covariance needs 2 samples or more; these statistics have {self.count}."
            )
        return self.scatter / (self.count - 1)

    def update(self, features):
        """Add samples.

        Args:
            features: Float array (samples, features) with any number of samples; not changed.

        Returns:
            The statistics themselves.

        Raises:
            ValueError: for an array of another shape, another number of features than before, or
                values that are not finite. The statistics then stay unchanged.
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
        """Add the samples of other statistics, such as those of another process.

        Args:
            other: `FeatureStatistics` with the same number of features, or without samples; not
                changed.

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
                f"`{argument}` must have {self.features} features, as before; received {features}."
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
        """Write the statistics to an `.npz` file in one step, without pickles.

        Args:
            path: The file, with its ending.

        Raises:
            ValueError: if there is no sample yet.
        """
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            self.write(file)

    def write(self, file):
        """Write the statistics to an open binary file."""
        if not self.count:
            raise ValueError("Statistics without samples cannot be saved; call `update` first.")
        np.savez(file, count=self.count, mean=self.mean, scatter=self.scatter)

    @classmethod
    def load(cls, path):
        """Return the `FeatureStatistics` in a file that `save` wrote.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or holds something else.
        """
        path = Path(path)
        try:
            return cls.read(path)
        except OSError:
            raise
        except Exception as error:  # a damaged zip can raise almost any error
            raise ValueError(
                f"`path` must be a file that `FeatureStatistics.save` wrote; {str(path)!r} "
                f"cannot be read ({type(error).__name__}: {error})."
            ) from error

    @classmethod
    def read(cls, path):
        """Return the `FeatureStatistics` in a file, with whatever error its contents raise."""
        with open_npz(path) as stored:
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


@contextlib.contextmanager
def open_npz(path):
    """Open an `.npz` file as a context that yields its arrays."""
    # Open the file once: another process may replace it between two accesses by path.
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is not an .npz file")
        file.seek(0)
        # Without pickles, reading runs no code; the zip's checksums detect damage.
        with np.load(file, allow_pickle=False) as stored:
            yield stored
