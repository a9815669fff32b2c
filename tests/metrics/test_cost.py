import json
import math
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_schedule import (
    PolynomialDecay,
)

from keras_sparse_dm import DynamicSparsity, sparsify, sparsity_report
from keras_sparse_dm import layers as sparse
from keras_sparse_dm.layers import SparseDense, SparseGRU
from keras_sparse_dm.metrics import kernel_flops
from keras_sparse_dm.metrics.costs.cost import cost
from keras_sparse_dm.metrics.costs.flops import forward_flops
from keras_sparse_dm.models import ChiroDiff, UNet, VQAutoencoder
from keras_sparse_dm.sparsity import densities
from keras_sparse_dm.study.paper import PAPER_COSTS, PAPER_SETTINGS

SLOW_FIXTURES = {"paper_unet", "paper_networks"}


def dense_network(*units, inputs=7, shape=()):
    layers = [keras.Input((*shape, inputs))]
    layers += [SparseDense(n, name=f"dense_{i}") for i, n in enumerate(units)]
    return keras.Sequential(layers)


def frozen_graph(function, *example):
    """Return the graph of a function with constant variables and static shapes."""
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    function = tf.function(function).get_concrete_function(*map(tf.constant, example))
    frozen = convert_variables_to_constants_v2(function)
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(frozen.graph.as_graph_def(), name="")
    return graph


def profiler_flops(function, *example):
    """Return TensorFlow's own count of the products in one forward pass."""
    graph = frozen_graph(lambda *x: function(*x), *example)
    options = tf.compat.v1.profiler.ProfileOptionBuilder(
        tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    )
    options = options.with_empty_output().build()
    with graph.as_default():
        profile = tf.compat.v1.profiler.profile(graph, cmd="op", options=options)
    multiply = ("MatMul", "BatchMatMul", "Conv", "DepthwiseConv")
    nodes, counted = list(profile.children), []
    while nodes:
        node = nodes.pop()
        nodes += node.children
        counted += [node.float_ops] if node.name.startswith(multiply) else []
    return sum(counted)


def einsum_flops(function, *example):
    """Return the FLOPs of a graph's einsum operations, which the profiler does not count.

    Counts one multiply-add for each combination of an equation's indices.
    """
    total = 0
    for operation in frozen_graph(function, *example).get_operations():
        if operation.type != "Einsum":
            continue
        terms = operation.get_attr("equation").decode().split("->")[0].split(",")
        sizes = {}
        for term, tensor in zip(terms, operation.inputs, strict=True):
            sizes |= dict(zip(term, tensor.shape.as_list(), strict=True))
        total += 2 * math.prod(sizes.values())
    return total


def test_agrees_with_tensorflows_profiler():
    model = dense_network(5, 11, 3)
    example = np.zeros((1, 7), "float32")
    wanted = profiler_flops(model, example)
    assert wanted == 2 * (7 * 5 + 5 * 11 + 11 * 3)
    assert cost(model, example).dense_flops == wanted


def name_of(value):
    return type(value).__name__ if isinstance(value, keras.layers.Layer) else ""


@pytest.mark.parametrize(
    "layer, shape",
    [
        (sparse.SparseConv1D(5, 3, strides=2), (9, 4)),
        (sparse.SparseConv1D(5, 3, padding="causal"), (9, 4)),
        (sparse.SparseConv2D(5, (3, 2), strides=(2, 1), padding="same"), (7, 6, 3)),
        (sparse.SparseConv3D(5, 2, strides=2), (4, 5, 4, 3)),
        (sparse.SparseConv2DTranspose(5, 3, strides=2, padding="same"), (4, 3, 2)),
        (sparse.SparseDepthwiseConv1D(3, depth_multiplier=2), (9, 4)),
        (sparse.SparseDepthwiseConv2D(3, strides=2, padding="same"), (7, 6, 3)),
        (sparse.SparseSeparableConv1D(5, 3, strides=2, depth_multiplier=2), (9, 4)),
        (sparse.SparseSeparableConv2D(5, 3, padding="same"), (7, 6, 3)),
    ],
    ids=name_of,
)
def test_layers_agree_with_tensorflows_profiler(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer])
    example = np.zeros((1, *shape), "float32")
    assert cost(model, example).dense_flops == profiler_flops(model, example) > 0


@pytest.mark.parametrize(
    "layer, shape",
    [
        (sparse.SparseDense(3, use_bias=False), (2, 5)),
        (sparse.SparseEinsumDense("ab,bc->ac", 5), (7,)),
        (sparse.SparseEinsumDense("abc,cde->abde", (None, 3, 2)), (5, 4)),
        (sparse.SparseEinsumDense("abde,dec->abc", (None, 4)), (5, 3, 2)),
        (sparse.SparseEinsumDense("abd,bcd->ac", 3), (2, 4)),
        (sparse.SparseEinsumDense("...x,xy->...y", 3), (2, 5, 4)),
        (sparse.SparseEinsumDense("abc,bcd->abd", (5, 3)), (5, 4)),
        (sparse.SparseEinsumDense("abc,cd->abcd", (None, 4, 3)), (5, 4)),
        (sparse.SparseConv1D(4, 3, groups=2, strides=2), (8, 6)),
        (sparse.SparseConv2D(4, 2, data_format="channels_first"), (3, 5, 4)),
        (sparse.SparseConv2D(5, 2, dilation_rate=2), (7, 6, 3)),
        (sparse.SparseConv1DTranspose(5, 3, strides=2), (6, 4)),
        (sparse.SparseConv2DTranspose(5, (2, 3), dilation_rate=2), (4, 5, 2)),
        (sparse.SparseConv2DTranspose(5, 2, data_format="channels_first"), (2, 4, 5)),
        (sparse.SparseConv3DTranspose(3, 2, strides=2), (2, 3, 4, 2)),
        (sparse.SparseDepthwiseConv2D(2, depth_multiplier=3), (5, 4, 2)),
    ],
    ids=name_of,
)
def test_every_multiplication_counts_once(layer, shape):
    """With all weights and inputs at one, the outputs sum to the number of products."""
    model = keras.Sequential([keras.Input(shape), layer])
    ((kernel, _),) = layer.masks
    kernel.assign(np.ones(kernel.shape))
    example = np.ones((1, *shape), "float32")
    assert cost(model, example).dense_flops == 2 * np.sum(model(example)) > 0


