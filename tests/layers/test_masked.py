"""Sparse layers compared with the Keras layers that they replace."""

import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.ops import convert_to_numpy as numpy
from keras.src import testing as keras_testing
from layer_cases import (
    BATCH,
    CASES,
    ONE_EACH,
    PADDING,
    PLAIN,
    SPARSE,
    STEPS,
    TWIN,
    Case,
    assert_same_bits,
    outputs_and_gradients,
    randomize,
    twins,
)

import keras_sparse_dm as ksd
from keras_sparse_dm.layers.masked import own_kernels
from keras_sparse_dm.sparsity import masked_kernels


@pytest.mark.slow
def test_every_layer_is_compared():
    used = set()
    for case in CASES.values():
        layer = case.make(TWIN)
        layer(*case.inputs(), **case.call)
        used |= {type(part) for part in layer._flatten_layers()}
    assert set(SPARSE.values()) <= used
    assert len(SPARSE) == 20
    for name, sparse in SPARSE.items():
        assert issubclass(sparse, getattr(layers, name))


def assert_twins_agree(case, theirs, ours, run=lambda function: function, dtype="float32"):
    xs = case.inputs(dtype)
    both = run(lambda *xs: [outputs_and_gradients(layer, case, xs) for layer in (theirs, ours)])
    (their_y, their_g), (our_y, our_g) = both(*xs)
    assert_same_bits(our_y, their_y)
    assert_same_bits(our_g, their_g)
    variables = [*xs, *ours.trainable_variables]
    for v, gradient in zip(variables, our_g, strict=True):
        # The loss depends on every weight except the bias of keys, which softmax cancels.
        assert np.any(gradient) or "key/bias" in v.path


@pytest.mark.tensorflow
@pytest.mark.cases(1)
@pytest.mark.parametrize("name", CASES)
def test_full_masks_give_the_bits_of_the_keras_layer(name):
    case = CASES[name]
    theirs, ours = twins(case)
    assert_twins_agree(case, theirs, ours)
    # The same before variables have values.
    symbolic = [layer(*case.symbolic_inputs(), **case.call) for layer in (ours, theirs)]
    for one, other, y in zip(
        *map(tf.nest.flatten, [*symbolic, ours(*case.inputs(), **case.call)]), strict=True
    ):
        assert one.shape == other.shape
        # Keras orders the axes behind an ellipsis differently and cannot infer all of them.
        known = zip(one.shape, y.shape, strict=True)
        assert name == "einsum_ellipsis" or all(i in (None, j) for i, j in known)
        assert one.dtype == other.dtype == y.dtype.name


@pytest.mark.slow
@pytest.mark.cases(4)
@pytest.mark.parametrize("name", ["dense", "einsum_shared", "conv2d", "gru", "lstm", "attention"])
@pytest.mark.parametrize("jit", [False, True])
def test_full_masks_give_the_bits_of_the_keras_layer_compiled(name, jit):
    case = CASES[name]
    assert_twins_agree(case, *twins(case), lambda f: tf.function(f, jit_compile=jit))


@pytest.mark.tensorflow
@pytest.mark.cases(1)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
@pytest.mark.parametrize("name", ONE_EACH)
def test_dtype_policies(name, policy):
    case = CASES[name]
    theirs, ours = twins(case, policy)
    assert_twins_agree(case, theirs, ours, dtype="float64" if policy == "float64" else "float32")
    dtypes = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16", "float64": "float64"}
    y = tf.nest.flatten(ours(*case.inputs(), **case.call))[0]
    assert y.dtype.name == dtypes[policy]
    for kernel, mask in [k for part in ours._flatten_layers() for k in getattr(part, "masks", ())]:
        assert mask.dtype == "bool"
        assert kernel.dtype == ("float64" if policy == "float64" else "float32")


class KerasChecks(keras_testing.TestCase):
    """Checks that Keras runs on each of its own layers."""

    def runTest(self):
        pass


