"""Streamed statistics against NumPy, their files, and caches of statistics and features."""

import os
import subprocess
import sys
import warnings

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_sparse_dm.metrics import FeatureStatistics, cached_features, cached_statistics

pytestmark = pytest.mark.filterwarnings("error")


def assert_statistics_of(statistics, features, rtol=1e-10):
    features = np.asarray(features, np.float64)
    expected = np.cov(features, rowvar=False).reshape(2 * features.shape[1:])
    assert statistics.count == len(features)
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0), rtol=rtol)
    np.testing.assert_allclose(
        statistics.covariance, expected, rtol=rtol, atol=rtol * np.abs(expected).max()
    )


# Streaming ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 1),
    st.integers(1, 5),
    st.sampled_from([0.0, 1e5]),
    st.integers(0, 2**31),
)
def test_batches_of_any_size_give_what_all_samples_give(sizes, features, offset, seed):
    rng = np.random.default_rng(seed)
    batches = [offset + rng.normal(size=(size, features)) for size in sizes]
    streamed, merged = FeatureStatistics(), FeatureStatistics()
    for batch in batches:
        assert streamed.update(batch) is streamed
        merged.merge(FeatureStatistics().update(batch))
    for statistics in (streamed, merged):
        assert_statistics_of(statistics, np.concatenate(batches), rtol=1e-9)


def test_more_samples_than_a_block_holds():
    features = np.random.default_rng(0).normal(3, 2, (10_000, 3)).astype(np.float32)
    statistics = FeatureStatistics.from_features(features)
    assert_statistics_of(statistics, features)
    assert repr(statistics) == "FeatureStatistics(count=10000, features=3)"


def test_far_from_zero_nothing_is_lost():
    # The sum of squares minus the squared sum has no correct digit here.
    features = 1e8 + np.random.default_rng(1).integers(0, 4, (1000, 4)).astype(float)
    statistics = FeatureStatistics()
    for start in range(0, 1000, 7):
        statistics.update(features[start : start + 7])
    expected = np.cov(features - 1e8, rowvar=False)
    np.testing.assert_allclose(statistics.covariance, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "convert",
    [
        np.float16,
        ml_dtypes.bfloat16,
        lambda x: x.astype(int),
        keras.ops.convert_to_tensor,
        lambda x: x.tolist(),
    ],
    ids=["float16", "bfloat16", "int", "tensor", "lists"],
)
def test_takes_arrays_of_any_real_type(convert):
    features = np.arange(12.0).reshape(6, 2) ** 2
    given = features.astype(convert) if isinstance(convert, type) else convert(features)
    assert_statistics_of(FeatureStatistics.from_features(given), features)


def test_what_is_merged_or_added_is_not_changed():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 5, 3))
    before = a.copy()
    first, second = FeatureStatistics.from_features(a), FeatureStatistics.from_features(b)
    total = FeatureStatistics().merge(first).merge(second)
    total.update(a)
    np.testing.assert_array_equal(a, before)
    assert_statistics_of(first, a)
    assert_statistics_of(second, b)


def test_refuses_other_features_and_stays_as_it_was():
    statistics = FeatureStatistics.from_features(np.eye(3))
    with pytest.raises(ValueError, match="`features` must have 3 features, .* received 2"):
        statistics.update(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="`other` must have 3 features, .* received 2"):
        statistics.merge(FeatureStatistics.from_features(np.zeros((4, 2))))
    with pytest.raises(ValueError, match="`other` must be `FeatureStatistics`; received 3"):
        statistics.merge(3)
    bad = np.zeros((5000, 3))
    bad[4500, 1] = np.inf
    with pytest.raises(ValueError, match="`features` must be finite.* in sample 4500"):
        statistics.update(bad)
    with pytest.raises(ValueError, match=r"`features` must be of shape .* shape \(3,\)"):
        statistics.update(np.zeros(3))
    assert_statistics_of(statistics, np.eye(3))


def test_a_covariance_needs_two_samples():
    with pytest.raises(ValueError, match="2 samples or more; these statistics have 1"):
        _ = FeatureStatistics.from_features(np.zeros((1, 2))).covariance


# Files -------------------------------------------------------------------------------------


def assert_same(a, b):
    assert a.count == b.count
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.scatter, b.scatter)


