import itertools

import numpy as np
import pytest

from keras_sparse_dm.data import PreparationSummary, SketchArrays
from keras_sparse_dm.data import batches as batching
from keras_sparse_dm.data.batches import (
    JITTER_SPACING,
    eval_batches,
    jitter_points,
    padding_waste,
    sample_lengths,
    steps_per_epoch,
    train_batches,
)


def make_arrays(n=203, seed=0):
    """Return sketches of 16 to 160 points; column 0 holds the sketch's number."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(16, 161, n)
    return SketchArrays.from_list(
        [
            np.column_stack([np.full(k, i + 1), rng.standard_normal((k, 2))])
            for i, k in enumerate(lengths)
        ]
    )


def batches_of(dataset):
    return [(b["points"], b["lengths"]) for b in dataset.as_numpy_iterator()]


def sketch_numbers(points):
    return points[:, 0, 0].astype(int) - 1


def assert_same_batches(a, b):
    assert len(a) == len(b)
    for (points_a, lengths_a), (points_b, lengths_b) in zip(a, b, strict=True):
        assert points_a.tobytes() == points_b.tobytes() and points_a.shape == points_b.shape
        np.testing.assert_array_equal(lengths_a, lengths_b)


# SketchArrays


def test_arrays_give_back_what_they_were_made_of():
    rng = np.random.default_rng(1)
    rows = [rng.standard_normal((k, 3)).astype(np.float32) for k in (4, 1, 9)]
    arrays = SketchArrays.from_list(rows, ["a", "b", "c"], "delta")
    assert len(arrays) == 3
    assert arrays.max_length == 9
    assert (arrays.representation, arrays.names) == ("delta", ("a", "b", "c"))
    for i in (0, 1, 2, -1):
        np.testing.assert_array_equal(arrays[i], rows[i])
    assert [len(row) for row in arrays] == [4, 1, 9]
    with pytest.raises(IndexError):
        arrays[3]
    chosen = arrays.subset([2, 0, 2])
    assert chosen.names == ("c", "a", "c")
    assert chosen.representation == "delta"
    for row, i in zip(chosen, (2, 0, 2), strict=True):
        np.testing.assert_array_equal(row, rows[i])
    assert arrays.take(2).names == ("a", "b")
    assert len(arrays.take(99)) == 3
    assert len(arrays.take(0)) == 0
    assert arrays.take(0).max_length == 0


def test_arrays_refuse_what_does_not_fit():
    points = np.zeros((5, 3), np.float32)
    with pytest.raises(ValueError, match="add up to 4, but points has 5"):
        SketchArrays(points, [4], ("a",))
    with pytest.raises(ValueError, match="each at least 1"):
        SketchArrays(points, [5, 0], ("a", "b"))
    with pytest.raises(ValueError, match="2 names for 1 sketches"):
        SketchArrays(points, [5], ("a", "b"))
    with pytest.raises(ValueError, match=r"shape \(5, 2\)"):
        SketchArrays(points[:, :2], [5], ("a",))
    with pytest.raises(ValueError, match="NaN"):
        SketchArrays(points * np.nan, [5], ("a",))
    with pytest.raises(ValueError, match=r"sketch 1 has shape \(2, 2\)"):
        SketchArrays.from_list([points, points[:2, :2]])
    with pytest.raises(ValueError, match="n=-1"):
        make_arrays(3).take(-1)


def test_summary_prints_counts_and_names():
    broken = tuple((f"{i}", f"{i}.svg: why") for i in range(7))
    text = str(PreparationSummary("KanjiVG", 1234, 1220, broken, ("x",) * 7, 300))
    assert text.startswith("KanjiVG: 1,234 sketches read, 1,220 kept, 7 too long (300 points")
    assert "7 broken (0.svg: why; 1.svg: why" in text
    assert "\n" not in text


# Training batches


def test_an_epoch_holds_full_batches_of_distinct_sketches_padded_with_zeros():
    arrays = make_arrays()
    batches = batches_of(train_batches(arrays, 16, seed=3, epochs=1))
    assert len(batches) == steps_per_epoch(arrays, 16) == 203 // 16
    seen = []
    for points, lengths in batches:
        assert points.dtype == np.float32
        assert lengths.dtype == np.int32
        assert points.shape == (16, lengths.max(), 3)
        for i, row, length in zip(sketch_numbers(points), points, lengths, strict=True):
            np.testing.assert_array_equal(row[:length], arrays[i])
            assert not row[length:].any()
            seen.append(i)
    assert len(set(seen)) == len(seen) == 12 * 16


@pytest.mark.slow
def test_a_stream_begun_later_gives_the_same_bits():
    arrays = make_arrays()
    steps = steps_per_epoch(arrays, 16)
    unbroken = list(
        itertools.islice(
            ((b["points"], b["lengths"]) for b in train_batches(arrays, 16, 5).as_numpy_iterator()),
            4 * steps,
        )
    )
    resumed = batches_of(train_batches(arrays, 16, 5, initial_epoch=2, epochs=2))
    assert_same_batches(unbroken[2 * steps :], resumed)
    assert_same_batches(unbroken, batches_of(train_batches(arrays, 16, 5, epochs=4)))


@pytest.mark.slow
def test_epochs_and_seeds_differ_in_order_and_in_company():
    arrays = make_arrays()
    steps = steps_per_epoch(arrays, 16)

    def companies(seed, epoch):
        batches = batches_of(train_batches(arrays, 16, seed, initial_epoch=epoch, epochs=1))
        return [frozenset(sketch_numbers(points)) for points, _ in batches]

    runs = [companies(0, 0), companies(0, 1), companies(1, 0), companies(1, 1)]
    for a, b in itertools.combinations(runs, 2):
        assert len(set(a) & set(b)) < steps / 2
    # Over some epochs every sketch is used, including those of the dropped remainder.
    seen = set().union(*(s for e in range(8) for s in companies(0, e)))
    assert seen == set(range(203))


def test_batches_are_not_served_by_length(monkeypatch):
    monkeypatch.setattr(batching, "POOL_BATCHES", 1000)
    batches = batches_of(train_batches(make_arrays(), 16, seed=0, epochs=1))
    longest = [lengths.max() for _, lengths in batches]
    assert longest != sorted(longest)
    # With a single pool, the sorted batches partition the lengths.
    batches.sort(key=lambda b: b[1].max())
    for (_, a), (_, b) in itertools.pairwise(batches):
        assert a.max() <= b.min()


@pytest.mark.slow
def test_element_spec_lets_one_trace_serve_all_batches():
    import tensorflow as tf

    def spec(batch_size):
        return {
            "points": tf.TensorSpec((batch_size, None, 3), tf.float32),
            "lengths": tf.TensorSpec((batch_size,), tf.int32),
        }

    arrays = make_arrays()
    endless = train_batches(arrays, 16, 0)
    assert endless.element_spec == spec(16)
    assert train_batches(arrays, 16, 0, jitter=0.1).element_spec == spec(16)
    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
    assert train_batches(arrays, 16, 0, epochs=3).cardinality() == 36
    evaluation = eval_batches(arrays, 16)  # whose last batch holds fewer
    assert evaluation.element_spec == spec(None)
    assert evaluation.cardinality() == 13


def test_padding_waste_counts_the_zeros_of_real_batches():
    arrays = make_arrays()
    batches = batches_of(train_batches(arrays, 16, seed=2, epochs=2))
    total = sum(points.shape[0] * points.shape[1] for points, _ in batches)
    padding = sum((points[:, :, 0] == 0).sum() for points, _ in batches)
    assert padding_waste(arrays, 16, seed=2, epochs=2) == pytest.approx(padding / total)
    assert padding / total < 0.15
    # Without pools the waste would be large, so the measure is meaningful.
    lengths = arrays.lengths[: 12 * 16].reshape(12, 16)
    assert 1 - lengths.sum() / (lengths.max(axis=1).sum() * 16) > 0.3


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (0, "batch_size=0"),
        (-4, "batch_size=-4"),
        (2.5, "batch_size=2.5"),
        (204, "batch_size=204 is more than the 203 sketches"),
    ],
)
def test_bad_batch_sizes_are_named(batch_size, message):
    arrays = make_arrays()
    for call in (
        lambda: train_batches(arrays, batch_size, 0),
        lambda: steps_per_epoch(arrays, batch_size),
        lambda: padding_waste(arrays, batch_size),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_other_bad_arguments_are_named():
    arrays = make_arrays(20)
    with pytest.raises(ValueError, match="seed=-1"):
        train_batches(arrays, 4, -1)
    with pytest.raises(ValueError, match="initial_epoch=-1"):
        train_batches(arrays, 4, 0, initial_epoch=-1)
    with pytest.raises(ValueError, match="epochs=0"):
        train_batches(arrays, 4, 0, epochs=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        eval_batches(arrays, 0)
    with pytest.raises(ValueError, match="no sketch"):
        eval_batches(arrays.take(0), 4)


# Evaluation batches and lengths


def test_eval_batches_hold_every_sketch_once_in_order_of_length():
    arrays = make_arrays()
    batches = batches_of(eval_batches(arrays, 32))
    assert [len(lengths) for _, lengths in batches] == [32] * 6 + [11]
    numbers = np.concatenate([sketch_numbers(points) for points, _ in batches])
    assert sorted(numbers) == list(range(203))
    lengths = np.concatenate([lengths for _, lengths in batches])
    assert (np.diff(lengths) >= 0).all()
    np.testing.assert_array_equal(lengths, arrays.lengths[numbers])
    assert_same_batches(batches, batches_of(eval_batches(arrays, 32)))
    assert [len(lengths) for _, lengths in batches_of(eval_batches(arrays, 500))] == [203]


def test_sample_lengths_follow_the_training_lengths():
    arrays = make_arrays(50)
    lengths = sample_lengths(arrays, 20_000, seed=7)
    assert lengths.dtype == np.int32
    assert set(lengths) == set(arrays.lengths)
    assert lengths.mean() == pytest.approx(arrays.lengths.mean(), rel=0.02)
    np.testing.assert_array_equal(lengths, sample_lengths(arrays, 20_000, seed=7))
    assert (lengths != sample_lengths(arrays, 20_000, seed=8)).any()
    with pytest.raises(ValueError, match="n=-1"):
        sample_lengths(arrays, -1, 0)
    with pytest.raises(ValueError, match="no sketch"):
        sample_lengths(arrays.take(0), 1, 0)


# Labels


def test_labels_go_with_their_sketches():
    rows = [np.zeros((k, 3)) for k in (1, 2, 3)]
    arrays = SketchArrays.from_list(rows, labels=["cat", "crab", "cat"])
    assert arrays.subset([2, 1]).labels == ("cat", "crab")
    assert SketchArrays.from_list(rows).labels == ("", "", "")
    with pytest.raises(ValueError, match="labels holds 2 labels for 3 sketches"):
        SketchArrays.from_list(rows, labels=["cat", "crab"])


# Augmentation


def test_jitter_moves_points_smoothly_and_nothing_else():
    rng = np.random.default_rng(0)
    lengths = np.array([200, 37, 1])
    points = np.zeros((3, 200, 3), "float32")
    for row, length in zip(points, lengths, strict=True):
        row[:length] = rng.standard_normal((length, 3))
    bent = jitter_points(points, lengths, 0.5, (1, 2)).numpy()
    np.testing.assert_array_equal(bent[:, :, 2], points[:, :, 2])
    for row, before, length in zip(bent, points, lengths, strict=True):
        assert not row[length:].any()
        assert (row[:length, :2] != before[:length, :2]).all()
    noise = (bent - points)[0, :, :2]
    # The noise is linear between the knots.
    assert np.abs(np.diff(noise, 2, axis=0).reshape(-1, 2)[JITTER_SPACING:][:6]).max() < 1e-5
    np.testing.assert_array_equal(bent, jitter_points(points, lengths, 0.5, (1, 2)))
    assert (jitter_points(points, lengths, 0.5, (1, 3)).numpy() != bent).any()
    np.testing.assert_array_equal(jitter_points(points, lengths, 0.0, (1, 2)), points)


def test_jitter_has_the_strength_asked_for():
    points = np.zeros((400, 64, 3), "float32")
    noise = jitter_points(points, np.full(400, 64), 0.3, (5, 6)).numpy()[:, ::JITTER_SPACING, :2]
    assert noise.std() == pytest.approx(0.3, rel=0.03)
    assert abs(noise.mean()) < 0.01


def test_jitter_of_steps_is_that_of_the_positions_they_lead_to():
    rng = np.random.default_rng(0)
    positions = rng.standard_normal((2, 50, 3)).astype("float32")
    steps = positions.copy()
    steps[:, 1:, :2] -= positions[:, :-1, :2]
    lengths = np.array([50, 30])
    bent = jitter_points(positions, lengths, 0.4, (7, 8)).numpy()
    bent_steps = jitter_points(steps, lengths, 0.4, (7, 8), "delta").numpy()
    for i, length in enumerate(lengths):
        led_to = np.cumsum(bent_steps[i, :length, :2], axis=0)
        np.testing.assert_allclose(led_to, bent[i, :length, :2], atol=1e-5)
    np.testing.assert_array_equal(bent_steps[:, :, 2], steps[:, :, 2])


@pytest.mark.slow
def test_jittered_batches_differ_by_epoch_and_resume_to_the_same():
    arrays = make_arrays(60)
    steps = steps_per_epoch(arrays, 16)
    plain = batches_of(train_batches(arrays, 16, 3, epochs=3))
    bent = batches_of(train_batches(arrays, 16, 3, epochs=3, jitter=0.2))
    resumed = batches_of(train_batches(arrays, 16, 3, initial_epoch=1, epochs=2, jitter=0.2))
    assert_same_batches(bent[steps:], resumed)
    noises = []
    for (a, lengths), (b, same) in zip(plain, bent, strict=True):
        np.testing.assert_array_equal(lengths, same)
        noises.append((b - a)[0, : lengths[0], 0])
    length = min(map(len, noises))
    assert len({noise[:length].round(4).tobytes() for noise in noises}) == 3 * steps
    # Evaluation is never jittered.
    assert all(np.isin(sketch_numbers(p), range(60)).all() for p, _ in plain)


@pytest.mark.parametrize("jitter", [-0.1, float("nan")])
def test_bad_jitter_is_named(jitter):
    with pytest.raises(ValueError, match="jitter="):
        train_batches(make_arrays(60), 16, 0, jitter=jitter)


# Shards


@pytest.mark.slow
def test_workers_share_the_batches_of_each_epoch():
    arrays = make_arrays(203)
    whole = batches_of(train_batches(arrays, 16, 9, epochs=2, jitter=0.1))
    steps = steps_per_epoch(arrays, 16)
    assert steps % 5 == 2
    shards = [
        batches_of(train_batches(arrays, 16, 9, epochs=2, jitter=0.1, num_shards=5, shard=i))
        for i in range(5)
    ]
    for i, shard in enumerate(shards):
        expected = whole[:steps][i::5][: steps // 5] + whole[steps:][i::5][: steps // 5]
        assert_same_batches(shard, expected)
    for change in ({"num_shards": 0}, {"num_shards": 2, "shard": 2}, {"shard": -1}):
        with pytest.raises(ValueError, match="shard"):
            train_batches(arrays, 16, 9, **change)
    with pytest.raises(ValueError, match="num_shards=99 is more than the 12 batches"):
        train_batches(arrays, 16, 9, num_shards=99)
