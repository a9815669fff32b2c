"""`check_invariant` passes after training, and fails after any manipulation."""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers
from keras.ops import convert_to_numpy as numpy
from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseDense, SparseGRU
from keras_sparse_dm.sparsity import NM, Blocks, check_invariant, masked_kernels


def trained(optimizer):
    model = keras.Sequential(
        [keras.Input((6,)), SparseDense(8, "tanh", name="a"), SparseDense(4, name="b")]
    )
    ksd.sparsify(model, 0.5, "uniform", seed=0)
    model.compile(optimizer, "mse", run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    callback = ksd.DynamicSparsity("rigl", update_every=2, prune_rate=0.3)
    model.fit(x, x[:, :4], batch_size=8, verbose=0, callbacks=[callback])
    return model


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return trained(keras.optimizers.AdamW(0.01, use_ema=True, gradient_accumulation_steps=2))


def change(variable, pick, value):
    """Set one entry among those that `pick` marks; return a function that restores it."""
    before = numpy(variable)
    after = before.copy()
    after[tuple(np.argwhere(pick)[0])] = value
    variable.assign(after)
    return lambda: variable.assign(before)


def test_passes_after_training(model):
    check_invariant(model)
    check_invariant(
        model, {k.name: k.mask.shape[0] * k.mask.shape[1] // 2 for k in masked_kernels(model)}
    )


@pytest.mark.parametrize("kernel", [0, 1])
@pytest.mark.parametrize("value", [1.0, -1e-30, float("nan"), float("inf")])
def test_a_pruned_weight_that_is_not_zero(model, kernel, value):
    k = masked_kernels(model)[kernel]
    undo = change(k.kernel, ~numpy(k.mask), value)
    try:
        with pytest.raises(AssertionError, match=f"{k.name}: 1 pruned entries of weight"):
            check_invariant(model)
    finally:
        undo()
    check_invariant(model)


@pytest.mark.parametrize("kind", ["momentum", "velocity", "average", "gradient_accumulator"])
def test_state_of_a_pruned_weight_that_is_not_zero(model, kind):
    k = masked_kernels(model)[1]
    [state] = [
        v
        for v in model.optimizer.inner_optimizer.variables
        if v.name.endswith(kind) and "b_kernel" in v.name
    ]
    undo = change(state, ~numpy(k.mask), 1e-20)
    try:
        with pytest.raises(AssertionError, match=f"{k.name}: 1 pruned entries of .*{kind}"):
            check_invariant(model)
    finally:
        undo()
    check_invariant(model)


@pytest.mark.parametrize("kernel", [0, 1])
@pytest.mark.parametrize("value", [True, False])
def test_a_mask_with_another_number_of_ones(model, kernel, value):
    k = masked_kernels(model)[kernel]
    mask, weights = numpy(k.mask), numpy(k.kernel)
    ones = int(mask.sum())
    undo = change(k.mask, mask != value, value)
    k.kernel.assign(np.where(numpy(k.mask), weights, 0))  # only the count is wrong
    for v in model.optimizer.state_of(k.kernel):
        v.assign(np.where(numpy(k.mask), numpy(v), 0))
    try:
        message = f"{k.name}: mask has {ones + (1 if value else -1)} ones instead of {ones}"
        with pytest.raises(AssertionError, match=message):
            check_invariant(model)
    finally:
        undo()
        k.kernel.assign(weights)
    check_invariant(model)


def test_every_broken_kernel_is_named(model):
    undo = [change(k.kernel, ~numpy(k.mask), 1.0) for k in masked_kernels(model)]
    try:
        with pytest.raises(AssertionError) as error:
            check_invariant(model)
    finally:
        [u() for u in undo]
    assert all(k.name in str(error.value) for k in masked_kernels(model))


def test_numbers_given_are_held_to(model):
    name = masked_kernels(model)[0].name
    with pytest.raises(AssertionError, match="mask has 24 ones instead of 23"):
        check_invariant(model, {name: 23})


def test_model_that_is_not_compiled():
    model = keras.Sequential([keras.Input((4,)), SparseDense(4)])
    ksd.sparsify(model, 0.5, seed=0)
    check_invariant(model)
    k = masked_kernels(model)[0]
    change(k.kernel, ~numpy(k.mask), 1.0)
    with pytest.raises(AssertionError, match="1 pruned entries of weight"):
        check_invariant(model)


def test_loaded_model_is_checked_with_its_moments(model, tmp_path):
    """This works before a callback attaches the optimizer to the loaded model."""
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    check_invariant(loaded)
    k = masked_kernels(loaded)[0]
    [velocity] = [
        v
        for v in loaded.optimizer.inner_optimizer.variables
        if v.name.endswith("velocity") and "a_kernel" in v.name
    ]
    change(velocity, ~numpy(k.mask), 1.0)
    with pytest.raises(AssertionError, match="velocity"):
        check_invariant(loaded)


def test_model_without_sparse_kernels_raises():
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="has no sparse kernel"):
        check_invariant(plain)


def dense_layers(units):
    return [layers.Flatten(), layers.Dense(units, "tanh"), layers.Dense(4), SparseDense(2)]


def convolutions(units):
    return [
        layers.Conv1D(units, 3, padding="same", kernel_constraint="max_norm"),
        layers.BatchNormalization(),
        layers.DepthwiseConv1D(2),
        layers.Flatten(),
        layers.Dense(2),
    ]


def recurrent(units):
    return [layers.Bidirectional(SparseGRU(units)), layers.Dense(2)]


def projections(units):
    return [
        layers.EinsumDense("abc,dc->abd", (None, units), bias_axes="d"),
        layers.LayerNormalization(),
        layers.GlobalAveragePooling1D(),
        layers.Dense(2),
    ]


MODELS = [dense_layers, convolutions, recurrent, projections]
OPTIMIZERS = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "AdamW": {"weight_decay": 0.1},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Lion": {},
    "Adagrad": {},
    "Muon": {},
    "Adafactor": {"epsilon_1": 1e-16},
}
STEPS = 3


