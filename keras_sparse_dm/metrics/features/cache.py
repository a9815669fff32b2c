"""Caches on disk for the features of a data set and for their statistics."""

import warnings

import numpy as np

from keras_sparse_dm.data.cache import (
    cache_folder,
    fingerprint_of,
    new_cache_file,
    warn_of_damage,
)
from keras_sparse_dm.metrics.features.checks import checked_features
from keras_sparse_dm.metrics.features.statistics import FeatureStatistics, open_npz

# Part of the cache files' names: raise it with every change of their layout.
CACHE_VERSION = 1


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
    return _cached(cache, FeatureStatistics.read, make, _to_statistics, FeatureStatistics.write)


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
    with open_npz(path) as stored:
        features = stored["features"]
    if features.dtype != np.float32:
        raise ValueError(f"its features are of type {features.dtype}, not float32")
    return checked_features("features", features, 1, copy=False)


def _write_features(features, file):
    np.savez(file, features=features)
