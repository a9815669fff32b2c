"""Blocks and N:M: array functions, and updates of models that keep the structure."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops
from keras.ops import convert_to_numpy as numpy
from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

import keras_sparse_dm as ksd
from keras_sparse_dm.layers.kernel_mask import KernelTarget
from keras_sparse_dm.masks.structures import Unstructured, _rank, structure_from_code
from keras_sparse_dm.sparsity import NM, Blocks, check_invariant, masked_kernels, sparse_optimizer

quick = settings(max_examples=20, deadline=None, derandomize=True)


@st.composite
def kernels(draw, size):
    """Draw `(shape, axis)` with the axis counted from the end and a multiple of `size` long."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axis = draw(st.integers(-len(shape), -1))
    shape[axis] = size * draw(st.integers(1, 4))
    return tuple(shape), axis


def groups(values, axis, size):
    """Return the groups of neighbours along an axis."""
    values = np.asarray(values)
    starts = range(0, values.shape[axis], size)
    parts = [np.take(values, range(s, s + size), axis) for s in starts]
    return np.concatenate([np.moveaxis(p, axis, -1).reshape(-1, size) for p in parts])


@quick
@given(data=st.data(), structure=st.sampled_from([Blocks(2), Blocks(3), NM(1, 2), NM(2, 4)]))
def test_units_and_back_is_the_identity(data, structure):
    size = structure.size if isinstance(structure, Blocks) else structure.m
    shape, axis = data.draw(kernels(size))
    mask = structure.random_mask(shape, 0.5, 0, axis)
    units = structure.to_units(mask, axis, ops.any)
    assert math.prod(units.shape) * structure.unit == math.prod(shape)
    np.testing.assert_array_equal(numpy(structure.to_weights(units, shape, axis)), numpy(mask))
    values = np.random.default_rng(0).normal(size=shape).astype("float32")
    sums = np.sort(numpy(structure.to_units(values, axis, ops.sum)).ravel())
    expected = groups(values, axis, size)
    expected = expected.sum(-1) if isinstance(structure, Blocks) else expected
    np.testing.assert_allclose(sums, np.sort(expected.ravel()), rtol=1e-5, atol=1e-6)


@quick
@given(data=st.data(), size=st.integers(2, 5), density=st.floats(0, 1), seed=st.integers(0, 99))
def test_random_blocks_are_whole_and_as_many_as_asked(data, size, density, seed):
    shape, axis = data.draw(kernels(size))
    structure = Blocks(size)
    mask = numpy(structure.random_mask(shape, density, seed, axis))
    assert mask.shape == shape and mask.dtype == bool
    blocks = groups(mask, axis, size)
    assert (blocks.all(-1) == blocks.any(-1)).all()
    assert mask.sum() == structure.ones(shape, density) == round(density * len(blocks)) * size


@quick
@given(data=st.data(), n_m=st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 5)]))
def test_random_masks_have_n_of_every_m(data, n_m):
    structure = NM(*n_m)
    shape, axis = data.draw(kernels(structure.m))
    mask = numpy(structure.random_mask(shape, structure.n / structure.m, 3, axis))
    assert (groups(mask, axis, structure.m).sum(-1) == structure.n).all()
    assert mask.sum() == structure.ones(shape, 0.123)


def test_random_masks_are_uniform():
    """All positions in a group, and all blocks, are equally likely."""
    mask = numpy(NM(2, 4).random_mask((400, 25), 0.5, 1, -2))
    share = groups(mask, 0, 4).mean(0)
    np.testing.assert_allclose(share, 0.5, atol=4 * np.sqrt(0.25 / 2500))
    mask = numpy(Blocks(4).random_mask((400, 25), 0.3, 1, -2))
    np.testing.assert_allclose(mask.mean(0), 0.3, atol=5 * np.sqrt(0.21 / 100))


SCORES = st.sampled_from([0.0, 1e-40, 0.5, 1.0, 1.0, 2.0, math.inf, math.nan])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), n_m=st.sampled_from([(1, 2), (2, 4), (3, 4)]))
def test_growth_fills_every_group_with_its_largest(data, n_m):
    """This holds for tied, infinite and NaN scores too."""
    structure = NM(*n_m)
    number = data.draw(st.integers(1, 4))
    shape = (number, structure.m)
    score = np.array(
        data.draw(st.lists(SCORES, min_size=math.prod(shape), max_size=math.prod(shape))),
        "float32",
    ).reshape(shape)
    kept = numpy(structure.random_mask(shape, 0.5, data.draw(st.integers(0, 99)), -1))
    kept = kept & np.array(
        data.draw(st.lists(st.booleans(), min_size=kept.size, max_size=kept.size))
    ).reshape(shape)
    grown = numpy(structure.grow(kept, score, None))
    assert not (grown & kept).any()
    assert ((grown | kept).sum(-1) == structure.n).all()
    ordered = np.where(np.isnan(score), np.inf, score)
    for group in range(number):
        new, left = grown[group], ~grown[group] & ~kept[group]
        if new.any() and left.any():
            assert ordered[group][new].min() >= ordered[group][left].max()
            for place in np.flatnonzero(left):  # ties go to the first
                equal = np.flatnonzero(new & (ordered[group] == ordered[group][place]))
                assert (equal < place).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data(), count=st.integers(0, 6))
