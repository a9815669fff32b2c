"""`sparsify`: densities, choice of kernels, structures, errors."""

import math
import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras.ops import convert_to_numpy as numpy
from support import masks_of as masks

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseDense, SparseGRU
from keras_sparse_dm.sparsity import NM, Blocks, check_invariant, densities, masked_kernels


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


def plain_model():
    """Return a model of common Keras layers."""
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(20, "relu", name="a"), layers.Dense(5, name="b")]
    )


def state_of(model):
    """Return everything that a failed call must not change."""
    return (
        [type(layer) for layer in model._flatten_layers()],
        [id(v) for v in model.variables],
        [numpy(v).copy() for v in model.variables],
        [v.constraint for v in model.trainable_variables],
    )


def assert_untouched(model, state):
    kinds, objects, arrays, constraints = state_of(model)
    assert (kinds, objects, constraints) == (state[0], state[1], state[3])
    assert all(map(np.array_equal, arrays, state[2]))


def values(model):
    return {k.name: numpy(k.kernel) for k in masked_kernels(model)}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.cases(1)
@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.97])
def test_counts_are_exact_and_values_are_kept(distribution, sparsity):
    model = bigru_model()
    before = {v.path: numpy(v) for v in model.trainable_variables if "kernel" in v.name}
    others = {v.path: numpy(v) for v in model.trainable_variables if v.path not in before}
    report = ksd.sparsify(model, sparsity, distribution, seed=0)
    shares = densities({n: v.shape for n, v in before.items()}, sparsity, distribution)
    assert len(before) == 9 and before.keys() == masks(model).keys()
    for name, mask in masks(model).items():
        assert mask.sum() == round(shares[name] * mask.size)
        np.testing.assert_array_equal(values(model)[name], np.where(mask, before[name], 0))
    assert {k.name: k.active for k in report.kernels} == {
        name: mask.sum() for name, mask in masks(model).items()
    }
    total = sum(v.size for v in before.values())
    # Per kernel, rounding adds half a weight and the original program's floor one.
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
    """Model with two layers of the same name, which only functional models forbid."""

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


@pytest.mark.cases(1)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_model_trained_before_it_was_sparse():
    """The optimizer already has moments of dense training when the callback wraps it."""
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
    words = keras.Sequential([keras.Input((4,)), layers.Embedding(9, 3)], name="words")
    with pytest.raises(ValueError, match="'words' has nothing to make sparse: it has no kernels"):
        ksd.sparsify(words, 0.5)
    frozen = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="d")], name="frozen")
    frozen.trainable = False
    with pytest.raises(ValueError, match=r"nothing to make sparse: .*d/kernel \(frozen\)"):
        ksd.sparsify(frozen, 0.5)
    with pytest.raises(ValueError, match="`distribution` must be one of"):
        ksd.sparsify(dense_model(), 0.5, "best")


UNKNOWN = ["nobody", ["a", "nobody"], [SparseDense(3)], "kernel", "c/*", re.compile("^b")]


@pytest.mark.parametrize("argument", ["exclude", "include", "sparsity"])
@pytest.mark.parametrize("unknown", UNKNOWN, ids=str)
def test_unknown_name_raises_names_the_kernels_and_changes_nothing(argument, unknown):
    model = plain_model()
    state = state_of(model)
    if argument == "sparsity":
        unknown = dict.fromkeys(unknown if isinstance(unknown, list) else [unknown], 0.5)
    arguments = {"sparsity": 0.5, argument: unknown}
    message = rf"`{argument}` must list .* nothing matches .*Kernels: .*a/kernel, .*b/kernel"
    with pytest.raises(ValueError, match=message):
        ksd.sparsify(model, **arguments)
    assert_untouched(model, state)


@pytest.mark.parametrize("argument", ["exclude", "include", "sparsity"])
def test_what_is_no_name_raises(argument):
    model = plain_model()
    state = state_of(model)
    arguments = {"sparsity": 0.5, argument: {3: 0.5} if argument == "sparsity" else [3]}
    with pytest.raises(ValueError, match=f"`{argument}` must name layers or kernels .* received 3"):
        ksd.sparsify(model, **arguments)
    assert_untouched(model, state)