# name: (arguments, shape or shapes of the input)
KERAS_CHECKS = {
    "Dense": ({"units": 3}, (2, 4)),
    "EinsumDense": ({"equation": "abc,cd->abd", "output_shape": (None, 3)}, (2, 5, 4)),
    "Conv1D": ({"filters": 3, "kernel_size": 2}, (2, 5, 4)),
    "Conv2D": ({"filters": 3, "kernel_size": 2}, (2, 5, 4, 2)),
    "Conv3D": ({"filters": 3, "kernel_size": 2}, (2, 3, 4, 3, 2)),
    "Conv1DTranspose": ({"filters": 3, "kernel_size": 2}, (2, 5, 4)),
    "Conv2DTranspose": ({"filters": 3, "kernel_size": 2}, (2, 5, 4, 2)),
    "Conv3DTranspose": ({"filters": 3, "kernel_size": 2}, (2, 3, 4, 3, 2)),
    "DepthwiseConv1D": ({"kernel_size": 2}, (2, 5, 4)),
    "DepthwiseConv2D": ({"kernel_size": 2}, (2, 5, 4, 2)),
    "SeparableConv1D": ({"filters": 3, "kernel_size": 2}, (2, 5, 4)),
    "SeparableConv2D": ({"filters": 3, "kernel_size": 2}, (2, 5, 4, 2)),
    "GRU": ({"units": 3, "dropout": 0.5}, (2, 5, 4)),
    "LSTM": ({"units": 3}, (2, 5, 4)),
    "SimpleRNN": ({"units": 3}, (2, 5, 4)),
    "GRUCell": ({"units": 3, "recurrent_dropout": 0.5, "seed": 1}, None),
    "LSTMCell": ({"units": 3}, None),
    "SimpleRNNCell": ({"units": 3}, None),
    "MultiHeadAttention": (
        {"num_heads": 2, "key_dim": 3, "dropout": 0.1},
        {"query_shape": (2, 5, 4), "value_shape": (2, 6, 4)},
    ),
    "GroupQueryAttention": (
        {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2},
        {"query_shape": (2, 5, 4), "value_shape": (2, 6, 4)},
    ),
}


@pytest.mark.cases(1)
@pytest.mark.filterwarnings("ignore:.*shuffle=True")
@pytest.mark.parametrize("name", SPARSE)
def test_passes_the_checks_of_keras(name):
    arguments, shape = KERAS_CHECKS[name]
    counts = {}
    if shape is not None:
        plain = getattr(layers, name)(**arguments)
        plain.build(**shape) if isinstance(shape, dict) else plain.build(shape)
        counts = {
            "expected_num_trainable_weights": len(plain.trainable_weights),
            "expected_num_non_trainable_weights": len(plain.non_trainable_weights),
            "supports_masking": plain.supports_masking,
        }
        assert any("kernel" in v.name for v in plain.trainable_weights)
    check = KerasChecks()
    check.setUp()
    check.run_layer_test(
        SPARSE[name],
        arguments,
        input_shape=shape,
        # Keras's training check passes a single input.
        run_training_check=not isinstance(shape, dict),
        **counts,
    )


# Arguments other than the defaults.
UNUSUAL = {
    "activation": "relu",
    "recurrent_activation": "tanh",
    "use_bias": False,
    "kernel_initializer": "he_normal",
    "depthwise_initializer": "he_normal",
    "recurrent_initializer": "glorot_uniform",
    "kernel_regularizer": keras.regularizers.L2(0.1),
    "pointwise_regularizer": keras.regularizers.L1(0.1),
    "kernel_constraint": keras.constraints.MaxNorm(2),
    "recurrent_constraint": keras.constraints.MaxNorm(2),
    "bias_constraint": keras.constraints.NonNeg(),
    "unit_forget_bias": False,
    "reset_after": False,
    "go_backwards": True,
    "return_sequences": True,
    "return_state": True,
    "stateful": True,
    "unroll": True,
    "dropout": 0.25,
    "recurrent_dropout": 0.125,
    "seed": 5,
    "strides": 2,
    "padding": "same",
    "data_format": "channels_first",
    "depth_multiplier": 2,
    "value_dim": 5,
    "attention_axes": (1,),
    "use_gate": True,
    "sliding_window": 3,
    "trainable": False,
    "name": "mine",
    "dtype": "mixed_bfloat16",
}