def test_growth_of_blocks_is_exact_whatever_the_scores(data, count):
    score = np.array(data.draw(st.lists(SCORES, min_size=12, max_size=12)), "float32")
    kept = np.zeros(12, bool)
    kept[data.draw(st.lists(st.integers(0, 11), max_size=6))] = True
    grown = numpy(Blocks(4).grow(kept.reshape(3, 4), score.reshape(3, 4), count)).ravel()
    assert grown.sum() == count and not (grown & kept).any()
    order = [i for i in np.argsort(-np.nan_to_num(score, nan=np.inf), kind="stable") if not kept[i]]
    finite = not np.isnan(score).any()
    if finite:
        expected = np.zeros(12, bool)
        expected[order[:count]] = True
        np.testing.assert_array_equal(grown, expected)


@quick
@given(
    rows=st.integers(1, 4),
    values=st.lists(st.sampled_from([-1.0, 0.0, -0.0, 1e-40, 1.0, 2.0, math.inf]), max_size=6),
)
def test_rank_is_that_of_a_stable_sort(rows, values):
    score = np.random.default_rng(len(values)).permuted(
        np.tile(np.array(values + [3.0], "float32"), (rows, 1)), axis=-1
    )
    score[np.abs(score) < 1e-38] = 0  # processors that flush denormals treat them as zeros
    order = np.argsort(-score, axis=-1, kind="stable")
    expected = np.argsort(order, axis=-1, kind="stable")
    np.testing.assert_array_equal(numpy(_rank(ops.convert_to_tensor(score))), expected)


def test_structures_are_described_stored_and_checked():
    for structure in (Unstructured(), Blocks(), Blocks(16), NM(), NM(1, 8)):
        target = KernelTarget(0.25, structure)
        assert structure_from_code(structure.code) == structure
        assert KernelTarget.from_array(target.to_array()) == target
    assert KernelTarget.from_array(KernelTarget().to_array()) == KernelTarget()
    assert str(Blocks(4)) == "blocks of 4" and str(NM(2, 4)) == "2:4" and not str(Unstructured())
    assert Blocks(4).misfit((6, 8), -2) and not Blocks(4).misfit((6, 8), -1)
    assert "no input axis" in NM(2, 4).misfit((8, 8), None)
    for size in (1, 0, -4, 2.0, True, "4"):
        with pytest.raises(ValueError, match="`size` must be a whole number of at least 2"):
            Blocks(size)
    for n, m in ((0, 4), (4, 4), (5, 4), (1.0, 4), (1, None)):
        with pytest.raises(ValueError, match="1 <= n < m; received"):
            NM(n, m)


def many_kernels():
    """Return a model with dense, convolution, GRU and einsum kernels, and their input axes."""
    inputs = keras.Input((5, 8))
    x = layers.Conv1D(8, 3, padding="same", name="conv")(inputs)
    x = layers.EinsumDense("abc,cd->abd", (None, 8), name="einsum")(x)
    x = layers.EinsumDense("abc,dc->abd", (None, 4), name="turned")(x)
    x = layers.GRU(4, name="gru")(x)
    model = keras.Model(inputs, layers.Dense(6, name="dense")(x), name="m")
    model.compile("sgd", "mse")
    return model, {"turned": -1}


METHODS = {
    "rigl": {"method": "rigl"},
    "averaged": {"method": "rigl", "gradient_steps": 2},
    "magran": {"method": "magran"},
    "set": {"method": "set"},
    "snfs": {"method": "snfs", "grow_init": "normal"},
    "static": {"method": "static"},
    "global": {"method": "rigl", "competition": "global"},
    "gmp": {"method": "gmp"},
}
CASES = [
    (name, structure)
    for name in METHODS
    for structure in (Blocks(4), NM(2, 4))
    if not (name == "set" and isinstance(structure, Blocks))
    if not (name in ("global", "gmp") and isinstance(structure, NM))
]