def with_normalization():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(20, name="a")])
    model.add(layers.BatchNormalization(name="normal"))
    model.add(layers.Dense(5, name="b"))
    return model


def test_layers_without_a_kernel_may_be_among_those_named():
    """A slice of `model.layers` may contain layers without kernels."""
    for first in (lambda model: model.layers[:2], lambda model: ["a", "normal"]):
        model = with_normalization()
        assert [k.density for k in ksd.sparsify(model, 0.2, exclude=first(model)).kernels][0] == 1
        model = with_normalization()
        (left,) = ksd.sparsify(model, 0.2, include=first(model)).left_alone
        assert left.endswith("b/kernel")
        model = with_normalization()
        (a, b) = ksd.sparsify(model, dict.fromkeys(first(model), 0.2)).kernels
        assert (a.density, b.density) == (0.8, 1.0)


def test_layers_without_a_kernel_alone_are_nothing_to_make_sparse():
    model = with_normalization()
    state = state_of(model)
    with pytest.raises(ValueError, match="nothing to make sparse: .*not included"):
        ksd.sparsify(model, 0.5, include="normal")
    with pytest.raises(ValueError, match="`sparsity` must match kernels; received .*normal"):
        ksd.sparsify(model, {"normal": 0.5})
    assert_untouched(model, state)


@pytest.mark.parametrize("items", [None, 3])
def test_what_is_no_list_raises(items):
    with pytest.raises(ValueError, match=f"`exclude` must name layers .* received {items}"):
        ksd.sparsify(plain_model(), 0.5, exclude=items)


@pytest.mark.parametrize("model", [None, "model", [layers.Dense(3)]])
def test_what_is_no_model_raises(model):
    for function in (lambda: ksd.sparsify(model, 0.5), lambda: ksd.sparsity_report(model)):
        with pytest.raises(TypeError, match="`model` must be a keras.Model; received"):
            function()


@pytest.mark.parametrize("seed", ["a", 1.5, -1, True, float("nan"), keras.random.SeedGenerator(0)])
def test_what_is_no_seed_raises(seed):
    model = plain_model()
    state = state_of(model)
    with pytest.raises(ValueError, match="`seed` must be None or an integer, 0 or more; received"):
        ksd.sparsify(model, 0.5, seed=seed)
    assert_untouched(model, state)


def test_sparsity_that_cannot_be_reached_raises_and_says_what_can():
    model = dense_model()  # a holds 120 weights, b 100
    with pytest.raises(ValueError, match=r"cannot be reached .* 0.5455 of the weights"):
        ksd.sparsify(model, 0.6, exclude="b")
    with pytest.raises(ValueError, match="cannot be reached"):
        ksd.sparsify(model, 0.1, exclude=["a", "b"])
    assert ksd.sparsify(model, 0.5, exclude="b").active == pytest.approx(110, abs=1)


def test_emptying_the_free_kernels_is_refused_in_the_words_of_the_caller():
    """All free weights would have to be pruned, but no kernel may have density 0."""
    model = keras.Sequential([keras.Input((4,)), SparseDense(4, name="a"), SparseDense(4)])
    with pytest.raises(ValueError, match="0.5 cannot be reached"):
        ksd.sparsify(model, 0.5, exclude="a")


def test_docstring_example_of_a_layer():
    model = keras.Sequential([keras.Input((8,)), SparseDense(4)])
    ksd.sparsify(model, sparsity=0.5)
    [(kernel, mask)] = model.layers[0].masks
    assert int(numpy(mask).sum()) == math.prod(kernel.shape) // 2


