"""`sparsify` on models made of sparse layers."""

import math

import keras
import numpy as np
import pytest
from keras import layers
from keras.ops import convert_to_numpy as numpy

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseDense, SparseGRU
from keras_sparse_dm.sparsity import check_invariant, densities, masked_kernels


def bigru_model():
    inputs = keras.Input((5, 6))
    x = SparseDense(10, name="first")(inputs)
    x = layers.Bidirectional(SparseGRU(8, return_sequences=True), name="both")(x)
    x = SparseGRU(7, name="gru")(x)
    x = layers.Dense(9, name="plain")(x)
    return keras.Model(inputs, SparseDense(3, name="last")(x))


def dense_model():
    return keras.Sequential(
        [keras.Input((6,)), SparseDense(20, "relu", name="a"), SparseDense(5, name="b")]
    )


def values(model):
    return {k.name: numpy(k.kernel) for k in masked_kernels(model)}


def masks(model):
    return {k.name: numpy(k.mask) for k in masked_kernels(model)}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.97])
def test_counts_are_exact_and_values_are_kept(distribution, sparsity):
    model = bigru_model()
    before = values(model)
    others = {v.path: numpy(v) for v in model.trainable_variables if v.path not in before}
    report = ksd.sparsify(model, sparsity, distribution, seed=0)
    shares = densities({n: v.shape for n, v in before.items()}, sparsity, distribution)
    assert len(before) == 8
    for name, mask in masks(model).items():
        assert mask.sum() == round(shares[name] * mask.size)
        np.testing.assert_array_equal(values(model)[name], np.where(mask, before[name], 0))
    assert {k.name: k.active for k in report.kernels} == {
        name: mask.sum() for name, mask in masks(model).items()
    }
    total = sum(v.size for v in before.values())
    # Half a weight of rounding and one of the original program's floor, per kernel.
    assert abs(report.sparsity - sparsity) <= 1.5 * len(before) / total
    for v in model.trainable_variables:
        if v.path in others:
            np.testing.assert_array_equal(numpy(v), others[v.path])


def test_masks_differ_from_kernel_to_kernel_and_are_spread():
    model = keras.Sequential([keras.Input((30,)), SparseDense(30), SparseDense(30)])
    ksd.sparsify(model, 0.5, seed=0)
    one, other = masks(model).values()
    assert 0.3 < (one & other).mean() / 0.5 < 0.7
    for axis in (0, 1):
        assert 3 < one.sum(axis=axis).min() and one.sum(axis=axis).max() < 27


def test_seed_fixes_the_masks():
    def drawn(seed):
        model = dense_model()
        ksd.sparsify(model, 0.5, seed=seed)
        return masks(model)

    def plain(drawn):
        return {name.split("/", 1)[1]: mask for name, mask in drawn.items()}

    assert same(plain(drawn(3)), plain(drawn(3)))
    assert not same(plain(drawn(3)), plain(drawn(4)))
    assert not same(plain(drawn(None)), plain(drawn(None)))


def test_drawing_again_keeps_the_kernels_as_they_are():
    model = dense_model()
    ksd.sparsify(model, 0.5, seed=0)
    before, first = values(model), masks(model)
    ksd.sparsify(model, 0.7, "uniform", seed=1)
    for name, mask in masks(model).items():
        assert mask.sum() == round(0.3 * mask.size)
        assert np.any(mask & ~first[name])
        np.testing.assert_array_equal(values(model)[name], np.where(mask, before[name], 0))
    ksd.sparsify(model, 0.0)
    assert all(mask.all() for mask in masks(model).values())