@pytest.mark.parametrize(
    "layer, products",
    [
        (sparse.SparseLSTM(4), 7 * (3 * 16 + 4 * 16)),
        (sparse.SparseSimpleRNN(4, return_sequences=True), 7 * (3 * 4 + 4 * 4)),
        (keras.layers.RNN(sparse.SparseGRUCell(4)), 7 * (3 * 12 + 4 * 12)),
        (
            keras.layers.RNN(
                keras.layers.StackedRNNCells([sparse.SparseLSTMCell(5), sparse.SparseGRUCell(4)])
            ),
            7 * ((3 * 20 + 5 * 20) + (5 * 12 + 4 * 12)),
        ),
        (keras.layers.Bidirectional(sparse.SparseLSTM(4)), 7 * 2 * (3 * 16 + 4 * 16)),
        (keras.layers.TimeDistributed(SparseDense(4)), 7 * 3 * 4),
    ],
    ids=["lstm", "simple_rnn", "rnn", "stacked", "bidirectional", "distributed"],
)
def test_steps_of_a_sequence_count_each(layer, products):
    model = keras.Sequential([keras.Input((7, 3)), layer])
    assert cost(model, np.zeros((1, 7, 3), "float32")).dense_flops == 2 * products


@pytest.mark.slow
def test_attention_counts_its_projections():
    x, y = keras.Input((7, 6)), keras.Input((5, 3))
    layer = sparse.SparseMultiHeadAttention(2, 4, value_dim=5, output_shape=8)
    model = keras.Model([x, y], layer(x, y))
    example = [np.zeros((1, 7, 6), "float32"), np.zeros((1, 5, 3), "float32")]
    products = 7 * 6 * 2 * 4 + 5 * 3 * 2 * 4 + 5 * 3 * 2 * 5 + 7 * 2 * 5 * 8
    assert cost(model, example).dense_flops == 2 * products
    sparsify(model, 0.5, "uniform", seed=0)
    assert cost(model, example).sparse_flops == products
    layer, y = sparse.SparseGroupedQueryAttention(4, 6, 2, use_gate=True), keras.Input((5, 6))
    model = keras.Model([x, y], layer(x, y))
    products = 2 * 7 * 6 * 6 * 4 + 2 * 5 * 6 * 2 * 4 + 7 * 6 * 4 * 6
    example[1] = np.zeros((1, 5, 6), "float32")
    assert cost(model, example).dense_flops == 2 * products


@pytest.mark.slow
def test_a_keras_model_made_sparse_counts_like_one_of_sparse_layers():
    def model(conv, lstm, dense):
        layers = [keras.Input((9, 3)), conv(4, 2), keras.layers.Bidirectional(lstm(5)), dense(2)]
        return keras.Sequential(layers)

    example = np.zeros((1, 9, 3), "float32")
    ours = model(sparse.SparseConv1D, sparse.SparseLSTM, SparseDense)
    turned = model(keras.layers.Conv1D, keras.layers.LSTM, keras.layers.Dense)
    for one in (ours, turned):
        sparsify(one, 0.5, seed=0)
    assert cost(turned, example) == cost(ours, example)


def test_inputs_given_by_name_count():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.gru, self.dense = SparseGRU(4), SparseDense(2)

        def call(self, x):
            return self.dense(inputs=self.gru(sequences=x))

    model, example = Model(), np.zeros((1, 5, 3), "float32")
    model(example)
    assert cost(model, example).dense_flops == 2 * (5 * (3 * 12 + 4 * 12) + 4 * 2)


def test_a_kernel_counts_once_for_every_position():
    model = dense_network(4, shape=(6, 5))
    assert cost(model, np.zeros((1, 6, 5, 7), "float32")).dense_flops == 2 * 7 * 4 * 6 * 5


def test_counts_by_hand():
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.Bidirectional(SparseGRU(4, return_sequences=True)),
            SparseDense(2),
            keras.layers.Dense(5),  # not sparse
        ]
    )
    result = cost(model, np.zeros((1, 10, 3), "float32"))
    gru = 3 * 12 + 4 * 12
    assert result.dense_flops == 2 * 10 * (2 * gru + 8 * 2 + 2 * 5)
    assert result.sparse_flops == result.dense_flops
    biases = 2 * 2 * 12 + 2
    assert result.parameters == 2 * gru + 8 * 2 + biases + (2 * 5 + 5)
    assert result.active_parameters == result.parameters