def stack_of_blocks():
    """Return a model with names as in a transformer, such as `block_0/attention/query`."""
    x = inputs = keras.Input((5, 8), name="x")
    for i in range(2):
        x = layers.add([x, layers.MultiHeadAttention(2, 4, name=f"attention_{i}")(x, x)])
        x = layers.Dense(8, name=f"mlp_{i}")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x), name="m")


ALL = {
    *(f"attention_{i}/{part}/kernel" for i in "01" for part in ("query", "key", "value")),
    *(f"attention_{i}/attention_output/kernel" for i in "01"),
    *(f"mlp_{i}/kernel" for i in "01"),
    "head/kernel",
}


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "items, matched",
    [
        ("head", {"head/kernel"}),
        (lambda m: [m.get_layer("head")], {"head/kernel"}),
        # A layer, its name or a pattern for it selects all kernels in it.
        (lambda m: m.get_layer("attention_0"), {n for n in ALL if n.startswith("attention_0")}),
        ("attention_1", {n for n in ALL if n.startswith("attention_1")}),
        ("attention_?", {n for n in ALL if n.startswith("attention")}),
        ("mlp_[01]", {"mlp_0/kernel", "mlp_1/kernel"}),
        # Names of layers within layers.
        ("query", {"attention_0/query/kernel", "attention_1/query/kernel"}),
        # Patterns must match a kernel's whole name.
        ("*/attention_output/*", {n for n in ALL if "attention_output" in n}),
        ("*attention_0/query/kernel", {"attention_0/query/kernel"}),
        # Regular expressions may match anywhere in the name.
        (re.compile(r"(query|key)/kernel$"), {n for n in ALL if "query" in n or "/key/" in n}),
        (re.compile("QUERY", re.IGNORECASE), {n for n in ALL if "query" in n}),
        (["head", re.compile("mlp_0"), "*/value/*"], None),
    ],
)
def test_layers_names_and_patterns(items, matched):
    if matched is None:
        matched = {"head/kernel", "mlp_0/kernel"} | {n for n in ALL if "/value/" in n}

    def report(**options):
        model = stack_of_blocks()
        given = {k: v(model) if callable(v) else v for k, v in options.items()}
        # Kernels of a nested model without its name in front.
        names = {v.path for v in model.trainable_variables if "kernel" in v.name}
        assert names == ALL
        return ksd.sparsify(model, 0.2, "uniform", seed=0, **given)

    excluded = report(exclude=items)
    assert {k.name for k in excluded.kernels if k.active == k.size} == matched
    assert {k.name for k in excluded.kernels} == ALL and not excluded.left_alone
    included = report(include=items)
    assert {k.name for k in included.kernels if k.active < k.size} == matched
    assert included.left_alone == dict.fromkeys(ALL - matched, "not included")
    # The sparsity refers to included kernels only.
    mine = [k for k in included.kernels if k.name in matched]
    for k in mine:
        assert k.active == round(0.8 * k.size)


def test_include_and_exclude_together():
    model = stack_of_blocks()
    report = ksd.sparsify(model, 0.4, "uniform", seed=0, include="mlp_?", exclude="mlp_0")
    # One of two kernels with 64 weights stays dense, so the other loses all pruned weights.
    assert {k.name: k.active for k in report.kernels if k.name.startswith("mlp")} == {
        "mlp_0/kernel": 64,
        "mlp_1/kernel": 64 - round(0.4 * 128),
    }
    with pytest.raises(ValueError, match=r"0.5 cannot be reached with 1 kernels .* 0.5000 of the"):
        ksd.sparsify(stack_of_blocks(), 0.5, include="mlp_?", exclude="mlp_0")