@pytest.mark.parametrize(
    "exclude, dense",
    [
        (lambda m: [m.get_layer("first")], {"first/kernel"}),
        (lambda m: m.get_layer("gru"), {"gru/gru_cell/kernel", "gru/gru_cell/recurrent_kernel"}),
        (lambda m: "gru", {"gru/gru_cell/kernel", "gru/gru_cell/recurrent_kernel"}),
        (lambda m: ("first", "last"), {"first/kernel", "last/kernel"}),
        (lambda m: ["both"], {"both/"}),
        (lambda m: [masked_kernels(m)[0].name, m.get_layer("last")], {"first/kernel", "last/"}),
        (lambda m: ["gru/gru_cell/recurrent_kernel"], {"gru/gru_cell/recurrent_kernel"}),
    ],
)
def test_what_is_excluded_stays_dense_and_the_others_make_up_for_it(exclude, dense):
    model = bigru_model()
    report = ksd.sparsify(model, 0.3, "uniform", seed=0, exclude=exclude(model))
    full = {k.name for k in report.kernels if k.active == k.size}
    expected = {k.name for k in report.kernels if any(k.name.startswith(d) for d in dense)}
    assert full == expected != set()
    assert abs(report.sparsity - 0.3) <= 1.5 * len(report.kernels) / report.size


def test_nested_and_shared_layers_are_each_drawn_once():
    shared = SparseDense(8, name="shared")
    a, b = keras.Input((8,)), keras.Input((8,))
    inner = keras.Sequential([keras.Input((8,)), SparseDense(8, name="inside"), shared])
    model = keras.Model([a, b], SparseDense(4, name="out")(layers.add([inner(a), shared(b)])))
    report = ksd.sparsify(model, 0.5, "uniform", seed=0)
    assert [k.active for k in report.kernels] == [32, 32, 16]


class TwoOfOneName(keras.Model):
    """Layer names need not be unique, except among the layers of a functional model."""

    def __init__(self):
        super().__init__()
        self.wide = SparseDense(50, name="d")
        self.narrow = SparseDense(3, name="d")

    def call(self, x):
        return self.narrow(self.wide(x))


def functional_blocks_of_one_name():
    def block(inputs, units):
        x = keras.Input((inputs,))
        return keras.Model(x, SparseDense(units, name="d")(x))

    x = keras.Input((6,))
    return keras.Model(x, block(50, 3)(block(6, 50)(x)))


@pytest.mark.parametrize("make", [TwoOfOneName, functional_blocks_of_one_name])
def test_layers_of_one_name_each_get_their_own_share(make):
    model = make()
    model(np.zeros((1, 6), "float32"))
    ksd.sparsify(model, 0.5, seed=0)
    shares = densities({"wide": (6, 50), "narrow": (50, 3)}, 0.5)
    ones = [int(numpy(k.mask).sum()) for k in masked_kernels(model)]
    assert ones == [round(300 * shares["wide"]), round(150 * shares["narrow"])]
    model.compile("adam", "mse", run_eagerly=True)
    data = np.ones((4, 6), "float32"), np.ones((4, 3), "float32")
    model.fit(*data, verbose=0, callbacks=[ksd.DynamicSparsity("rigl", 1, 0.3)])
    check_invariant(model)


def trained(method="rigl"):
    model = dense_model()
    ksd.sparsify(model, 0.5, seed=0)
    model.compile(keras.optimizers.AdamW(0.01, use_ema=True), "mse", run_eagerly=True)
    data = np.random.default_rng(0).normal(size=(2, 16, 6)).astype("float32")
    fit = dict(x=data[0], y=data[1][:, :5], batch_size=8, verbose=0)
    model.fit(**fit, callbacks=[ksd.DynamicSparsity(method, update_every=2, prune_rate=0.3)])
    return model, fit


def test_on_a_trained_model_the_state_of_pruned_weights_is_cleared():
    model, fit = trained()
    before = values(model)
    state = {
        k.name: [numpy(v) for v in model.optimizer.state_of(k.kernel)]
        for k in masked_kernels(model)
    }
    old = masks(model)
    ksd.sparsify(model, 0.6, seed=5)
    check_invariant(model)
    for k in masked_kernels(model):
        mask = numpy(k.mask)
        assert np.any(old[k.name] & ~mask) and len(state[k.name]) == 3
        np.testing.assert_array_equal(numpy(k.kernel), np.where(mask, before[k.name], 0))
        for now, then in zip(model.optimizer.state_of(k.kernel), state[k.name], strict=True):
            np.testing.assert_array_equal(numpy(now), np.where(mask, then, 0))
    counts = {name: mask.sum() for name, mask in masks(model).items()}
    model.train_on_batch(fit["x"], fit["y"])
    model.fit(**fit, callbacks=[ksd.DynamicSparsity("rigl", update_every=1, prune_rate=0.3)])
    check_invariant(model, counts)