@pytest.mark.parametrize("name", ["real.npz", "real"])
def test_saved_and_loaded_is_the_same(tmp_path, name):
    statistics = FeatureStatistics.from_features(np.random.default_rng(3).normal(size=(9, 4)))
    statistics.save(tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    loaded = FeatureStatistics.load(str(tmp_path / name))
    assert_same(loaded, statistics)
    loaded.update(np.ones((2, 4)))  # continues where it was


def test_files_that_are_no_statistics_are_refused(tmp_path):
    path = tmp_path / "real.npz"
    with pytest.raises(FileNotFoundError):
        FeatureStatistics.load(path)
    with pytest.raises(ValueError, match="without samples cannot be saved"):
        FeatureStatistics().save(path)
    assert not path.exists()
    good = {"count": 3, "mean": np.zeros(2), "scatter": np.eye(2)}
    for bad, message in (
        ({"count": 2.5}, "not a positive integer"),
        ({"count": 0}, "not a positive integer"),
        ({"scatter": np.eye(3)}, r"of shapes \(2,\) and \(3, 3\)"),
        ({"mean": np.array([0, np.nan])}, "not finite float64"),
        ({"mean": np.array([{}, 1], dtype=object)}, "allow_pickle"),
    ):
        np.savez(path, **good | bad)
        with pytest.raises(ValueError, match=f"`path` must be .*real.npz.*{message}"):
            FeatureStatistics.load(path)
    np.savez(path, mu=np.zeros(2))
    with pytest.raises(ValueError, match="`path` must be a file that .*save"):
        FeatureStatistics.load(path)
    path.write_text("no zip")
    with pytest.raises(ValueError, match="it is not an .npz file"):
        FeatureStatistics.load(path)


# Caches ------------------------------------------------------------------------------------


class Maker:
    """Function that returns a given value and counts its calls."""

    def __init__(self, value):
        self.value = value
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.value


FEATURES = np.random.default_rng(4).normal(size=(20, 3)).astype(np.float32)
KEY = {"data": "abc", "size": 32, "network": "def"}


@pytest.mark.parametrize(
    "made",
    [
        FEATURES,
        [FEATURES[:7], FEATURES[7:]],
        FeatureStatistics.from_features(FEATURES),
    ],
    ids=["features", "batches", "statistics"],
)
def test_statistics_are_made_once(tmp_path, made):
    make = Maker(made)
    first = cached_statistics(make, KEY, tmp_path / "new" / "folder")
    second = cached_statistics(make, dict(reversed(KEY.items())), tmp_path / "new" / "folder")
    assert make.calls == 1
    assert_statistics_of(first, FEATURES)
    assert_same(first, second)


def test_features_are_made_once(tmp_path):
    make = Maker(FEATURES.astype(np.float64))
    first, second = (cached_features(make, KEY, tmp_path) for _ in range(2))
    batches = cached_features(lambda: (FEATURES[i : i + 6] for i in range(0, 20, 6)), 2, tmp_path)
    assert make.calls == 1
    for features in (first, second, batches):
        assert features.dtype == np.float32
        np.testing.assert_array_equal(features, FEATURES)


def test_another_fingerprint_is_made_anew(tmp_path):
    make = Maker(FEATURES)
    for key in (KEY, KEY | {"network": "other"}, "text", ["a", 1]):
        cached_statistics(make, key, tmp_path)
        cached_features(make, key, tmp_path)
    assert make.calls == 8
    assert len(os.listdir(tmp_path)) == 8


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", str(tmp_path))
    cached_features(Maker(FEATURES), KEY)
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("cached", [cached_statistics, cached_features])
@pytest.mark.parametrize("damage", ["cut", "flip", "text", "other"])
def test_damaged_files_are_made_anew_with_a_warning(tmp_path, cached, damage):
    make = Maker(FEATURES)
    made = cached(make, KEY, tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-30])
    elif damage == "flip":
        values = made if cached is cached_features else made.scatter
        content[content.index(values.tobytes()) + 5] ^= 1
        file.write_bytes(content)
    elif damage == "text":
        file.write_text("nothing")
    else:
        np.savez(file, features=np.zeros(3), count=1)
    with pytest.warns(UserWarning, match="cannot be read .* again") as caught:
        cached(make, KEY, tmp_path)
    assert [warning.filename for warning in caught] == [__file__]
    cached(make, KEY, tmp_path)
    assert make.calls == 2


@pytest.mark.parametrize("cached", [cached_statistics, cached_features])
def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, cached):
    (tmp_path / "file").write_text("")
    make = Maker(FEATURES)
    for _ in range(2):
        with pytest.warns(UserWarning, match="cannot be written .* cache_dir or KERAS_") as caught:
            cached(make, KEY, tmp_path / "file" / "folder")
        assert [warning.filename for warning in caught] == [__file__]
    assert make.calls == 2


def test_a_maker_that_fails_leaves_nothing(tmp_path):
    def batches():
        yield FEATURES
        raise RuntimeError("the network is gone")

    for cached in (cached_statistics, cached_features):
        with pytest.raises(RuntimeError, match="is gone"):
            cached(batches, KEY, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("cached", [cached_statistics, cached_features])
@pytest.mark.parametrize(
    ("made", "key", "message"),
    [
        (FEATURES, None, "`fingerprint` must identify .* received None"),
        (FEATURES, {"data": FEATURES}, "`fingerprint` must identify .* JSON"),
        (3, KEY, "`make` must return features .* received 3"),
        ([], KEY, "`make` must return"),
        (np.zeros((0, 3)), KEY, "1 sample"),
        ([FEATURES, FEATURES[:, :2]], KEY, "features"),
        (FEATURES * np.nan, KEY, "must be finite"),
    ],
    ids=["no key", "key of arrays", "a number", "nothing", "no sample", "mixed", "nan"],
)
def test_refuses(tmp_path, cached, made, key, message):
    with pytest.raises(ValueError, match=message):
        cached(Maker(made), key, tmp_path)
    assert os.listdir(tmp_path) == []


def test_values_too_large_for_float32_are_refused(tmp_path):
    with warnings.catch_warnings(), pytest.raises(ValueError, match="must be finite"):
        warnings.simplefilter("ignore", RuntimeWarning)
        cached_features(Maker(np.full((2, 2), 1e300)), KEY, tmp_path)


AT_ONCE = """
import sys, warnings
from pathlib import Path
import numpy as np
from keras_sparse_dm.metrics import cached_features, cached_statistics

warnings.simplefilter("error")
features = np.random.default_rng(4).normal(size=(20, 3)).astype(np.float32)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(30):
    assert cached_statistics(lambda: features, "key", sys.argv[1]).count == 20
    assert np.array_equal(cached_features(lambda: features, "key", sys.argv[1]), features)
    for file in Path(sys.argv[1]).glob("*.npz"):
        file.unlink(missing_ok=True)
"""


@pytest.mark.slow
def test_processes_at_once_do_not_disturb_each_other(tmp_path):
    command = [sys.executable, "-c", AT_ONCE, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert not list(tmp_path.glob("*.tmp"))