def test_dictionary_gives_single_kernels_their_own():
    model = stack_of_blocks()
    query = re.compile("query")
    report = ksd.sparsify(
        model,
        {
            "attention_?": 0.5,
            query: 0.9,
            model.get_layer("mlp_0"): 0.25,
            "head/kernel": 0.0,
            "*_0/attention_output/*": 0.75,
        },
        seed=0,
        exclude="attention_1",
    )
    # The last matching entry counts; excluded and unmatched kernels stay dense.
    expected = {name: 1.0 for name in ALL} | {
        "attention_0/query/kernel": 0.1,
        "attention_0/key/kernel": 0.5,
        "attention_0/value/kernel": 0.5,
        "attention_0/attention_output/kernel": 0.25,
        "mlp_0/kernel": 0.75,
    }
    assert {k.name: k.active for k in report.kernels} == {
        name: round(density * (32 if name == "head/kernel" else 64))
        for name, density in expected.items()
    }
    assert {k.name: k.asked for k in report.kernels} == pytest.approx(expected)


@pytest.mark.parametrize("value", [1.0, -0.1, "half", None])
def test_dictionary_with_a_sparsity_outside_the_range_raises(value):
    model = plain_model()
    state = state_of(model)
    with pytest.raises(ValueError, match=r"`sparsity` must be a number in \[0, 1\); received"):
        ksd.sparsify(model, {"a": 0.5, "b": value})
    assert_untouched(model, state)


@pytest.mark.parametrize("argument", ["include", "sparsity"])
def test_naming_only_what_is_frozen_raises_and_says_so(argument):
    model = plain_model()
    model.get_layer("a").trainable = False
    state = state_of(model)
    arguments = {"include": dict(sparsity=0.5, include="a"), "sparsity": dict(sparsity={"a": 0.5})}
    with pytest.raises(ValueError, match=rf"`{argument}` must match kernels .*a/kernel \(frozen\)"):
        ksd.sparsify(model, **arguments[argument])
    assert_untouched(model, state)
    # Excluding it as well is allowed.
    report = ksd.sparsify(model, 0.5, exclude="a", seed=0)
    assert [k.active for k in report.kernels] == [50]


@pytest.mark.slow
def test_frozen_lora_and_layers_without_a_twin_are_left_alone_and_named():
    model = keras.Sequential(
        [
            keras.Input((3, 6, 6, 2)),
            layers.ConvLSTM2D(3, 3, name="convlstm"),
            layers.Flatten(),
            layers.Dense(8, name="frozen"),
            layers.Dense(8, name="lora"),
            layers.Reshape((2, 4)),
            layers.EinsumDense("abc,cd->abd", (2, 4), name="einsum_lora"),
            layers.Dense(5, name="free"),
        ],
        name="m",
    )
    model.get_layer("frozen").trainable = False
    model.get_layer("lora").enable_lora(2)
    model.get_layer("einsum_lora").enable_lora(2)
    before = [numpy(v).copy() for v in model.variables]
    kinds = [type(layer) for layer in model.layers[:-1]]
    report = ksd.sparsify(model, 0.5, seed=0)
    assert [(k.name, k.active) for k in report.kernels] == [("m/free/kernel", 10)]
    assert report.left_alone == {
        "m/convlstm/conv_lstm_cell/kernel": "ConvLSTMCell has no sparse twin",
        "m/convlstm/conv_lstm_cell/recurrent_kernel": "ConvLSTMCell has no sparse twin",
        "m/frozen/kernel": "frozen",
        "m/lora/kernel": "LoRA-enabled",
        "m/lora/lora_kernel_a": "LoRA-enabled",
        "m/lora/lora_kernel_b": "LoRA-enabled",
        "m/einsum_lora/kernel": "LoRA-enabled",
        "m/einsum_lora/lora_kernel_a": "LoRA-enabled",
        "m/einsum_lora/lora_kernel_b": "LoRA-enabled",
    }
    assert [type(layer) for layer in model.layers[:-1]] == kinds
    now = [v for v in model.variables if v.dtype != "bool"]
    for v, then in zip(now, before, strict=True):
        if v.path != "m/free/kernel":
            np.testing.assert_array_equal(numpy(v), then)
    model.compile("adam", "mse", run_eagerly=True)
    x, y = np.ones((2, 3, 6, 6, 2), "float32"), np.ones((2, 2, 5), "float32")
    model.fit(x, y, verbose=0, callbacks=[ksd.DynamicSparsity("rigl", 1, 0.3)])
    check_invariant(model, {"m/free/kernel": 10})