@st.composite
def cases(draw):
    method = draw(st.sampled_from(["rigl", "magran", "set", "snfs", "gmp", "static"]))
    structures = [None]
    if method != "set":
        structures.append(Blocks(2))
    if method != "gmp":
        structures.append(NM(1, 2))
    structure = draw(st.sampled_from(structures))
    accumulation = draw(st.sampled_from([None, None, 2]))
    clipping = draw(st.sampled_from(["clipnorm", "global_clipnorm", "clipvalue", None]))
    every = draw(st.integers(1, 3))
    options = {
        "update_every": every,
        "prune_rate": draw(st.sampled_from([0.1, 0.4, 1.0])),
        "grow_init": draw(st.sampled_from(["zeros", "normal"])),
        "gradient_steps": draw(st.integers(1, every)),
        "seed": draw(st.integers(0, 9)),
    }
    if method != "gmp" and not isinstance(structure, NM):
        options["competition"] = draw(st.sampled_from(["kernel", "global"]))
    sparsity = 0.5 if isinstance(structure, NM) else draw(st.sampled_from([0.3, 0.5, 0.8]))
    if method == "gmp":
        options["schedule"] = PolynomialDecay(0.1, sparsity, 0, 6, power=1, frequency=1)
        options["gradient_steps"] = 1
    uniform = isinstance(structure, NM)
    return {
        "build": draw(st.sampled_from(MODELS)),
        "units": draw(st.sampled_from([2, 4, 6])),
        "policy": draw(st.sampled_from(["float32", "mixed_float16", "mixed_bfloat16"])),
        "optimizer": draw(st.sampled_from(list(OPTIMIZERS))),
        "arguments": {
            "use_ema": draw(st.booleans()),
            "gradient_accumulation_steps": accumulation,
        }
        | ({clipping: 0.1} if clipping else {}),
        "sparsify": {
            "sparsity": sparsity,
            "distribution": "uniform"
            if uniform
            else draw(st.sampled_from(["erk", "er", "uniform"])),
            "structure": structure,
            "dense_start": method == "gmp",
            "seed": 3,
        },
        "method": method,
        "options": options,
    }


class Checked(keras.callbacks.Callback):
    """Callback that checks the invariant and the numbers of ones after every batch."""

    def __init__(self, fixed):
        super().__init__()
        self.fixed = fixed

    def on_train_begin(self, logs=None):
        self.ones = {k.name: int(numpy(k.mask).sum()) for k in masked_kernels(self.model)}

    def on_train_batch_end(self, batch, logs=None):
        check_invariant(self.model, self.ones if self.fixed else None)
        for k in masked_kernels(self.model):
            assert not numpy(k.kernel)[~numpy(k.mask)].any()
            if isinstance(k.target.structure, NM):
                assert 2 * numpy(k.mask).sum() == k.size


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::UserWarning")  # kernels that stay dense or become empty
@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # shrinking would take minutes
    suppress_health_check=list(HealthCheck),
)
@given(case=cases())
def test_it_holds_at_every_step_of_any_training_and_after_resuming(case, tmp_path_factory):
    """A run that was saved, loaded and resumed equals an uninterrupted run bit for bit."""
    x = np.random.default_rng(0).normal(size=(4 * STEPS, 6, 4)).astype("float32")

    def make():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6, 4)), *case["build"](case["units"])])
        cls = getattr(keras.optimizers, case["optimizer"])
        optimizer = cls(0.01, **OPTIMIZERS[case["optimizer"]], **case["arguments"])
        model.compile(optimizer, "mse", run_eagerly=True)
        ksd.sparsify(model, **case["sparsify"])
        return model

    def fit(model, *callbacks):
        model.run_eagerly = True  # is not saved
        sparse = ksd.DynamicSparsity(case["method"], **case["options"])
        model.fit(
            x,
            x[:, 0, :2],
            batch_size=4,
            shuffle=False,
            verbose=0,
            callbacks=[sparse, *callbacks],
        )

    fixed = case["method"] != "gmp" and case["options"].get("competition") != "global"
    keras.config.set_dtype_policy(case["policy"])
    try:
        unbroken, broken = make(), make()
        active = sum(int(numpy(k.mask).sum()) for k in masked_kernels(unbroken))
        fit(unbroken, Checked(fixed))
        fit(broken)
        path = tmp_path_factory.mktemp("invariant") / "m.keras"
        broken.save(path)
        keras.utils.set_random_seed(5)
        broken = keras.models.load_model(path)
        check_invariant(broken)
        fit(unbroken, Checked(fixed))
        fit(broken)
    finally:
        keras.config.set_dtype_policy("float32")
    if case["method"] != "gmp":
        assert active == sum(int(numpy(k.mask).sum()) for k in masked_kernels(unbroken))
    ours = [*broken.weights, *broken.optimizer.variables]
    theirs = [*unbroken.weights, *unbroken.optimizer.variables]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b), err_msg=f"{a.path} of {case}")
