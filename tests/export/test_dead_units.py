import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from keras.ops import convert_to_numpy as numpy

import keras_sparse_dm as ksd
from keras_sparse_dm.diffusion import DiffusionModel, NoiseSchedule
from keras_sparse_dm.export import load_sparse, remove_dead_units, save_sparse
from keras_sparse_dm.layers import SparseConv2D, SparseDense
from keras_sparse_dm.models import ChiroDiff, UNet
from keras_sparse_dm.sparsity import check_invariant, masked_kernels


def randomize(model, random, kernels=0.5, rows=0.3, columns=0.3):
    """Random values everywhere, and kernels with zeros: whole rows, whole columns, single ones."""
    masks = {id(k.kernel): k.mask for k in masked_kernels(model)}
    for variable in model.weights:
        if variable.dtype != "float32":
            continue
        shape = tuple(variable.shape)
        values = random.uniform(0.5, 1.5, shape) * random.choice([-1, 1], shape)
        if "variance" in variable.path:
            values = np.abs(values)
        if "kernel" in variable.name:
            mask = random.random(shape) < kernels
            mask[..., random.random(shape[-2]) < rows, :] = False
            mask[..., random.random(shape[-1]) < columns] = False
            values = values * mask / np.sqrt(np.prod(shape[:-1]))
            if id(variable) in masks:
                masks[id(variable)].assign(mask)
        variable.assign(values)


def assert_same_answers(model, smaller, *inputs):
    wanted, found = numpy(model(*inputs)), numpy(smaller(*inputs))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * max(1, np.abs(wanted).max()))
    assert smaller.get_config() == type(smaller).from_config(smaller.get_config()).get_config()


# ChiroDiff -------------------------------------------------------------------------------------


def sketch_inputs(n=3, length=6):
    random = np.random.default_rng(0)
    points = random.normal(size=(n, length, 3)).astype("float32")
    return points, random.integers(0, 20, n), np.array([length, 1, length - 2])[:n]


def gru_cells(model):
    for layer in model.recurrent:
        yield layer.forward_layer.cell
        yield layer.backward_layer.cell


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bias=st.booleans(), density=st.sampled_from([0.1, 0.3, 0.6]))
def test_sketch_networks_answer_the_same(seed, bias, density):
    random = np.random.default_rng(seed)
    model = ChiroDiff(units=6, num_layers=2, timesteps=20, seed=0)
    randomize(model, random, density)
    if not bias:
        for cell in gru_cells(model):
            cell.bias.assign(numpy(cell.bias) * random.integers(0, 2, 18))
    smaller, removed = remove_dead_units(model, sketch_inputs())
    assert_same_answers(model, smaller, sketch_inputs())
    assert isinstance(smaller, ChiroDiff) and removed.largest_difference < 1e-5
    check_invariant(smaller)
    before, after = (
        sum(int(np.prod(v.shape)) for v in m.trainable_variables) for m in (model, smaller)
    )
    assert (removed.parameters_before, removed.parameters_after) == (before, after)
    assert (removed.removed > 0) == (after < before)