@pytest.mark.slow
def test_quantized_model_has_nothing_to_sparsify():
    model = keras.Sequential(
        [
            keras.Input((2, 4)),
            layers.Dense(4, name="d"),
            layers.EinsumDense("abc,cde->abde", (2, 3, 2), name="e"),
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.quantize("int8")
    state = state_of(model)
    with pytest.raises(ValueError) as error:
        ksd.sparsify(model, 0.5)
    message = str(error.value)
    assert "nothing to make sparse" in message and "no sparse twin" not in message
    assert "d/kernel (quantized (int8))" in message and "e/kernel (quantized (int8))" in message
    assert_untouched(model, state)


class OwnWeights(layers.Dense):
    """Layer derived from one with a sparse twin, but with other names of weights."""

    def build(self, input_shape):
        self.w = self.add_weight(name="w", shape=(input_shape[-1], self.units))
        self.built = True

    def call(self, x):
        return x @ self.w


def test_derived_layer_that_keeps_its_weights_otherwise_is_left_alone():
    model = keras.Sequential([keras.Input((4,)), OwnWeights(6), layers.Dense(4, name="d")])
    report = ksd.sparsify(model, 0.5, seed=0)
    assert [k.active for k in report.kernels] == [12]
    assert type(model.layers[0]) is OwnWeights


def test_kernels_of_several_axes_are_weighed_as_the_matrices_they_are():
    """Queries and keys are matrices 8 x (2 x 4), and a GRU's gates lie side by side."""
    x = inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4, name="a")(x, x)
    x = layers.Conv1DTranspose(3, 2, name="up")(x)
    x = layers.DepthwiseConv1D(3, depth_multiplier=2, name="depth")(x)
    model = keras.Model(inputs, layers.GRU(4, name="g")(x))
    report = ksd.sparsify(model, 0.6, "erk", seed=0)
    expected = {f"a/{name}/kernel": (8, 8) for name in ("query", "key", "value")} | {
        "a/attention_output/kernel": (8, 8),
        "up/kernel": (2, 8, 3),
        "depth/kernel": (3, 1, 6),
        "g/gru_cell/kernel": (6, 12),
        "g/gru_cell/recurrent_kernel": (4, 12),
    }
    shares = densities(expected, 0.6, "erk")
    assert {k.name: k.asked for k in report.kernels} == pytest.approx(shares)
    assert {k.name: k.active for k in report.kernels} == {
        name: round(shares[name] * math.prod(shape)) for name, shape in expected.items()
    }


def test_function_as_distribution():
    model = plain_model()
    report = ksd.sparsify(model, 0.5, lambda shape: float(shape[0]), seed=0)
    a, b = report.kernels
    # Densities in the ratio 6 : 20, for 120 and 100 weights, 110 of them active.
    assert (a.asked, b.asked) == pytest.approx((6 * 110 / 2720, 20 * 110 / 2720))
    with pytest.raises(ValueError, match="`distribution` must give every kernel a positive number"):
        ksd.sparsify(plain_model(), 0.5, lambda shape: 0.0)


def test_kernel_that_would_lose_all_is_named_in_a_warning():
    model = keras.Sequential([keras.Input((30,)), layers.Dense(30), layers.Dense(1, name="last")])
    with pytest.warns(UserWarning, match="no weight is left in .*last/kernel.*exclude them"):
        ksd.sparsify(model, 0.99, "uniform", seed=0)


# Structures.


def everything():
    x = inputs = keras.Input((6, 8))
    x = layers.Conv1D(8, 3, padding="same", name="conv")(x)
    x = layers.MultiHeadAttention(2, 4, name="mha")(x, x)
    x = layers.Conv1DTranspose(8, 2, padding="same", name="up")(x)
    x = layers.GRU(8, return_sequences=True, name="gru")(x)
    x = layers.Dense(12, name="dense")(x)
    return keras.Model(inputs, layers.EinsumDense("abc,dc->abd", (6, 4), name="turned")(x))


# The input axis of each kernel, stated independently.
INPUT_AXIS = {
    "conv/kernel": 1,
    "mha/query/kernel": 0,
    "mha/key/kernel": 0,
    "mha/value/kernel": 0,
    "mha/attention_output/kernel": 1,
    "up/kernel": 2,
    "gru/gru_cell/kernel": 0,
    "gru/gru_cell/recurrent_kernel": 0,
    "dense/kernel": 0,
    "turned/kernel": 1,
}


def in_groups(name, mask, size):
    moved = np.moveaxis(mask, INPUT_AXIS[name], -1)
    return moved.reshape(-1, size).sum(axis=1)


def train_a_little(model, method="rigl"):
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6, 8)).astype("float32")
    y = rng.normal(size=(4, 6, 4)).astype("float32")
    callback = ksd.DynamicSparsity(method, update_every=1, prune_rate=0.3)
    model.fit(x, y, batch_size=2, verbose=0, callbacks=[callback])


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_blocks_lie_along_the_input_axis_and_stay_whole(distribution):
    model = everything()
    report = ksd.sparsify(model, 0.6, distribution, seed=0, structure=Blocks(4))
    assert not report.left_alone and abs(report.sparsity - 0.6) < 0.02
    shapes = {k.name: k.shape for k in report.kernels}
    assert shapes.keys() == INPUT_AXIS.keys()
    first = masks(model)
    for k in report.kernels:
        blocks = in_groups(k.name, first[k.name], 4)
        assert set(blocks) <= {0, 4} and k.structure == "blocks of 4"
        assert abs(blocks.sum() - k.asked * k.size) <= 2
        if distribution == "uniform":
            assert k.asked == pytest.approx(0.4)
    # The structure does not hold along other axes by chance.
    moved = np.moveaxis(first["up/kernel"], 0, -1).reshape(-1, 2).sum(axis=1)
    assert 1 in moved
    train_a_little(model)
    for name, mask in masks(model).items():
        assert set(in_groups(name, mask, 4)) <= {0, 4} and mask.sum() == first[name].sum()
    assert not same(masks(model), first)
    check_invariant(model)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (3, 8)])