@pytest.mark.parametrize("name", SPARSE)
def test_configuration_is_that_of_the_keras_layer(name):
    sparse, plain = SPARSE[name], getattr(layers, name)
    assert inspect.signature(sparse) == inspect.signature(plain)
    assert inspect.signature(sparse.build) == inspect.signature(plain.build)
    assert inspect.signature(sparse.call) == inspect.signature(plain.call)
    arguments, shape = KERAS_CHECKS[name]
    taken = {*inspect.signature(plain).parameters, "trainable", "name", "dtype"}
    unusual = {key: value for key, value in UNUSUAL.items() if key in taken}
    assert len(unusual) > 4
    for own in ({"name": "mine"}, unusual):
        theirs, layer = plain(**{**arguments, **own}), sparse(**{**arguments, **own})
        config = layer.get_config()
        assert config == theirs.get_config()
        serialized = keras.saving.serialize_keras_object(layer)
        copies = [sparse.from_config(config), keras.saving.deserialize_keras_object(serialized)]
        shape = shape or (2, 5)
        for one in (layer, *copies):
            assert type(one) is sparse and one.get_config() == config
        for one in (theirs, layer, *copies):
            one.build(**shape) if isinstance(shape, dict) else one.build(shape)
            assert one.get_config() == theirs.get_config()
        for one in copies:
            assert described(one.variables) == described(layer.variables)
            assert len(one.masks) > 0
        plain_variables = [v for v in layer.variables if v.dtype != "bool"]
        assert described(plain_variables) == described(theirs.variables)


def described(variables):
    """Return a text without the numbers that Keras counts up in names."""
    return [(re.sub(r"_\d+/", "/", v.path), v.shape, v.dtype, v.trainable) for v in variables]


@pytest.mark.slow
def test_initial_weights_are_those_of_the_keras_layer():
    for name in ONE_EACH:
        initial = []
        for source in (PLAIN, TWIN):
            keras.utils.set_random_seed(7)
            layer = CASES[name].make(source)
            layer(*CASES[name].inputs(), **CASES[name].call)
            initial.append(layer.trainable_variables)
        assert_same_bits(*initial)


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "make, shapes",
    [
        (lambda L: L.GRU(4, dropout=0.5, recurrent_dropout=0.5, seed=3), [(5, 4)]),
        (lambda L: L.LSTM(4, dropout=0.5, seed=3), [(5, 4)]),
        (lambda L: L.RNN(L.SimpleRNNCell(4, recurrent_dropout=0.5, seed=3)), [(5, 4)]),
        (lambda L: L.MultiHeadAttention(2, 3, dropout=0.5, seed=3), [(5, 4), (5, 4)]),
        (lambda L: L.GroupQueryAttention(3, 2, 1, dropout=0.5, seed=3), [(5, 4), (5, 4)]),
    ],
    ids=["gru", "lstm", "cell", "attention", "grouped_attention"],
)
def test_dropout_is_that_of_the_keras_layer(make, shapes):
    case = Case(make, shapes)
    theirs, ours = twins(case)
    xs = case.inputs()
    for _ in range(2):
        dropped = ours(*xs, training=True)
        assert_same_bits(dropped, theirs(*xs, training=True))
        kept, _ = ours(*xs), theirs(*xs)
        assert np.any(numpy(dropped) != numpy(kept))


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["GRU", "LSTM", "SimpleRNN"])
def test_state_and_initial_state_are_those_of_the_keras_layer(name):
    x = CASES["gru"].inputs()[0]
    case = Case(lambda L: getattr(L, name)(4, stateful=True, return_state=True), [x.shape[1:]])
    theirs, ours = twins(case)
    for layer in (ours, theirs):
        layer.reset_state()
    first = [layer(x) for layer in (ours, theirs)]
    second = [layer(x) for layer in (ours, theirs)]
    assert_same_bits(*first)
    assert_same_bits(*second)
    assert np.any(numpy(first[0][0]) != numpy(second[0][0]))
    state = [tf.ones((BATCH, 4)) * i for i in range(len(first[0]) - 1)]
    assert_same_bits(*(layer(x, initial_state=state) for layer in (ours, theirs)))
    for layer in (ours, theirs):
        layer.reset_state()
    assert_same_bits(*(layer(x) for layer in (ours, theirs)))


def sequence_cases():
    return [n for n, c in CASES.items() if len(c.shapes[0]) == 2 and "mask" not in c.call]


