"""Updates of one kernel, compared with the original RigL program and a sort in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

from keras_sparse_dm.masks import tensorflow as on_tensorflow
from keras_sparse_dm.masks.drop_grow import random_mask
from keras_sparse_dm.masks.top_k import top_k_masks
from keras_sparse_dm.sparsity import prune_and_grow, top_k_mask

# Few shapes, because each traces a compiled function.
SHAPES = [(1, 1), (2, 3), (5, 8), (3, 3, 2, 4)]
SPECIAL = np.float32(
    [0, -0.0, 1e-45, -1e-45, 3e-41, 1e-38, 1.17549435e-38, 1, -1, 1, 1e30, 3.4e38, -3.4e38, np.inf]
)

MODES = {
    "eager": lambda f: f,
    "graph": lambda f: tf.function(f, autograph=False),
    "xla": lambda f: tf.function(f, autograph=False, jit_compile=True),
}


def largest_first(scores, eligible):
    """Return the positions of the eligible scores, largest first, ties in row-major order.

    Compares the scores' bits, which do not depend on the processor's rounding mode.
    """
    keys = np.abs(scores.ravel()).view("int32").astype("int64")
    keys[~eligible.ravel()] = -1
    return np.argsort(-keys, kind="stable")


def update_by_sort(weights, mask, growth_score, prune_rate):
    """Return the update of DESIGN.md, computed with a stable sort."""
    active = int(mask.sum())
    exchanged = int(np.float32(active) * np.float32(prune_rate))
    kept = np.zeros(mask.size, bool)
    kept[largest_first(weights, mask)[: active - exchanged]] = True
    new = kept.copy()
    new[largest_first(growth_score, ~kept.reshape(mask.shape))[:exchanged]] = True
    new = new.reshape(mask.shape)
    return np.where(new & mask, weights, np.float32(0)), new, new & ~mask


def arrays(shape, elements):
    return hnp.arrays(np.float32, shape, elements=elements, fill=st.nothing())


floats = st.one_of(
    st.sampled_from(SPECIAL.tolist()).map(lambda v: float(np.float32(v))),
    st.floats(-2, 2, width=32),
    st.integers(-3, 3).map(float),
)


@st.composite
def cases(draw):
    shape = draw(st.sampled_from(SHAPES))
    mask = draw(hnp.arrays(bool, shape))
    weights = np.where(mask, draw(arrays(shape, floats)), np.float32(0))
    growth = np.abs(draw(arrays(shape, floats)))
    rate = draw(st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 1e-6, 0.3, 0.5, 1.0])))
    return weights, mask, growth, np.float32(rate)


@pytest.fixture(scope="module", params=["graph", "xla"])
def compiled_update(request):
    return MODES[request.param](prune_and_grow)


@pytest.mark.slow
@pytest.mark.cases(1)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_compiled_update_is_that_of_a_stable_sort(compiled_update, case):
    check_update(compiled_update, case)


# Without shrinking, which takes a minute of eager calls.
@settings(max_examples=12, deadline=None, phases=(Phase.reuse, Phase.generate))
@given(case=cases())
def test_eager_update_is_that_of_a_stable_sort(case):
    check_update(prune_and_grow, case)


@pytest.mark.cases(1)
@pytest.mark.parametrize("mode", MODES)
def test_denormals_are_told_apart(mode):
    mask = np.array([[True, True, True, False, False, False]])
    weights = np.float32([[1e-40, 2e-40, 3e-40, 0, 0, 0]])
    growth = np.float32([[0, 0, 0, 1e-42, 3e-42, 2e-42]])
    check_update(MODES[mode](prune_and_grow), (weights, mask, growth, np.float32(0.34)))


def check_update(update, case):
    weights, mask, growth, rate = case
    new_weights, new_mask, grown = (np.asarray(v) for v in update(*map(tf.constant, case)))
    expected_weights, expected_mask, expected_grown = update_by_sort(*case)
    np.testing.assert_array_equal(new_mask, expected_mask)
    np.testing.assert_array_equal(grown, expected_grown)
    # Compared as bits: kept weights, even denormals, are untouched; zeros may differ in sign.
    survived = expected_mask & mask
    np.testing.assert_array_equal(
        new_weights[survived].view("int32"), weights[survived].view("int32")
    )
    assert not np.any(new_weights[~survived].view("int32"))
    assert new_mask.sum() == mask.sum()


@pytest.mark.slow
@pytest.mark.cases(7)
@pytest.mark.parametrize("name", ["dense", "conv", "tiny"])
@pytest.mark.parametrize("mode", MODES)
def test_update_agrees_with_the_original_program(reference, name, mode):
    answers = {
        key.removeprefix(f"update_{name}_"): value
        for key, value in reference.arrays("rigl.npz").items()
        if key.startswith(f"update_{name}_")
    }
    mask = answers["mask_before"].astype(bool)
    weights, new_mask, grown = MODES[mode](prune_and_grow)(
        tf.constant(answers["weights_before"] * mask),
        tf.constant(mask),
        tf.constant(np.abs(answers["dense_gradient"])),
        tf.constant(answers["fraction"]),
    )
    weights, new_mask, grown = np.asarray(weights), np.asarray(new_mask), np.asarray(grown)
    np.testing.assert_array_equal(new_mask, answers["mask_after"].astype(bool))
    np.testing.assert_array_equal(weights, answers["weights_after"] * new_mask)
    np.testing.assert_array_equal(grown, new_mask & ~mask)
    # Momentum is kept for weights that stay active, and zero elsewhere.
    momentum = np.where(new_mask & mask, answers["momentum_before"], 0)
    np.testing.assert_array_equal(momentum, np.where(new_mask, answers["momentum_after"], 0))
    if name != "tiny":
        assert grown.any()


def test_a_rate_that_rounds_to_no_weight_changes_nothing():
    rng = np.random.default_rng(0)
    mask = rng.random((6, 10)) < 0.5
    weights = np.where(mask, rng.normal(size=mask.shape), 0).astype("float32")
    growth = rng.random(mask.shape).astype("float32")
    for rate in (0.0, 1e-9, 0.999 / mask.sum()):
        new_weights, new_mask, grown = prune_and_grow(weights, mask, growth, rate)
        np.testing.assert_array_equal(new_weights, weights)
        np.testing.assert_array_equal(new_mask, mask)
        assert not np.any(grown)
    _, new_mask, _ = prune_and_grow(weights, mask, np.where(mask, 0, 1), 1.001 / mask.sum())
    assert (np.asarray(new_mask) != mask).sum() == 2  # one dropped, one grown


def test_a_dropped_weight_may_grow_back_and_keeps_its_value():
    weights = np.float32([[1, 2, 3, 0]])
    mask = np.array([[True, True, True, False]])
    new, new_mask, grown = prune_and_grow(weights, mask, np.float32([[9, 0, 0, 1]]), 0.4)
    np.testing.assert_array_equal(new, weights)
    np.testing.assert_array_equal(new_mask, mask)
    assert not np.any(grown)


def test_an_active_zero_is_not_taken_for_a_pruned_weight():
    weights = np.float32([[0, -0.0, 0, 0, 0]])
    mask = np.array([[False, True, False, True, True]])
    _, new_mask, _ = prune_and_grow(weights, mask, np.float32([[0, 0, 1, 0, 0]]), 0.34)
    np.testing.assert_array_equal(new_mask, [[False, True, True, True, False]])


@pytest.mark.parametrize("fill", [0, 1])
def test_full_and_empty_masks_stay(fill):
    mask = np.full((3, 4), bool(fill))
    weights = np.full((3, 4), np.float32(fill) * 0.5)
    new, new_mask, grown = prune_and_grow(weights, mask, np.ones((3, 4), "float32"), 0.7)
    np.testing.assert_array_equal(new_mask, mask)
    np.testing.assert_array_equal(new, weights)
    assert not np.any(grown)


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_types(dtype):
    rng = np.random.default_rng(3)
    mask = rng.random((7, 9)) < 0.6
    # All these types hold the values exactly, so results are equal.
    weights = np.where(mask, rng.integers(-99, 99, mask.shape) / 64, 0).astype("float32")
    growth = (rng.integers(0, 99, mask.shape) / 64).astype("float32")
    new, new_mask, _ = prune_and_grow(
        tf.cast(weights, dtype), mask, tf.cast(growth, dtype), prune_rate=0.37
    )
    assert new.dtype == dtype
    expected_weights, expected_mask, _ = update_by_sort(weights, mask, growth, 0.37)
    np.testing.assert_array_equal(new_mask, expected_mask)
    np.testing.assert_array_equal(np.asarray(new, "float32"), expected_weights)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), 2])
def test_prune_rate_outside_the_range_raises(rate):
    ones = np.ones((2, 2), "float32")
    with pytest.raises(ValueError, match=r"`prune_rate` must be in \[0, 1\]; received"):
        prune_and_grow(ones, ones.astype(bool), ones, rate)


def test_shapes_that_differ_raise():
    ones = np.ones((2, 2), "float32")
    with pytest.raises(ValueError, match=r"equal shapes; received \(2, 2\), \(2, 2\) and \(4,\)"):
        prune_and_grow(ones, ones.astype(bool), ones.ravel(), 0.5)


@pytest.fixture(scope="module")
def compiled_top_k():
    return tf.function(top_k_mask, autograph=False)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    scores=arrays((23,), floats).map(np.abs),
    eligible=hnp.arrays(bool, 23),
    share=st.floats(0, 1),
)
def test_top_k_marks_the_first_of_a_stable_sort(compiled_top_k, scores, eligible, share):
    k = round(share * eligible.sum())
    tensors = [tf.constant(v) for v in (scores, k, eligible)]
    expected = np.zeros(23, bool)
    expected[largest_first(scores, eligible)[:k]] = True
    np.testing.assert_array_equal(compiled_top_k(*tensors), expected)
    everywhere = np.zeros(23, bool)
    everywhere[largest_first(scores, np.ones(23, bool))[:k]] = True
    np.testing.assert_array_equal(compiled_top_k(*tensors[:2]), everywhere)


def marked_by_sort(scores, k, eligible):
    """Return `top_k_masks` by a stable sort; NaN ranks by its bits, above infinity."""
    flat = np.concatenate([s.ravel() for s in scores])
    chosen = largest_first(flat, np.concatenate([e.ravel() for e in eligible]))[:k]
    marked = np.zeros(flat.size, bool)
    marked[chosen] = True
    parts = np.split(marked, np.cumsum([s.size for s in scores])[:-1])
    return [m.reshape(s.shape) for m, s in zip(parts, scores, strict=True)]


# Two ways to find the threshold: a histogram on TensorFlow, counts on other backends.
@pytest.fixture(
    scope="module",
    params=[(search, mode) for search in ("histogram", "counts") for mode in ("graph", "xla")],
    ids="-".join,
)
def compiled_top_k_masks(request):
    search, mode = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_tensorflow, "has_fast_bincount", lambda: search == "histogram")
        on_tensorflow.shared_select.cache_clear()
        yield MODES[mode](top_k_masks)
        on_tensorflow.shared_select.cache_clear()


@pytest.mark.slow
@pytest.mark.cases(1)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_top_k_of_several_arrays_is_that_of_one_sort(compiled_top_k_masks, data):
    shapes = [(4, 3), (), (0, 2), (7,)]
    values = st.one_of(floats, st.just(float("nan")), st.just(float("-nan")))
    scores = [np.abs(data.draw(arrays(shape, values))) for shape in shapes]
    eligible = [data.draw(hnp.arrays(bool, shape)) for shape in shapes]
    some = [*eligible[:3], np.ones(7, bool)]
    for given_eligible, everywhere in ((eligible, eligible), ([*eligible[:3], None], some)):
        k = data.draw(st.integers(0, int(sum(e.sum() for e in everywhere))))
        masks = compiled_top_k_masks(
            [tf.constant(s) for s in scores],
            tf.constant(k),
            [e if e is None else tf.constant(e) for e in given_eligible],
        )
        for mask, expected in zip(masks, marked_by_sort(scores, k, everywhere), strict=True):
            np.testing.assert_array_equal(mask, expected)


def large_scores():
    """Return large arrays whose distributions mislead sampling and interpolation."""
    rng = np.random.default_rng(0)
    normal = np.abs(rng.normal(size=(300, 211))).astype("float32")
    every_23rd = np.arange(normal.size).reshape(normal.shape) % 23 == 0
    noise = rng.random(normal.shape) < 0.5
    return {
        "normal": normal,
        "ties": np.round(normal * 8),
        "constant": np.ones_like(normal),
        "all zero": np.zeros_like(normal),
        "mostly zero": np.where(every_23rd, normal, np.float32(0)),
        "two scales": np.where(noise, normal * np.float32(1e-20), normal * np.float32(1e20)),
        "heavy tail": np.exp(20 * normal - 40).astype("float32"),
        "infinite": np.where(noise, np.float32(np.inf), normal),
        "nan": np.where(every_23rd, np.float32(np.nan), normal),
    }


@pytest.mark.tensorflow
@pytest.mark.cases(1)
@pytest.mark.parametrize("name", large_scores())
def test_top_k_of_many_scores(compiled_top_k_masks, name):
    scores = large_scores()[name]
    eligible = np.random.default_rng(1).random(scores.shape) < 0.7
    parts = [scores[:100], scores[100:]]
    several = [eligible[:100], eligible[100:]]
    tensors = [[tf.constant(v) for v in values] for values in (parts, several)]
    size = int(eligible.sum())
    for k in (0, 1, 3, size // 50, size // 2, size - 2, size):
        masks = compiled_top_k_masks(tensors[0], tf.constant(k), tensors[1])
        for mask, expected in zip(masks, marked_by_sort(parts, k, several), strict=True):
            np.testing.assert_array_equal(mask, expected)


@pytest.mark.tensorflow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_top_k_in_a_branch_with_a_number_known_before(jit_compile):
    scores = np.float32([[3, 1], [2, 3]])

    @tf.function(jit_compile=jit_compile)
    def call(due):
        return ops.cond(due, lambda: top_k_mask(scores, 2), lambda: ops.zeros((2, 2), "bool"))

    np.testing.assert_array_equal(call(tf.constant(True)), [[True, False], [False, True]])
    assert not np.any(call(tf.constant(False)))


def test_top_k_masks_without_scores():
    assert top_k_masks([], 0) == []
    (mask,) = top_k_masks([np.zeros((0, 3), "float32")], 0)
    assert mask.shape == (0, 3)


def test_top_k_masks_with_too_few_eligible_raises():
    with pytest.raises(ValueError, match=r"received 1 for 2 arrays"):
        top_k_masks([np.ones(2, "float32")] * 2, 1, [None])


@pytest.mark.slow
def test_random_masks_have_exact_counts_and_no_favourite_place():
    draws = np.stack([random_mask((6, 5), 0.37, seed) for seed in range(80)])
    assert set(draws.sum(axis=(1, 2))) == {round(0.37 * 30)}
    # 80 draws of a place with chance 11/30: five standard deviations are 21.6.
    assert np.abs(draws.sum(axis=0) - 80 * 11 / 30).max() < 21.6
    np.testing.assert_array_equal(draws[3], random_mask((6, 5), 0.37, 3))
    assert not np.any(random_mask((6, 5), 0.0, 0)) and np.all(random_mask((6, 5), 1.0, 0))