def test_a_layer_called_twice_counts_twice_and_one_not_called_not_at_all():
    shared = SparseDense(4, name="shared")
    x = keras.Input((4,))
    model = keras.Model(x, shared(shared(x)))
    assert cost(model, np.zeros((1, 4), "float32")).dense_flops == 2 * 2 * 16


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("points", [1, 40])
def test_chirodiff_by_hand(points):
    model = ChiroDiff(units=6, num_layers=2)
    sparsify(model, 0.6, seed=0)
    example = (
        np.zeros((1, points, 3), "float32"),
        np.zeros(1, "int32"),
        np.array([points]),
    )
    result = cost(model, example, sampling_steps=50)
    weights = 2 * (13 * 18 + 6 * 18) + 2 * (12 * 18 + 6 * 18) + 12 * 6 + 14 * 3
    active = sum(k.active for k in sparsity_report(model).kernels)
    assert result.dense_flops == 2 * weights * points
    assert result.sparse_flops == 2 * active * points
    assert result.dense_sampling_flops == 50 * 2 * weights * points
    assert result.sparse_sampling_flops == 50 * 2 * active * points
    biases = 4 * 2 * 18 + 6 + 3
    assert result.parameters == weights + biases
    assert result.active_parameters == active + biases


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_uniform_density_leaves_that_share_of_everything(sparsity):
    model = dense_network(40, 80, 20, inputs=40)
    sparsify(model, sparsity, "uniform", seed=0)
    result = cost(model, np.zeros((1, 40), "float32"), sampling_steps=3, iterations=10)
    for name in ("flops", "sampling_flops", "training_flops"):
        ratio = getattr(result, f"sparse_{name}") / getattr(result, f"dense_{name}")
        assert ratio == pytest.approx(1 - sparsity, rel=1e-3)


@pytest.mark.cases(1)
@pytest.mark.parametrize("update_every", [1, 100, 1100])
def test_training_flops(update_every):
    model = dense_network(8, 8, inputs=8)
    sparsify(model, 0.5, seed=0)
    example, iterations = np.zeros((1, 8), "float32"), 600
    f_d = 2 * 2 * 64
    f_s = 2 * sparsity_report(model).active
    arguments = {"iterations": iterations, "update_every": update_every}
    assert cost(model, example, method="static", **arguments).sparse_training_flops == (
        3 * f_s * iterations
    )
    for method in ("magran", "set"):
        result = cost(model, example, method=method, iterations=iterations)
        assert result.sparse_training_flops == 3 * f_s * iterations
    # The dense gradient at every step.
    snfs = cost(model, example, method="snfs", **arguments)
    assert snfs.sparse_training_flops == (2 * f_s + f_d) * iterations
    # Evci et al. 2021, appendix H.
    per_iteration = (3 * f_s * update_every + 2 * f_s + f_d) / (update_every + 1)
    rigl = cost(model, example, method="rigl", **arguments)
    assert rigl.sparse_training_flops == pytest.approx(per_iteration * iterations, rel=1e-12)
    assert rigl.dense_training_flops == 3 * f_d * iterations
    dense = cost(model, example, method="dense", **arguments)
    assert dense.sparse_training_flops == 3 * f_d * iterations


def test_training_flops_of_pruning_while_training():
    """Each step counts at its own sparsity."""
    model = dense_network(8, 8, inputs=8)
    sparsify(model, 0.5, "uniform", seed=0)
    schedule = PolynomialDecay(0.0, 0.5, begin_step=2, end_step=6, power=1, frequency=2)
    example = np.zeros((1, 8), "float32")
    result = cost(model, example, method="gmp", schedule=schedule, iterations=8)
    pruned = [0, 0, 0, 0.25, 0.25, 0.5, 0.5, 0.5]
    wanted = sum(3 * 2 * 128 * (1 - share) for share in pruned)
    assert result.sparse_training_flops == pytest.approx(wanted)


@pytest.mark.slow
def test_the_papers_training_flops_of_kanjivg():
    """Training has 3 x forward FLOPs x 68 x 600 iterations."""
    model = ChiroDiff.from_preset("chirodiff_kanjivg")
    example = (np.zeros((1, 5, 3), "float32"), np.zeros(1, "int32"), np.array([5]))
    result = cost(model, example, method="dense", iterations=68 * 600)
    assert result.dense_training_flops == 3 * 2 * 413_304 * 5 * 68 * 600


def test_counting_leaves_the_model_as_it_was():
    model = dense_network(4, 4)
    x = np.ones((2, 7), "float32")
    before = np.asarray(model(x))
    first = cost(model, x[:1])
    assert cost(model, x[:1]) == first
    assert not any("call" in vars(layer) for layer in model.layers)
    np.testing.assert_array_equal(model(x), before)
    # And when the model fails, too.
    with pytest.raises(Exception, match="(?i)shape|incompatible|dimension"):
        cost(model, np.ones((1, 9), "float32"))
    assert not any("call" in vars(layer) for layer in model.layers)
    assert model.predict(x, verbose=0).shape == (2, 4)