@pytest.mark.slow
@pytest.mark.cases(4)
@pytest.mark.parametrize("name, structure", CASES, ids=lambda v: str(v))
def test_every_update_keeps_the_structure(name, structure):
    keras.utils.set_random_seed(0)
    model, axes = many_kernels()
    size = structure.size if isinstance(structure, Blocks) else structure.m
    density = 0.5 if isinstance(structure, Blocks) else structure.n / structure.m
    options = dict(METHODS[name])
    dense = name == "gmp"
    if dense:
        options["schedule"] = PolynomialDecay(0.0, 0.5, 0, 6, power=1, frequency=2)
    ksd.sparsify(model, 1 - density, "uniform", seed=0, structure=structure, dense_start=dense)
    optimizer = sparse_optimizer(
        model, keras.optimizers.Adam(0.01), update_every=2, prune_rate=0.4, seed=0, **options
    )
    model.optimizer = optimizer
    found = masked_kernels(model)
    assert len(found) == 6
    start = [numpy(k.mask) for k in found]
    counts = [m.sum() for m in start]
    rng = np.random.default_rng(1)
    for step in range(1, 7):
        gradients = [rng.normal(size=v.shape).astype("float32") for v in model.trainable_variables]
        optimizer.apply([tf.constant(g) for g in gradients], model.trainable_variables)
        for i, k in enumerate(found):
            axis = next((a for layer, a in axes.items() if f"/{layer}/" in f"/{k.name}"), -2)
            held = groups(numpy(k.mask), axis, size)
            if isinstance(structure, NM):
                assert (held.sum(-1) == structure.n).all(), (k.name, step)
            else:
                assert (held.all(-1) == held.any(-1)).all(), (k.name, step)
            if name not in ("gmp", "global"):
                assert held.sum() == counts[i]
    check_invariant(model)
    now = [numpy(k.mask) for k in found]
    if name == "static":
        assert all((a == b).all() for a, b in zip(start, now, strict=True))
    else:
        assert optimizer.topology_updates == 3
        # In the smallest kernel, the dropped weights may grow again.
        assert sum(np.any(a != b) for a, b in zip(start, now, strict=True)) >= 4
    total = sum(m.sum() for m in now)
    if name == "gmp":
        assert total == sum(structure.ones(m.shape, 0.5) for m in now)
    else:
        assert total == sum(counts)


@pytest.mark.slow
def test_another_structure_after_training_is_kept_too():
    """The step that was compiled for the first structure must not be used again."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(4)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")

    def fit():
        callback = ksd.DynamicSparsity("rigl", update_every=1, prune_rate=0.4)
        model.fit(x, x[:, :4], batch_size=8, verbose=0, callbacks=[callback])
        check_invariant(model)

    ksd.sparsify(model, 0.5, seed=0)
    fit()
    ksd.sparsify(model, 0.5, seed=0, structure=Blocks(4))
    fit()
    for k in masked_kernels(model):
        held = groups(numpy(k.mask), -2, 4)
        assert (held.all(-1) == held.any(-1)).all()


@pytest.mark.slow
def test_masks_drawn_anew_for_another_method():
    """New masks may have a structure that only the next method supports."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(4)])
    model.compile("sgd", "mse", run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")

    def fit(method, **options):
        callback = ksd.DynamicSparsity(method, update_every=1, prune_rate=0.4, **options)
        model.fit(x, x[:, :4], batch_size=8, verbose=0, callbacks=[callback])
        check_invariant(model)

    ksd.sparsify(model, 0.5, seed=0)
    fit("rigl", competition="global")
    ksd.sparsify(model, 0.5, "uniform", seed=0, structure=NM(2, 4))
    with pytest.raises(ValueError, match="2:4 of .* fixes the density"):
        model.train_on_batch(x, x[:, :4])
    with pytest.raises(ValueError, match="2:4 of .* fixes the density"):
        fit("rigl", competition="global")
    fit("rigl")
    assert all((groups(numpy(k.mask), -2, 4).sum(-1) == 2).all() for k in masked_kernels(model))
    ksd.sparsify(model, 0.75, seed=0, dense_start=True)
    # Its steps count from the draw of the masks.
    fit("gmp", schedule=PolynomialDecay(0.0, 0.75, 0, 2, frequency=1))
    assert ksd.sparsity_report(model).sparsity == pytest.approx(0.75)


@pytest.mark.slow
def test_blocks_grow_where_gradients_do_not_know_their_shape():
    """In a graph, networks for sketches of any length have such gradients."""
    keras.utils.set_random_seed(0)
    denoiser = ksd.models.ChiroDiff(units=8, num_layers=2, seed=0)
    model = ksd.diffusion.DiffusionModel(denoiser, ksd.diffusion.NoiseSchedule.linear(1000), 0)
    # 13 input features do not divide into blocks.
    first = "*bidirectional_0/*_gru/gru_cell/kernel"
    ksd.sparsify(model, 0.5, seed=0, structure=Blocks(4), exclude=[first])
    before = {k.name: numpy(k.mask) for k in masked_kernels(model)}
    model.compile("adam")
    points = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
    batch = {"points": points, "lengths": np.full(8, 5, "int32")}
    data = tf.data.Dataset.from_generator(
        lambda: iter([batch]),
        output_signature={
            "points": tf.TensorSpec((None, None, 3)),
            "lengths": tf.TensorSpec((None,), "int32"),
        },
    )
    callback = ksd.DynamicSparsity("rigl", update_every=1, prune_rate=0.5)
    model.fit(data, shuffle=False, verbose=0, callbacks=[callback])
    check_invariant(model)
    moved = 0
    for k in masked_kernels(model):
        if str(k.target.structure):
            held = groups(numpy(k.mask), -2, 4)
            assert (held.all(-1) == held.any(-1)).all()
            moved += (numpy(k.mask) != before[k.name]).any()
    assert moved >= 4