@pytest.mark.cases(1)
@pytest.mark.filterwarnings("ignore:.*mask attached")
@pytest.mark.parametrize("name", sequence_cases())
def test_padding_goes_the_way_it_goes_in_the_keras_layer(name):
    case = CASES[name]
    theirs, ours = twins(case)
    assert ours.supports_masking == theirs.supports_masking
    xs = [numpy(x) for x in case.inputs()]
    mask = PADDING[:, : xs[0].shape[1]]
    if xs[0].shape[1] != STEPS:
        mask = np.arange(xs[0].shape[1]) < np.array([8, 2, 4])[:, None]
    xs[0] = np.where(mask[..., None], xs[0], 0)
    found = []
    for layer in (ours, theirs):
        first = layers.Masking()(xs[0])
        y = tf.nest.flatten(layer(first, *xs[1:], **case.call))[0]
        found.append((y, getattr(y, "_keras_mask", None)))
    assert_same_bits(found[0][0], found[1][0])
    assert (found[0][1] is None) == (found[1][1] is None)
    if found[0][1] is not None:
        assert_same_bits(found[0][1], found[1][1])


def test_output_ignores_padding():
    model = keras.Sequential(
        [layers.Masking(), layers.Bidirectional(TWIN.GRU(4, return_sequences=True))]
    )
    x = np.where(PADDING[..., None], CASES["gru"].inputs()[0], 0).astype("float32")
    full = numpy(model(x))
    for i, length in enumerate(PADDING.sum(axis=1)):
        alone = numpy(model(x[i : i + 1, :length]))
        np.testing.assert_allclose(full[i : i + 1, :length], alone, atol=1e-6)


@pytest.mark.tensorflow
@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ONE_EACH)
def test_training_is_that_of_the_keras_layer(name):
    """A plain optimizer trains sparse layers with full masks."""
    case = CASES[name]
    theirs, ours = twins(case)
    before = [numpy(v) for v in ours.trainable_variables]
    xs = case.inputs()
    for layer in (theirs, ours):
        optimizer = keras.optimizers.Adam(0.01)
        for _ in range(3):
            with tf.GradientTape() as tape:
                y = tf.nest.flatten(layer(*xs, **case.call))[0]
                loss = tf.reduce_mean(tf.square(y - 1))
            gradients = tape.gradient(loss, layer.trainable_variables)
            optimizer.apply_gradients(zip(gradients, layer.trainable_variables, strict=True))
    assert_same_bits(ours.trainable_variables, theirs.trainable_variables)
    for v, old in zip(ours.trainable_variables, before, strict=True):
        assert np.any(numpy(v) != old)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", CASES)
def test_masks_are_boolean_variables_beside_their_kernels(name):
    case = CASES[name]
    theirs, ours = twins(case)
    fresh = case.make(TWIN)
    assert not any(getattr(layer, "masks", ()) for layer in fresh._flatten_layers())
    kernels = [v for v in ours.trainable_variables if "kernel" in v.name]
    found = {id(k.kernel): k.mask for k in masked_kernels(ours)}
    assert len(kernels) == len(found) > 0
    if isinstance(ours, ksd.layers.MaskedKernels):
        assert {id(kernel): mask for kernel, mask in ours.masks} == found
        assert len(ours.masks) == len(found)
    for kernel in kernels:
        mask = found[id(kernel)]
        assert isinstance(mask, keras.Variable)
        assert mask.dtype == "bool" and not mask.trainable and mask.shape == kernel.shape
        assert mask.path == f"{kernel.path}_mask"
        assert numpy(mask).all()
        # Masks are not weights.
        assert all(mask is not v for v in ours.variables)
        assert sum(kernel is v for v in ours.weights) == 1
    assert len(ours.variables) == len(theirs.variables)
    assert ours.count_params() == theirs.count_params()
    ours.trainable = False
    assert len(ours.trainable_variables) == 0 and len(masked_kernels(ours)) == len(kernels)