def test_a_layer_that_cannot_be_followed_is_named():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.seen, hidden = keras.layers.Dense(3), keras.layers.Dense(2, name="hidden")
            self.layer, self.function = hidden, lambda x: hidden(x)

        def call(self, x):
            return self.function(self.seen(x))

    model = Network()
    model(np.zeros((1, 4)))
    flops = forward_flops(model, np.zeros((1, 4), "float32"))
    assert sorted(flops.kernels.values()) == [0, 2 * 4 * 3]
    ((name, reason),) = flops.not_counted.items()
    assert name.endswith("hidden") and reason.startswith("Dense: called through no attribute")


def test_converts_to_a_dictionary():
    result = cost(dense_network(4), np.zeros((1, 7), "float32"), iterations=2)
    values = result.to_dict()
    assert values["dense_flops"] == 2 * 28
    assert values["parameters"] == 32
    assert values["dense_training_flops"] == 3 * 2 * 28 * 2


def test_errors():
    model, x = dense_network(4), np.zeros((1, 7), "float32")
    with pytest.raises(ValueError, match="received 'snip'"):
        cost(model, x, method="snip")
    with pytest.raises(ValueError, match="`schedule` must be given for method 'gmp'"):
        cost(model, x, method="gmp", update_every=100)
    for update_every in (None, 0):
        with pytest.raises(ValueError, match="update_every"):
            cost(model, x, method="rigl", update_every=update_every)
    nothing = keras.Sequential([keras.Input((7,)), keras.layers.LayerNormalization()])
    with pytest.raises(ValueError, match="has no kernel"):
        cost(nothing, x)
    with pytest.raises(ValueError, match="`model` 'sequential.*' must be built"):
        cost(keras.Sequential([SparseDense(4)]), x)
    for name, value in (("sampling_steps", 0), ("iterations", -1), ("batch_size", 0.5)):
        with pytest.raises(ValueError, match=f"`{name}` must be .*; received {value}"):
            cost(model, x, **{name: value})
    with pytest.raises(ValueError, match=r"known shapes.*received \(None, None\)"):
        cost(model, (None, None))
    with pytest.raises(ValueError, match="sparsity"):
        cost(model, x, sparsity=1.5)


# Dense models of Keras's own layers -------------------------------------------------------------


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "layer, shape",
    [
        (keras.layers.Dense(5), (4, 3)),
        (keras.layers.Conv1D(4, 3, strides=2), (8, 6)),
        (keras.layers.Conv2D(5, (3, 2), strides=(2, 1), padding="same"), (7, 6, 3)),
        (keras.layers.Conv3D(5, 2, strides=2), (4, 5, 4, 3)),
        (keras.layers.Conv2DTranspose(5, 3, strides=2, padding="same"), (4, 3, 2)),
        (keras.layers.DepthwiseConv1D(3, depth_multiplier=2), (9, 4)),
        (keras.layers.DepthwiseConv2D(3, strides=2, padding="same"), (7, 6, 3)),
        (keras.layers.SeparableConv1D(5, 3, strides=2, depth_multiplier=2), (9, 4)),
        (keras.layers.SeparableConv2D(5, 3, padding="same"), (7, 6, 3)),
        (keras.layers.GRU(4, unroll=True), (5, 3)),
        (keras.layers.GRU(4, unroll=True, reset_after=False), (5, 3)),
        (keras.layers.LSTM(4, unroll=True, return_sequences=True), (5, 3)),
        (keras.layers.SimpleRNN(4, unroll=True), (5, 3)),
        (keras.layers.Bidirectional(keras.layers.LSTM(4, unroll=True)), (5, 3)),
        (
            keras.layers.RNN([keras.layers.LSTMCell(5), keras.layers.GRUCell(4)], unroll=True),
            (5, 3),
        ),
        (keras.layers.TimeDistributed(keras.layers.Conv1D(4, 3)), (5, 6, 3)),
    ],
    ids=name_of,
)
def test_dense_keras_layers_agree_with_tensorflows_profiler(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer])
    example = np.zeros((1, *shape), "float32")
    result = cost(model, (1, *shape))
    assert result.dense_flops == profiler_flops(model, example) > 0
    assert result.sparse_flops == result.dense_flops
    assert not result.not_counted
    assert cost(model, np.zeros((3, *shape), "float32")).dense_flops == result.dense_flops


@pytest.mark.parametrize(
    "layer, shape, products",
    [
        (keras.layers.Conv1DTranspose(5, 3, strides=2), (6, 4), 6 * 3 * 4 * 5),
        (keras.layers.Conv3DTranspose(3, 2, strides=2), (2, 3, 4, 2), 24 * 8 * 2 * 3),
        (keras.layers.EinsumDense("abc,cde->abde", (None, 3, 2)), (5, 4), 5 * 4 * 6),
    ],
    ids=name_of,
)
def test_dense_keras_layers_by_hand(layer, shape, products):
    model = keras.Sequential([keras.Input(shape), layer])
    assert cost(model, (None, *shape)).dense_flops == 2 * products


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.MultiHeadAttention(2, 4, value_dim=5, output_shape=8),
        # This model uses other operations than the one above.
        keras.layers.MultiHeadAttention(2, 4, dropout=0.1),
        keras.layers.GroupQueryAttention(4, 6, 2, use_gate=True),
        sparse.SparseMultiHeadAttention(3, 2),
    ],
    ids=["heads", "dropout", "groups", "sparse"],
)
def test_products_of_attention_are_counted_apart(layer):
    x, y = keras.Input((7, 6)), keras.Input((5, 6))
    model = keras.Model([x, y], layer(x, y))
    shapes = [(1, 7, 6), (1, 5, 6)]
    result = cost(model, shapes)
    x, y = (np.zeros(shape, "float32") for shape in shapes)
    # Some of these products are sums over indices, others are matrix products.
    everything = sum(count(lambda *xy: model(xy), x, y) for count in (einsum_flops, profiler_flops))
    assert result.dense_flops + result.attention_flops == everything
    heads = getattr(layer, "num_heads", None) or layer.num_query_heads
    (row,) = (row for row in result.layers if row.score_flops)
    key_dim = getattr(layer, "key_dim", None) or layer.head_dim
    assert row.score_flops == 2 * 7 * 5 * heads * key_dim
    assert result.attention_flops == row.score_flops + row.value_flops