@pytest.mark.slow
def test_units_of_the_sketch_network_by_hand():
    model = ChiroDiff(units=4, num_layers=2, timesteps=20, seed=0)
    randomize(model, np.random.default_rng(0), 1.0, 0.0, 0.0)
    masks = {id(k.kernel): k.mask for k in masked_kernels(model)}

    def cut(variable, rows=slice(None), columns=slice(None)):
        mask = (
            numpy(masks[id(variable)]) if id(variable) in masks else np.ones(variable.shape, bool)
        )
        mask[rows, columns] = False
        masks[id(variable)].assign(mask)
        variable.assign(numpy(variable) * mask)

    (first, _), (forward, backward) = [
        (layer.forward_layer.cell, layer.backward_layer.cell) for layer in model.recurrent
    ]
    # Unit 1 of the last forward GRU leads to itself alone; unit 2 of it leads to 1 as well.
    for unit, others in ((1, [0, 2, 3]), (2, [0, 3])):
        for gate in range(3):
            cut(forward.recurrent_kernel, unit, [4 * gate + other for other in others])
        cut(model.output_projection.kernel, unit)
    # Units 0 and 3 of the backward one have no candidate; unit 3 would have one with its bias.
    cut(backward.kernel, columns=[8, 11])
    cut(backward.recurrent_kernel, columns=[8, 11])
    bias = numpy(backward.bias)
    bias[:, 8] = 0.0
    bias[1, 11] = 0.0
    backward.bias.assign(bias)
    # In the projection, unit 0 is a constant, unit 3 leads nowhere.
    cut(model.output_projection.kernel, columns=0)
    cut(model.noise_projection.kernel, 3)
    smaller, removed = remove_dead_units(model)
    rows = {row[0]: row[1:] for row in removed.layers}
    assert rows["bidirectional_0/forward"] == (4, 4, 0, 0)
    assert rows["bidirectional_1/forward"] == (4, 3, 1, 0)
    assert rows["bidirectional_1/backward"] == (4, 3, 0, 1)
    assert rows["output_projection"] == (4, 2, 1, 1)
    assert (smaller.units, smaller.projection_units) == ([4, 3], 2)
    assert_same_answers(model, smaller, sketch_inputs())
    assert "bidirectional_1/forward" in str(removed) and "parameters: " in str(removed)
    # Units that lead only to dead units are dead too.
    cut(model.output_projection.kernel, slice(0, 8), 1)
    cut(model.output_projection.kernel, slice(0, 8), 2)
    smaller, removed = remove_dead_units(model)
    assert smaller.units == [1, 1]
    assert_same_answers(model, smaller, sketch_inputs())


@pytest.mark.slow
def test_a_trained_diffusion_model_keeps_its_averages(tmp_path):
    keras.utils.set_random_seed(0)
    model = DiffusionModel(
        ChiroDiff(units=16, num_layers=2, timesteps=20, seed=0),
        NoiseSchedule.scaled_linear(20, 0.01, 0.3),
        seed=3,
    )
    ksd.sparsify(model, 0.97, seed=0)
    model.compile(keras.optimizers.AdamW(3e-2, use_ema=True, ema_momentum=0.8))
    ksd.sparse_optimizer(model, None, "static")
    points, _, lengths = sketch_inputs()
    for _ in range(3):
        model.train_on_batch({"points": points, "lengths": lengths})
    weights = numpy(model.denoiser.noise_projection.bias)
    smaller, removed = remove_dead_units(model, sketch_inputs())
    np.testing.assert_array_equal(model.denoiser.noise_projection.bias, weights)
    assert removed.parameters_after < 0.95 * removed.parameters_before
    wanted = model.generate(lengths=[4, 6], steps=3, seed=1)
    np.testing.assert_allclose(smaller.generate(lengths=[4, 6], steps=3, seed=1), wanted, atol=1e-5)
    loaded = load_sparse(save_sparse(smaller, tmp_path / "m"))
    np.testing.assert_allclose(loaded.generate(lengths=[4, 6], steps=3, seed=1), wanted, atol=1e-5)


# Sequential and functional models --------------------------------------------------------------


ACTIVATIONS = st.sampled_from(["linear", "relu", "tanh", "gelu", "sigmoid", "elu"])
PADDINGS = st.sampled_from(["valid", "same"])
BETWEEN = st.one_of(
    st.tuples(
        st.just(layers.BatchNormalization),
        st.fixed_dictionaries({"scale": st.booleans(), "center": st.booleans()}),
    ),
    st.tuples(st.just(layers.Activation), st.fixed_dictionaries({"activation": ACTIVATIONS})),
    st.tuples(
        st.sampled_from([layers.MaxPooling2D, layers.AveragePooling2D]),
        st.fixed_dictionaries(
            {"pool_size": st.just(2), "strides": st.just(1), "padding": PADDINGS}
        ),
    ),
    st.just((layers.LeakyReLU, {})),
    st.just((layers.UpSampling2D, {})),
    st.just((layers.SpatialDropout2D, {"rate": 0.5})),
)
CONVOLUTIONS = st.tuples(
    st.sampled_from([SparseConv2D, layers.Conv2D]),
    st.fixed_dictionaries(
        {
            "filters": st.integers(2, 6),
            "kernel_size": st.sampled_from([1, (2, 1)]),
            "padding": PADDINGS,
            "use_bias": st.booleans(),
            "activation": ACTIVATIONS,
        }
    ),
)
DENSE = st.tuples(
    st.just(SparseDense),
    st.fixed_dictionaries({"units": st.integers(2, 8), "activation": ACTIVATIONS}),
)