def linear_layers():
    """Return `{name: (layer, input shape)}`, with stride 1 and no padding."""
    plain = {"use_bias": False}
    return {
        "dense": (TWIN.Dense(3, **plain), (5,)),
        "einsum_heads": (TWIN.EinsumDense("abc,cde->abde", (None, 3, 2)), (2, 4)),
        "einsum_merge": (TWIN.EinsumDense("abde,dec->abc", (None, 4)), (2, 3, 2)),
        "einsum_swapped": (TWIN.EinsumDense("abc,dc->abd", (None, 3)), (2, 4)),
        "einsum_between": (TWIN.EinsumDense("abc,dce->abde", (None, 3, 2)), (2, 4)),
        "einsum_split": (TWIN.EinsumDense("abd,bcd->ac", 3), (2, 4)),
        "einsum_ellipsis": (TWIN.EinsumDense("...x,xy->...y", 3), (2, 2, 4)),
        "einsum_shared": (TWIN.EinsumDense("abc,bcd->abd", (2, 3)), (2, 4)),
        "einsum_diagonal": (TWIN.EinsumDense("abc,cd->abcd", (None, 4, 3)), (2, 4)),
        "conv1d": (TWIN.Conv1D(5, 3, **plain), (5, 4)),
        "conv1d_groups": (TWIN.Conv1D(6, 3, groups=2, **plain), (5, 4)),
        "conv2d": (TWIN.Conv2D(5, (3, 2), **plain), (5, 4, 3)),
        "conv2d_first": (TWIN.Conv2D(5, 2, data_format="channels_first", **plain), (3, 3, 4)),
        "conv2d_dilated": (TWIN.Conv2D(5, 2, dilation_rate=2, **plain), (4, 5, 3)),
        "conv3d": (TWIN.Conv3D(4, 2, **plain), (3, 3, 2, 3)),
        "conv1d_transpose": (TWIN.Conv1DTranspose(5, 2, **plain), (4, 3)),
        "conv2d_transpose": (TWIN.Conv2DTranspose(5, 2, **plain), (3, 4, 3)),
        "conv3d_transpose": (TWIN.Conv3DTranspose(4, 2, **plain), (3, 3, 3, 2)),
        "depthwise1d": (TWIN.DepthwiseConv1D(3, depth_multiplier=2, **plain), (5, 4)),
        "depthwise2d": (TWIN.DepthwiseConv2D(2, **plain), (3, 4, 3)),
    }


def attention_layers():
    one = TWIN.MultiHeadAttention(2, 3, value_dim=5, output_shape=4, use_bias=False)
    one.build(query_shape=(1, 2, 6), value_shape=(1, 3, 7))
    other = TWIN.GroupQueryAttention(3, 4, 2, use_bias=False, use_gate=True)
    other.build(query_shape=(1, 2, 6), value_shape=(1, 3, 7))
    parts = {"query": (2, 6), "key": (3, 7), "value": (3, 7)}
    return {
        **{f"attention_{n}": (getattr(one, f"_{n}_dense"), s) for n, s in parts.items()},
        **{f"grouped_{n}": (getattr(other, f"_{n}_dense"), s) for n, s in parts.items()},
        "attention_output": (one._output_dense, (2, 2, 5)),
        "grouped_output": (other._output_dense, (2, 4, 3)),
        "grouped_gate": (other._gate_dense, (2, 6)),
    }


def jacobian(layer, shape):
    """Return the Jacobian (outputs, inputs) of a linear layer for one example."""
    size = np.prod(shape)
    unit = np.eye(size, dtype="float32").reshape(size, *shape)
    return numpy(layer(unit)).reshape(size, -1).T


