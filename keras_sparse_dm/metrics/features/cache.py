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

# Part of the cache files' names; raise with every change of their layout.
CACHE_VERSION = 1


def cached_statistics(make, fingerprint, cache_dir=None):
    """Return the statistics of a data set's features, computed once and then read from disk.

    Args:
        make: Function without arguments, called if the cache has no file. Returns
            `FeatureStatistics`, features (samples, features), or an iterable of batches of
            features, which are not kept in memory.
        fingerprint: Everything that the features depend on: fingerprints or settings of data,
            preprocessing and network. Any value but None that JSON can write, such as
            `{"data": images.fingerprint, "size": 32, "network": weights_checksum}`.
        cache_dir: Folder of the cache; by default the one that the environment variable
            `KERAS_SPARSE_DM_CACHE` names, else the user's cache folder. If it cannot be written,
            the function warns and computes the statistics each time.

    Returns:
        `FeatureStatistics`. A damaged file causes a warning and is computed again.

    Raises:
        ValueError: if `fingerprint` is None or cannot be written as JSON, or if `make` returns
            something else.
    """
    cache = _cache_file("statistics", fingerprint, cache_dir)
    return _cached(cache, FeatureStatistics.read, make, _to_statistics, FeatureStatistics.write)


def cached_features(make, fingerprint, cache_dir=None):
    """Return the features of a data set, computed once and then read from disk.

    Args:
        make: Function without arguments, called if the cache has no file. Returns features
            (samples, features), or an iterable of batches of them.
        fingerprint: As in `cached_statistics`, which may be given the same value.
        cache_dir: As in `cached_statistics`.

    Returns:
        Float32 array (samples, features) in memory. A damaged file causes a warning and is
        computed again.

    Raises:
        ValueError: if `fingerprint` is None or cannot be written as JSON, or if `make` returns
            something else or values that are not finite.
    """
    cache = _cache_file("features", fingerprint, cache_dir)
    return _cached(cache, _read_features, make, _to_features, _write_features)


def _cache_file(kind, fingerprint, cache_dir):
    try:
        if fingerprint is None:
            raise TypeError("None identifies nothing")
        digits = fingerprint_of([CACHE_VERSION, fingerprint])
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`fingerprint` must identify data, preprocessing and network by a value that JSON can "
            f"write; received {fingerprint!r} ({error})."
        ) from error
    return cache_folder(cache_dir) / f"{kind}-v{CACHE_VERSION}-{digits}.npz"


def _cached(cache, read, make, convert, write):
    try:
        return read(cache)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # a damaged zip can raise almost any error
        warn_of_damage(cache, error, stacklevel=4)
    value = convert(make())
    try:
        # Written under another name and renamed, so that processes do not disturb each other.
        with new_cache_file(cache, leftovers=f"{cache.name.split('-')[0]}-v*.tmp") as file:
            write(value, file)
    except OSError as error:
        warnings.warn(
            f"the cache file {cache} cannot be written ({error}); its contents will be computed "
            "again next time; set another folder by cache_dir or KERAS_SPARSE_DM_CACHE",
            stacklevel=3,
        )
    return value


def _batches(made):
    """Return the result of `make` as an iterable of batches."""
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
            "`make` must return features, or batches with the same number of features; received "
            f"{len(batches)} batches, the first of shapes {shapes}."
        )
    # Check again: values too large for float32 are infinite now.
    return checked_features("make()", np.concatenate(batches), 1, copy=False)


def _read_features(path):
    with open_npz(path) as stored:
        features = stored["features"]
    if features.dtype != np.float32:
        raise ValueError(f"its features have type {features.dtype}, not float32")
    return checked_features("features", features, 1, copy=False)


def _write_features(features, file):
    np.savez(file, features=features)