@st.composite
def images_to_numbers(draw):
    """Layers and their arguments: convolutions, layers between them, dense layers."""
    stack = []
    for _ in range(draw(st.integers(1, 2))):
        stack += [draw(CONVOLUTIONS), *draw(st.lists(BETWEEN, max_size=2))]
    stack.append((draw(st.sampled_from([layers.Flatten, layers.GlobalMaxPooling2D])), {}))
    for _ in range(draw(st.integers(0, 2))):
        stack.append(draw(DENSE))
        stack += [(layers.BatchNormalization, {})] if draw(st.booleans()) else []
    return [*stack, (layers.Dense, {"units": 3, "use_bias": draw(st.booleans())})]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    stack=images_to_numbers(),
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.2, 0.6]),
    functional=st.booleans(),
)
def test_convolutional_networks_answer_the_same(stack, seed, density, functional):
    model = keras.Sequential(
        [keras.Input((8, 8, 2)), *(make(**arguments) for make, arguments in stack)]
    )
    if functional:
        model = keras.Model(model.inputs[0], model.outputs[0])
    randomize(model, np.random.default_rng(seed), density)
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 2)).astype("float32")
    smaller, removed = remove_dead_units(model, x)
    assert_same_answers(model, smaller, x)
    assert type(smaller) is type(model) and not smaller.compiled
    for name, before, after, dead, constant in removed.layers:
        assert before - after == dead + constant and after >= 1
        size = getattr(smaller.get_layer(name), "units", None) or smaller.get_layer(name).filters
        assert size == after


def dense_network():
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4, "relu", name="one"),
            layers.BatchNormalization(),
            SparseDense(3, "tanh", name="two"),
            layers.Dense(2, name="three"),
        ]
    )


def test_dense_units_by_hand():
    model = dense_network()
    randomize(model, np.random.default_rng(0), 1.0, 0.0, 0.0)
    kernel = numpy(model.get_layer("one").kernel)
    kernel[:, 1] = 0.0  # the constant relu(bias)
    model.get_layer("one").kernel.assign(kernel)
    k = masked_kernels(model)[0]
    mask = np.ones((4, 3), bool)
    mask[:, 2] = False  # a constant
    mask[3] = False  # unit 3 leads nowhere
    mask[0, :2] = False  # unit 0 leads to unit 2 alone, which the mask cuts off too
    k.mask.assign(mask)
    k.kernel.assign(numpy(k.kernel) * mask)
    smaller, removed = remove_dead_units(model)
    assert removed.layers == (("one", 4, 1, 2, 1), ("two", 3, 2, 0, 1))
    assert removed.left_alone == {"three": "an output of the model"}
    shapes = [tuple(v.shape) for v in smaller.get_layer("two").trainable_variables]
    assert shapes == [(1, 2), (2,)]
    assert smaller.layers[1].gamma.shape == (1,)
    assert type(smaller.get_layer("two")) is SparseDense
    assert_same_answers(model, smaller, np.ones((2, 5), "float32"))