def test_attention_along_some_axes():
    x = keras.Input((3, 4, 6))
    layer = keras.layers.MultiHeadAttention(2, 5, attention_axes=2)
    model, example = keras.Model(x, layer(x, x)), np.zeros((1, 3, 4, 6), "float32")
    result = cost(model, example)
    assert result.attention_flops == 2 * 2 * 3 * 4 * 4 * 2 * 5
    assert result.dense_flops + result.attention_flops == einsum_flops(model, example)


def test_dot_product_attention_without_kernels():
    x, y = keras.Input((7, 6)), keras.Input((5, 6))
    z = keras.layers.Dense(3)(y)
    model = keras.Model([x, y], keras.layers.Attention()([x, z, y]))
    result = cost(model, [(1, 7, 6), (1, 5, 6)])
    example = [np.zeros((1, 7, 6), "float32"), np.zeros((1, 5, 6), "float32")]
    everything = profiler_flops(lambda a, b: model([a, b]), *example)
    assert result.attention_flops == 2 * 7 * 5 * (6 + 3)
    assert result.dense_flops + result.attention_flops == everything


def test_a_cell_of_ones_own_counts_at_every_step():
    class Cell(keras.layers.Layer):
        state_size = output_size = 4

        def __init__(self):
            super().__init__()
            self.read, self.mix = keras.layers.Dense(4), keras.layers.Dense(4)

        def build(self, shape):
            self.read.build(shape)
            self.mix.build((None, 4))

        def call(self, x, states):
            (state,) = states
            state = self.mix(self.mix(self.read(x) + state))
            return state, [state]

    model = keras.Sequential([keras.Input((5, 3)), keras.layers.RNN(Cell(), unroll=True)])
    example = np.zeros((1, 5, 3), "float32")
    wanted = 2 * 5 * (3 * 4 + 2 * 4 * 4)
    assert cost(model, example).dense_flops == profiler_flops(model, example) == wanted


def test_positions_that_were_joined_with_the_batch_count_each():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(keras.ops.reshape(x, (-1, 3)))

    model = Model()
    model(np.zeros((1, 4, 3), "float32"))
    for batch_size in (1, 5):
        assert cost(model, (batch_size, 4, 3)).dense_flops == 2 * 4 * 3 * 2


def test_what_cannot_be_counted_is_named():
    @keras.saving.register_keras_serializable(package="test_cost")
    class Bilinear(keras.layers.Layer):
        def build(self, shape):
            self.tensor = self.add_weight(name="tensor", shape=(shape[-1], 2, shape[-1]))

        def call(self, x):
            return keras.ops.einsum("bi,iok,bk->bo", x, self.tensor, x)

    x = keras.Input((6,), name="x")
    y = keras.layers.BatchNormalization()(keras.layers.Dense(6)(x))
    y = keras.ops.matmul(y, keras.ops.ones((6, 6)))
    y = Bilinear(name="bilinear")(keras.layers.PReLU()(y))
    model = keras.Model(x, keras.layers.Dot(1, name="dot")([y, y]))
    result = cost(model, (1, 6))
    assert result.dense_flops == 2 * 6 * 6
    named = dict(result.not_counted)
    assert named.pop("bilinear") == "Bilinear: tensor 6x2x6"
    assert named.pop("dot") == "Dot: multiplies activations"
    ((name, reason),) = named.items()
    assert "matmul" in name and reason == "Matmul: multiplies activations"
    assert "not counted: bilinear (Bilinear: tensor 6x2x6)" in str(result)


def test_layers_of_keras_without_a_twin_are_named():
    x = keras.Input((4, 3, 2))
    y = keras.layers.ConvLSTM1D(2, 2, name="conv_lstm")(x)
    z = keras.layers.AdditiveAttention(name="additive")([y, y])
    model = keras.Model(x, keras.layers.Dense(2)(z))
    result = cost(model, (1, 4, 3, 2))
    assert result.dense_flops == 2 * 2 * 2 * 2
    (cell,) = (reason for reason in result.not_counted.values() if "ConvLSTMCell" in reason)
    assert "kernel 2x2x8" in cell and "recurrent_kernel 2x2x8" in cell
    assert result.not_counted["additive"].startswith("AdditiveAttention: additive scores")


def test_a_recurrent_layer_that_keeps_its_state_counts_one_example():
    layer = keras.layers.GRU(5, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(3, 6, 4)), layer])
    result = cost(model, (3, 6, 4))
    assert result.dense_flops == 2 * 6 * (4 * 15 + 5 * 15) and not result.not_counted