def test_n_of_m_in_every_group(n, m):
    model = everything()
    options = dict(seed=0, structure=NM(n, m), exclude="turned")
    with warnings.catch_warnings():
        # The heads of the attention output have size 4.
        warnings.simplefilter("ignore" if m == 8 else "error", UserWarning)
        report = ksd.sparsify(model, 1 - n / m, "uniform", **options)
    first = masks(model)
    sparse = [k for k in report.kernels if k.structure]
    assert len(sparse) == 8 + (m == 4)
    assert list(report.left_alone) == ([] if m == 4 else ["mha/attention_output/kernel"])
    for k in sparse:
        assert set(in_groups(k.name, first[k.name], m)) == {n} and k.structure == f"{n}:{m}"
    for k in report.kernels:
        assert k.structure or k.active == k.size
    train_a_little(model)
    for k in sparse:
        assert set(in_groups(k.name, masks(model)[k.name], m)) == {n}
    assert not same(masks(model), first)
    check_invariant(model)


@pytest.mark.slow
def test_misfits_are_left_alone_with_a_warning_or_raise():
    def model():
        x = inputs = keras.Input((6, 6), name="x")
        x = layers.DepthwiseConv1D(3, name="depth")(x)
        x = layers.Dense(8, name="six")(x)
        return keras.Model(inputs, layers.Dense(4, name="eight")(x), name="m")

    one = model()
    message = r"`structure` blocks of 4 does not fit .*depth/kernel .*six/kernel .*they stay dense"
    with pytest.warns(UserWarning, match=message):
        report = ksd.sparsify(one, 0.5, "uniform", seed=0, structure=Blocks(4))
    assert {k.name: k.active for k in report.kernels if k.name == "eight/kernel"} == {
        "eight/kernel": 16
    }
    assert report.left_alone == {
        "depth/kernel": "no input axis for blocks of 4",
        "six/kernel": "input axis of 6 is not a multiple of blocks of 4",
    }
    assert type(one.get_layer("six")) is layers.Dense
    for structure in (Blocks(4), NM(2, 4)):
        other = model()
        state = state_of(other)
        with pytest.raises(ValueError, match="`structure` .* does not fit depth/kernel"):
            ksd.sparsify(other, 0.5, "uniform", seed=0, structure=structure, on_misfit="raise")
        assert_untouched(other, state)
        # Kernels that stay dense need not fit the structure.
        for sparsity, only in (
            (0.5, dict(include="eight")),
            ({"eight": 0.5}, {}),
            ({"*": 0.5}, dict(exclude=["depth", "six"])),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                report = ksd.sparsify(
                    model(), sparsity, "uniform", structure=structure, on_misfit="raise", **only
                )
            dense = {k.name: k.structure for k in report.kernels if k.active == k.size}
            expected = {} if "include" in only else {"depth/kernel": None, "six/kernel": None}
            assert dense == expected and report.active - sum(expected and (18, 48)) == 16
    other = model()
    state = state_of(other)
    with pytest.raises(ValueError, match="nothing to make sparse: .*not a multiple of blocks of 5"):
        ksd.sparsify(other, 0.5, structure=Blocks(5))
    assert_untouched(other, state)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(structure="2:4"), "`structure` must be .*received '2:4'"),
        (dict(structure=4), "`structure` must be"),
        (dict(structure=Blocks(4), on_misfit="skip"), "`on_misfit` must be 'warn' or 'raise'"),
        (dict(structure=NM(2, 4)), "`distribution` must be 'uniform' with 2:4"),
        (dict(structure=NM(1, 4), distribution="uniform"), "`sparsity` must be 0.75 with 1:4"),
        (dict(structure=NM(1, 4), sparsity={"a": 0.5}), "`sparsity` must be 0.75 with 1:4"),
    ],
)
def test_structures_that_do_not_go_with_the_rest_raise(options, message):
    model = plain_model()
    state = state_of(model)
    with pytest.raises(ValueError, match=message):
        ksd.sparsify(model, **({"sparsity": 0.5} | options))
    assert_untouched(model, state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Blocks(1),
        lambda: Blocks(2.0),
        lambda: NM(4, 4),
        lambda: NM(0, 4),
        lambda: NM(1.0, 2),
    ],
)
def test_structure_of_no_size_raises(make):
    with pytest.raises(ValueError, match="must be .*whole number"):
        make()