@pytest.mark.parametrize("name", [*linear_layers(), *attention_layers()])
def test_axes_of_a_kernel_are_what_the_layer_makes_of_it(name):
    """Each slice along an axis connects different features, and all slices connect all."""
    layer, shape = {**linear_layers(), **attention_layers()}[name]
    if not layer.built:
        layer.build((1, *shape))
    layer.activation = keras.activations.linear  # the gate has one
    ((kernel, axes),) = own_kernels(layer).values()
    values = np.random.default_rng(0).uniform(1, 2, size=kernel.shape)
    kernel.assign(values)
    full = jacobian(layer, shape)
    assert full.any(axis=0).all() and full.any(axis=1).all()

    # An output in the middle of the image depends on the whole window of all its inputs.
    *window, inputs, outputs = axes.as_matrix(kernel.shape)
    assert (full != 0).sum(axis=1).max() == np.prod(window) * inputs
    assert np.prod(window) * inputs * outputs == values.size

    for kind, side in ((axes.inputs, 0), (axes.outputs, 1)):
        reached, gone = np.zeros(full.shape[1 - side], int), []
        for index in np.ndindex(*(values.shape[axis] for axis in kind)):
            chosen = np.zeros_like(values)
            at = [slice(None)] * values.ndim
            for axis, i in zip(kind, index, strict=True):
                at[axis] = i
            chosen[tuple(at)] = values[tuple(at)]
            kernel.assign(chosen)
            reached += jacobian(layer, shape).any(axis=side)
            kernel.assign(values - chosen)
            gone.append((~jacobian(layer, shape).any(axis=side)).sum())
        # No two slices connect the same feature, and removing a slice disconnects its features.
        np.testing.assert_array_equal(reached, 1)
        assert sum(gone) == reached.size and len(set(gone)) == 1
    assert axes.groups == getattr(layer, "groups", 1)


@pytest.mark.parametrize("name", ["SeparableConv1D", "SeparableConv2D"])
def test_axes_of_separable_kernels(name):
    shape = (4, 3) if "1D" in name else (3, 4, 3)
    layer = SPARSE[name](6, 2, depth_multiplier=2, use_bias=False)
    layer.build((1, *shape))
    axes = {n: a for n, (_, a) in own_kernels(layer).items()}
    assert list(axes) == ["depthwise_kernel", "pointwise_kernel"]
    depthwise, pointwise = layer.depthwise_kernel, layer.pointwise_kernel
    assert axes["depthwise_kernel"].as_matrix(depthwise.shape) == (*depthwise.shape[:-2], 1, 6)
    assert axes["pointwise_kernel"].as_matrix(pointwise.shape) == (*[1] * (len(shape) - 1), 6, 6)
    # An identity as pointwise kernel shows the depthwise kernel alone.
    pointwise.assign(np.eye(6).reshape(pointwise.shape))
    for channel in range(3):
        for multiple in range(2):
            values = np.zeros(depthwise.shape)
            values[..., channel, multiple] = 1
            depthwise.assign(values)
            seen = jacobian(layer, shape).reshape(-1, 6, np.prod(shape[:-1]), 3).any(axis=(0, 2))
            assert seen.sum() == 1 and seen[2 * channel + multiple, channel]
    depthwise.assign(np.ones(depthwise.shape))
    for i in range(6):
        values = np.zeros(pointwise.shape)
        values[..., i, 4] = 1
        pointwise.assign(values)
        seen = jacobian(layer, shape).reshape(-1, 6, np.prod(shape[:-1]), 3).any(axis=(0, 2))
        assert seen.sum() == 1 and seen[4, i // 2]


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell", "SimpleRNNCell"])
def test_axes_of_recurrent_kernels(name):
    cell = SPARSE[name](4)
    cell.build((1, 3))
    randomize(cell)
    gates = {"GRUCell": 3, "LSTMCell": 4, "SimpleRNNCell": 1}[name]
    shapes = [a.as_matrix(k.shape) for k, a in own_kernels(cell).values()]
    assert shapes == [(3, gates * 4), (4, gates * 4)]
    x, h = tf.ones((1, 3)), tf.ones((1, 4))
    states = [h, h * 0.5][: 2 if name == "LSTMCell" else 1]

    def dependence():
        with tf.GradientTape() as tape:
            tape.watch([x, h])
            y, _ = cell(x, states)
            y = y[:, 0]  # a unit's own state reaches it without the kernel
        on_x, on_h = tape.gradient(y, [x, h])
        return [*(numpy(on_x)[0] != 0), *(numpy(on_h)[0, 1:] != 0)]

    assert dependence() == [True] * 6
    for kernel, rows in ((cell.kernel, range(3)), (cell.recurrent_kernel, range(1, 4))):
        values = numpy(kernel)
        for row in rows:
            changed = values.copy()
            changed[row] = 0
            kernel.assign(changed)
            place = row if kernel is cell.kernel else 2 + row
            assert dependence() == [i != place for i in range(6)]
        kernel.assign(values)