def test_added_weights_of_lora_are_named():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="dense")])
    model.layers[0].enable_lora(2)
    result = cost(model, (1, 6))
    assert result.dense_flops == 2 * 6 * 4
    assert [name.split("/")[-1] for name in result.not_counted] == ["dense"]
    assert list(result.not_counted.values()) == ["Dense: weights of LoRA"]


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_kernels_count_unless_they_are_packed(mode):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), SparseDense(4)])
    dense = cost(model, (1, 8)).dense_flops
    model.layers[0].quantize(mode)
    result = cost(model, (1, 8))
    if mode == "int8":
        assert result.dense_flops == dense and not result.not_counted
    else:
        assert result.dense_flops == 2 * 8 * 4
        assert list(result.not_counted.values()) == ["Dense, quantized (int4)"]


# This project's models --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_unet_agrees_with_tensorflows_profiler():
    unet = UNet(model_channels=32, channel_mult=(1, 2), num_res_blocks=1)
    result = cost(unet, ((1, 8, 8, 3), (1,)))
    x, t = np.zeros((1, 8, 8, 3), "float32"), np.zeros(1, "int32")
    everything = profiler_flops(lambda x, t: unet((x, t)), x, t)
    assert result.dense_flops + result.attention_flops == everything
    # Four blocks at 4 x 4 positions with 64 channels, scores and values.
    assert result.attention_flops == 4 * 2 * 2 * 16**2 * 64
    assert not result.not_counted


@pytest.mark.slow
def test_chirodiff_agrees_with_tensorflows_profiler():
    model = ChiroDiff(units=6, num_layers=1)
    result = cost(model, ((1, 4, 3), (1,), (1,)))
    for layer in model.recurrent:
        layer.forward_layer.unroll = layer.backward_layer.unroll = True
    example = (np.zeros((1, 4, 3), "float32"), np.zeros(1, "int32"), np.full(1, 4, "int32"))
    assert result.dense_flops == profiler_flops(lambda *x: model(x), *example)
    assert result.attention_flops == 0 and not result.not_counted


@pytest.mark.slow
def test_the_autoencoder_but_for_its_code_book_agrees_with_tensorflows_profiler():
    model = VQAutoencoder(channels=16, channel_mult=(1,), num_res_blocks=1, codes=8, norm_groups=4)
    result = cost(model, (1, 8, 8, 3))
    example = np.zeros((1, 8, 8, 3), "float32")
    everything = profiler_flops(lambda x: model.decode(model.encode(x), quantize=False), example)
    assert result.dense_flops + result.attention_flops == everything
    assert result.attention_flops > 0
    (reason,) = result.not_counted.values()
    assert "codebook 8x3" in reason


# The paper's tables -----------------------------------------------------------------------------


PAPER_UNET = """
import json, resource
import keras
from keras_sparse_dm.metrics import cost
from keras_sparse_dm.models import UNet

def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = memory()
with keras.StatelessScope(initialize_variables=False):
    unet = UNet.from_preset("ldm_celebahq")
dense = cost(
    unet, ((1, 64, 64, 3), (1,)), sampling_steps=100, iterations=156_300, method="dense",
    batch_size=12,
).to_dict()
shapes = {v.path: tuple(v.shape) for v in unet.trainable_variables}
print(json.dumps({"dense": dense, "shapes": shapes, "memory": memory() - before}))
"""