def test_dense_start_prunes_nothing_yet_and_remembers():
    model = plain_model()
    before = [numpy(v).copy() for v in model.variables]
    report = ksd.sparsify(model, 0.5, seed=0, dense_start=True)
    shares = densities({"a": (6, 20), "b": (20, 5)}, 0.5)
    assert [k.asked for k in report.kernels] == list(shares.values())
    assert report.sparsity == 0.0 and all(mask.all() for mask in masks(model).values())
    now = [numpy(v) for v in model.variables if v.dtype != "bool"]
    assert all(map(np.array_equal, now, before))
    with pytest.raises(ValueError, match="Nothing is pruned"):
        model.compile("adam", "mse")
        model.fit(np.ones((2, 6)), np.ones((2, 5)), verbose=0, callbacks=[ksd.DynamicSparsity()])
    # A new draw without it prunes them.
    assert ksd.sparsify(model, 0.5, seed=0).active == 110


@pytest.mark.slow
def test_other_structure_on_a_sparse_model():
    model = everything()
    ksd.sparsify(model, 0.5, "uniform", seed=0, structure=NM(2, 4))
    report = ksd.sparsify(model, 0.6, "erk", seed=1)
    assert {k.structure for k in report.kernels} == {None}
    train_a_little(model)
    check_invariant(model)