def test_a_constant_before_padding_with_zeros_stays():
    def network(padding, bias=True):
        return keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                layers.Conv2D(4, 3, activation="relu", name="first"),
                layers.Conv2D(3, 3, padding=padding, use_bias=bias, name="second"),
            ]
        )

    x = np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype("float32")
    for padding, bias, value, left in (
        ("valid", True, 0.7, 3),
        ("same", True, 0.7, 4),
        ("valid", False, 0.7, 4),
        # relu makes zero of it.
        ("same", False, -0.7, 3),
    ):
        model = network(padding, bias)
        first = model.get_layer("first")
        kernel = numpy(first.kernel)
        kernel[..., 2] = 0.0
        first.kernel.assign(kernel)
        first.bias.assign([0.1, 0.2, value, 0.3])
        smaller, removed = remove_dead_units(model, x)
        assert removed.layers[0][:3] == ("first", 4, left)
        assert_same_answers(model, smaller, x)


def test_what_the_structure_does_not_allow_is_left_alone_and_named():
    x = keras.Input((6,))
    shared = layers.Dense(6, "relu", name="shared")
    one = layers.Dense(4, "softmax", name="mixing")(shared(shared(x)))
    two = layers.Dense(4, name="added")(one)
    three = layers.Dense(4, "relu", name="free")(layers.Add(name="sum")([one, two]))
    normalized = layers.LayerNormalization(name="norm")(layers.Dense(4, name="before")(three))
    model = keras.Model(x, [layers.Dense(2, name="out")(normalized), three * 2.0])
    randomize(model, np.random.default_rng(0))
    smaller, removed = remove_dead_units(model)
    assert removed.layers == ()
    assert removed.left_alone["mixing"] == "its activation softmax mixes units"
    assert removed.left_alone["added"] == "followed by Add 'sum'"
    assert removed.left_alone["before"] == "followed by LayerNormalization 'norm'"
    assert "followed by Multiply" in removed.left_alone["free"]
    assert removed.left_alone["out"] == "an output of the model"
    x = np.random.default_rng(0).normal(size=(2, 6)).astype("float32")
    for a, b in zip(model(x), smaller(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_two_consumers_of_one_layer():
    x = keras.Input((6,))
    y = layers.Dense(4, "relu", name="first")(x)
    left, right = layers.Dense(3, name="left")(y), layers.Dense(2, name="right")(y)
    model = keras.Model(x, [left, right])
    for name, rows in (("left", [0, 1]), ("right", [1, 2])):
        kernel = numpy(model.get_layer(name).kernel)
        kernel[rows] = 0.0
        model.get_layer(name).kernel.assign(kernel)
    smaller, removed = remove_dead_units(model)
    # Unit 1 is the only one that neither uses.
    assert removed.layers == (("first", 4, 3, 1, 0),)
    x = np.random.default_rng(0).normal(size=(2, 6)).astype("float32")
    for a, b in zip(model(x), smaller(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_sparse_model_of_this_package_stays_sparse():
    model = dense_network()
    ksd.sparsify(model, 0.8, seed=0)
    model.compile("adam", "mse")
    smaller, removed = remove_dead_units(model, np.ones((2, 5), "float32"))
    assert removed.removed > 0
    assert 0 < ksd.sparsity_report(smaller).sparsity < 0.8
    check_invariant(smaller)
    # It can train on.
    smaller.compile("adam", "mse")
    smaller.fit(
        np.ones((4, 5)), np.ones((4, 2)), verbose=0, callbacks=[ksd.DynamicSparsity("static")]
    )


def test_bad_input():
    unet = UNet(32, (1,), num_res_blocks=1, attention_factors=(), timesteps=20)
    with pytest.raises(ValueError, match="`model` must be a ChiroDiff.*received a UNet"):
        remove_dead_units(unet)
    with pytest.raises(ValueError, match="`model`.*must be built"):
        remove_dead_units(keras.Sequential([layers.Dense(3)]))


def test_different_outputs_for_the_example_raise(monkeypatch):
    model = dense_network()
    randomize(model, np.random.default_rng(0))
    monkeypatch.setattr("keras_sparse_dm.export.dead_units.of_graphs._folded", lambda producer: 1.0)
    with pytest.raises(ArithmeticError, match="outputs for `example` differ by up to"):
        remove_dead_units(model, np.ones((2, 5), "float32"))