@pytest.fixture(scope="module")
def paper_unet():
    """Return costs of the full network from a process that holds none of its weights."""
    done = subprocess.run(
        [sys.executable, "-c", PAPER_UNET], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_the_full_network_costs_what_the_paper_says(paper_unet):
    dense = paper_unet["dense"]
    assert dense["parameters"] == dense["active_parameters"] == 274_056_163
    assert dense["kernel_parameters"] == 273_872_704
    assert round(dense["dense_flops"] / 1e6) == 192_036
    assert f"{dense['dense_sampling_flops']:.2e}" == "1.92e+13"
    assert f"{dense['dense_training_flops']:.2e}" == "9.00e+16"
    assert dense["dense_batch_training_flops"] == 12 * dense["dense_training_flops"]
    assert dense["sparse_training_flops"] == dense["dense_training_flops"]
    assert dense["nonzero_kernel_parameters"] is None and not dense["not_counted"]
    # The process creates neither weights nor optimizer state.
    assert paper_unet["memory"] < 1e9
    assert dense["training_bytes"]["optimizer"] == 2 * 4 * 274_056_163
    # 5 blocks each at 32 x 32, 16 x 16 and 8 x 8 positions, and the middle one.
    products = 5 * 1024**2 * 448 + 5 * 256**2 * 672 + 6 * 64**2 * 896
    assert dense["attention_flops"] == 2 * 2 * products


@pytest.fixture(scope="module")
def paper_networks(paper_unet):
    """Return `{preset: (parameters, {kernel: (shape, FLOPs)})}`, for one point of ChiroDiff."""
    found = {}
    for preset, setting in PAPER_SETTINGS.items():
        if setting.size:
            result = paper_unet["dense"]
            kernels = {}
            for layer in result["layers"]:
                if layer["size"]:
                    name = f"{layer['name']}/kernel"
                    kernels[name] = (tuple(paper_unet["shapes"][name]), layer["dense_flops"])
            found[preset] = result["parameters"], kernels
        else:
            model = ChiroDiff.from_preset(preset)
            flops = kernel_flops(model, ((1, 1, 3), (1,), (1,)))
            shapes = {k.name: k.shape for k in sparsity_report(model).kernels}
            parameters = sum(math.prod(v.shape) for v in model.trainable_variables)
            found[preset] = parameters, {name: (shapes[name], flops[name]) for name in flops}
    return found


@pytest.mark.parametrize(
    "row", PAPER_COSTS, ids=lambda row: f"{row.preset}-{row.method}-{row.sparsity}"
)
def test_the_papers_tables(row, paper_networks):
    """Every figure is as printed, or listed with a reason; no listed figure is as printed."""
    setting = PAPER_SETTINGS[row.preset]
    parameters, kernels = paper_networks[row.preset]
    dense = sum(flops for _, flops in kernels.values())
    if row.method == "dense":
        forward = dense * (setting.points or 1)
        iterations = setting.iterations or setting.stated_iterations
        ours = {
            "parameters": parameters / 1e6 if row.parameters.endswith("M") else parameters,
            "training": 3 * forward * iterations,
            "sampling": forward * setting.sampling_steps,
        }
    else:
        density = densities({name: shape for name, (shape, _) in kernels.items()}, row.sparsity)
        left = sum(density[name] * math.prod(shape) for name, (shape, _) in kernels.items())
        sparse_flops = sum(density[name] * flops for name, (_, flops) in kernels.items())
        step = 3 * sparse_flops
        if row.method == "rigl":
            every = setting.update_every
            step = (3 * sparse_flops * every + 2 * sparse_flops + dense) / (every + 1)
        ours = {
            "parameters": left / sum(math.prod(shape) for shape, _ in kernels.values()),
            "training": step / (3 * dense),
            "sampling": sparse_flops / dense,
        }
    for column, value in ours.items():
        printed = getattr(row, column).removesuffix("M")
        digits = len(printed.partition("e")[0].partition(".")[2])
        as_printed = f"{value:.{digits}e}" if "e" in printed else f"{value:.{digits}f}"
        agrees = float(as_printed) == float(printed)
        assert agrees == (column not in row.unexplained), (column, printed, value)


@pytest.mark.parametrize(
    "preset, weights, sampling, training",
    [
        ("chirodiff_kanjivg", 413_304, 7.35e9, 1.80e13),
        ("chirodiff_vmnist", 63_816, 7.11e8, 1.69e12),
    ],
)
def test_sketch_lengths_that_the_papers_figures_imply(preset, weights, sampling, training):
    """Sampling and training figures imply the same mean number of points."""
    setting = PAPER_SETTINGS[preset]
    half_a_digit = 0.005 * 10 ** math.floor(math.log10(sampling))
    low, high = ((sampling + sign * half_a_digit) / 50 / 2 / weights for sign in (-1, 1))
    assert low <= setting.points < high and high - low < 0.3
    half_a_digit = 0.005 * 10 ** math.floor(math.log10(training))
    passes = 3 * setting.iterations * 2 * weights
    assert (training - half_a_digit) / passes < low < high < (training + half_a_digit) / passes


def test_what_the_papers_quickdraw_figures_ask_for():
    weights = 731_288
    low = 5.115e14 / 1.295e10 * 50 / 3
    high = 5.125e14 / 1.285e10 * 50 / 3
    assert (round(low, -2), round(high, -2)) == (658_300, 664_700)
    assert 140_000 < low / 600 * 128 < high / 600 * 128 < 142_000
    assert round(5.12e14 / (3 * 2 * weights * 600 * 547)) in (355, 356)


# Bytes ------------------------------------------------------------------------------------------


def test_file_bytes_are_those_of_the_encodings():
    model = keras.Sequential(
        [keras.Input((30,)), SparseDense(40), keras.layers.LayerNormalization(), SparseDense(7)]
    )
    for sparsity in (0.5, 0.99):
        sparsify(model, sparsity, "uniform", seed=0)
        files = cost(model, (1, 30)).file_bytes
        wanted = {"dense": 0, "bitmask": 0, "index": 0, "sparse": 0}
        masks = {id(kernel): mask for layer in model.layers[::2] for kernel, mask in layer.masks}
        for variable in model.trainable_variables:
            dense = np.asarray(variable).tobytes()
            ways = dict.fromkeys(wanted, len(dense))
            if id(variable) in masks:
                mask = np.asarray(masks[id(variable)]).ravel()
                values = np.asarray(variable).ravel()[mask].tobytes()
                # Elias-Fano: some lowest bits of each number, and the rest in unary.
                numbers = np.flatnonzero(mask)
                low = int(np.log2(mask.size / len(numbers)))
                unary = len(numbers) + (mask.size - 1 >> low) + 1
                index = -(-len(numbers) * low // 8) + -(-unary // 8)
                ways["bitmask"] = len(values) + np.packbits(mask).nbytes
                ways["index"] = len(values) + index
                # Every pruned kernel has one of the two encodings of its mask.
                ways["sparse"] = min(ways["bitmask"], ways["index"])
            wanted = {name: wanted[name] + ways[name] for name in wanted}
        assert vars(files) == wanted
    assert files.index < files.bitmask < files.dense


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("method, ema", [("rigl", True), ("snfs", False)])
def test_training_bytes_are_those_of_the_optimizer_in_training(method, ema):
    model = dense_network(6, 3)
    sparsify(model, 0.5, seed=0)
    optimizer = keras.optimizers.AdamW(1e-3, use_ema=ema)
    before = cost(model, (1, 7), method=method, update_every=2, optimizer=optimizer)
    model.compile(optimizer, "mse")
    x, y = np.ones((8, 7), "float32"), np.ones((8, 3), "float32")
    callback = DynamicSparsity(method, update_every=2, seed=0)
    model.fit(x, y, batch_size=2, epochs=1, verbose=0, callbacks=[callback])
    after = cost(model, (1, 7), method=method, update_every=2).training_bytes
    assert before.training_bytes == after
    held = [np.asarray(v) for v in model.optimizer.variables if len(v.shape) > 1]
    # Biases have only the optimizer's state: two moments and an average.
    biases = (2 + ema) * (6 + 3) * 4
    kept = after.optimizer + after.averages + after.history + after.dense_gradients
    assert kept == sum(array.nbytes for array in held) + biases
    assert after.weights == after.gradients == 4 * model.count_params()
    assert after.masks == after.history == 7 * 6 + 6 * 3
    assert after.total == sum(vars(after).values())


def test_training_bytes_by_optimizer():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    parameters = 5 * 3 + 3

    def held(optimizer):
        return cost(model, (1, 5), method="dense", optimizer=optimizer).training_bytes

    assert held(keras.optimizers.SGD()).optimizer == 0
    assert held(keras.optimizers.SGD(momentum=0.9)).optimizer == 4 * parameters
    assert held(keras.optimizers.Adam(amsgrad=True)).optimizer == 3 * 4 * parameters
    wrapped = keras.optimizers.LossScaleOptimizer(keras.optimizers.Lion(use_ema=True))
    assert (held(wrapped).optimizer, held(wrapped).averages) == (4 * parameters, 4 * parameters)
    # The optimizer of the presets.
    assert (held(None).optimizer, held(None).averages) == (8 * parameters, 4 * parameters)
    assert held(None).masks == held(None).history == held(None).dense_gradients == 0
    model.compile("rmsprop")
    assert held(None).optimizer == 4 * parameters


# Printing ---------------------------------------------------------------------------------------


def test_supposed_sparsity_costs_what_sparsify_makes():
    model = dense_network(40, 80, 20, inputs=40)
    supposed = cost(model, (1, 40), sparsity=0.5, iterations=3)
    sparsify(model, 0.5, seed=0)
    made = cost(model, (1, 40), iterations=3)
    assert supposed.nonzero_kernel_parameters is None
    assert made.nonzero_kernel_parameters == made.active_kernel_parameters
    assert supposed.layers == made.layers
    for name in ("active_parameters", "sparse_flops", "sparse_training_flops", "file_bytes"):
        assert getattr(supposed, name) == getattr(made, name)
    assert supposed.training_bytes == made.training_bytes


def test_every_layer_and_all_totals_are_shown():
    model = dense_network(4, 3)
    sparsify(model, 0.5, "uniform", seed=0)
    result = cost(model, (1, 7), 3, 10, "rigl", 100, batch_size=16)
    rows = {layer.name.split("/")[-1]: layer for layer in result.layers}
    assert rows["dense_0"].kind == "SparseDense"
    assert (rows["dense_0"].size, rows["dense_0"].active) == (28, 14)
    assert (rows["dense_0"].dense_flops, rows["dense_0"].sparse_flops) == (56, 28)
    assert sum(layer.sparse_flops for layer in result.layers) == result.sparse_flops == 40
    assert result.training_rule == "(3 f_S dT + 2 f_S + f_D) / (dT + 1) with dT = 100"
    assert result.dense_batch_training_flops == 16 * result.dense_training_flops
    assert result.sparse_batch_training_flops == 16 * result.sparse_training_flops
    for text in (str(result), result._repr_html_()):
        for shown in ("dense_0", "dense_1", "50.00%", "FLOPs, sampling", "240", "120"):
            assert shown in text
        assert "16 examples per iteration" in text and "biases" in text
    assert cost(model, (1, 7), 3, 10).dense_batch_training_flops is None


def test_a_dense_models_table_has_no_columns_of_sparsity():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, name="only")])
    assert "active" not in str(cost(model, (1, 5))).splitlines()[1]