def test_on_a_trained_model_sparsity_0_makes_it_dense_again():
    model, fit = trained()
    assert ksd.sparsify(model, 0.0).sparsity == 0.0
    check_invariant(model)


def test_model_trained_before_it_was_sparse():
    """The moments of the dense training are there when the callback comes."""
    model = dense_model()
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    x, y = np.ones((8, 6), "float32"), np.ones((8, 5), "float32")
    model.fit(x, y, verbose=0)
    ksd.sparsify(model, 0.5, seed=0)
    counts = {name: mask.sum() for name, mask in masks(model).items()}
    model.fit(x, y, verbose=0, callbacks=[ksd.DynamicSparsity("static")])
    check_invariant(model, counts)
    moments = [numpy(v) for v in model.optimizer.state_of(masked_kernels(model)[0].kernel)]
    assert len(moments) == 2 and all(np.any(m) for m in moments)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 2, float("nan"), None, "half"])
def test_sparsity_outside_the_range_raises_and_changes_nothing(sparsity):
    model = dense_model()
    before = values(model)
    with pytest.raises(ValueError, match=r"`sparsity` must be a number in \[0, 1\); received"):
        ksd.sparsify(model, sparsity)
    assert same(values(model), before) and all(m.all() for m in masks(model).values())


def test_what_cannot_be_made_sparse_raises():
    with pytest.raises(ValueError, match="must be built"):
        ksd.sparsify(keras.Sequential([SparseDense(3)]), 0.5)
    with pytest.raises(ValueError, match="must be built"):
        ksd.sparsify(TwoOfOneName(), 0.5)
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="plain")
    with pytest.raises(ValueError, match="'plain' has no sparse layer"):
        ksd.sparsify(plain, 0.5)
    with pytest.raises(ValueError, match="`distribution` must be one of"):
        ksd.sparsify(dense_model(), 0.5, "best")


@pytest.mark.parametrize("exclude", ["nobody", ["a", "nobody"], [SparseDense(3)], [3], "kernel"])
def test_unknown_exclusion_raises_and_names_the_kernels(exclude):
    model = dense_model()
    with pytest.raises(ValueError, match=r"nothing matches .*Kernels: .*a/kernel, .*b/kernel"):
        ksd.sparsify(model, 0.5, exclude=exclude)
    assert all(m.all() for m in masks(model).values())


def test_sparsity_that_cannot_be_reached_raises_and_says_what_can():
    model = dense_model()  # a holds 120 weights, b 100
    with pytest.raises(ValueError, match=r"cannot be reached .* 0.5455 of the weights"):
        ksd.sparsify(model, 0.6, exclude="b")
    with pytest.raises(ValueError, match="cannot be reached"):
        ksd.sparsify(model, 0.1, exclude=["a", "b"])
    assert ksd.sparsify(model, 0.5, exclude="b").active == pytest.approx(110, abs=1)


def test_emptying_the_free_kernels_is_refused_in_the_words_of_the_caller():
    """All that is free would have to go; no kernel may end with density 0."""
    model = keras.Sequential([keras.Input((4,)), SparseDense(4, name="a"), SparseDense(4)])
    with pytest.raises(ValueError, match="0.5 cannot be reached"):
        ksd.sparsify(model, 0.5, exclude="a")


def test_docstring_example_of_a_layer():
    model = keras.Sequential([keras.Input((8,)), SparseDense(4)])
    ksd.sparsify(model, sparsity=0.5)
    [(kernel, mask)] = model.layers[0].masks
    assert int(numpy(mask).sum()) == math.prod(kernel.shape) // 2