def test_the_dictionary_is_plain():
    result = cost(dense_network(4), (1, 7), method="static")
    values = json.loads(json.dumps(result.to_dict()))
    assert values["layers"][0]["dense_flops"] == 56
    assert values["training_bytes"]["total"] == result.training_bytes.total
    assert values["file_bytes"]["dense"] == 4 * 32


def test_shapes_and_examples_count_alike():
    x, ids = keras.Input((5,), name="x"), keras.Input((3,), dtype="int32", name="ids")
    embedded = keras.layers.Flatten()(keras.layers.Embedding(10, 2)(ids))
    model = keras.Model(
        {"x": x, "ids": ids},
        keras.layers.Dense(4)(keras.layers.Concatenate()([x, embedded])),
    )
    wanted = 2 * 11 * 4
    arrays = {"x": np.zeros((1, 5), "float32"), "ids": np.zeros((1, 3), "int32")}
    for inputs in (
        arrays,
        {"x": (None, 5), "ids": [1, 3]},
        {"x": tf.TensorSpec((None, 5)), "ids": tf.TensorSpec((1, 3), "int32")},
        {"x": x, "ids": ids},
        arrays | {"x": (1, 5)},
    ):
        result = cost(model, inputs)
        assert result.dense_flops == wanted and not result.not_counted
