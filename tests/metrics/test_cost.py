import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_schedule import (
    PolynomialDecay,
)

from keras_sparse_dm import layers as sparse
from keras_sparse_dm import sparsify, sparsity_report
from keras_sparse_dm.layers import SparseDense, SparseGRU
from keras_sparse_dm.metrics import cost
from keras_sparse_dm.models import ChiroDiff


def dense_network(*units, inputs=7, shape=()):
    layers = [keras.Input((*shape, inputs))]
    layers += [SparseDense(n, name=f"dense_{i}") for i, n in enumerate(units)]
    return keras.Sequential(layers)


def profiler_flops(model, example):
    """What TensorFlow's own profiler counts for the multiplications of one forward pass."""
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    function = tf.function(lambda x: model(x)).get_concrete_function(tf.constant(example))
    frozen = convert_variables_to_constants_v2(function)
    options = tf.compat.v1.profiler.ProfileOptionBuilder(
        tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    )
    options = options.with_empty_output().build()
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(frozen.graph.as_graph_def(), name="")
        profile = tf.compat.v1.profiler.profile(graph, cmd="op", options=options)
    multiply = ("MatMul", "Conv", "DepthwiseConv")
    nodes, counted = list(profile.children), []
    while nodes:
        node = nodes.pop()
        nodes += node.children
        counted += [node.float_ops] if node.name.startswith(multiply) else []
    assert counted
    return sum(counted)


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
    assert cost(model, example).dense_flops == profiler_flops(model, example)


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
    """With ones for weights and inputs, the outputs add up to the number of products."""
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
            keras.layers.Dense(5),  # not sparse: not in the paper's count
        ]
    )
    result = cost(model, np.zeros((1, 10, 3), "float32"))
    gru = 3 * 12 + 4 * 12
    assert result.dense_flops == 2 * 10 * (2 * gru + 8 * 2)
    assert result.sparse_flops == result.dense_flops
    biases = 2 * 2 * 12 + 2
    assert result.parameters == 2 * gru + 8 * 2 + biases + (2 * 5 + 5)
    assert result.active_parameters == result.parameters


def test_a_layer_called_twice_counts_twice_and_one_not_called_not_at_all():
    shared = SparseDense(4, name="shared")
    x = keras.Input((4,))
    model = keras.Model(x, shared(shared(x)))
    assert cost(model, np.zeros((1, 4), "float32")).dense_flops == 2 * 2 * 16


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
    """Each step costs what the masks of that step do."""
    model = dense_network(8, 8, inputs=8)
    sparsify(model, 0.5, "uniform", seed=0)
    schedule = PolynomialDecay(0.0, 0.5, begin_step=2, end_step=6, power=1, frequency=2)
    example = np.zeros((1, 8), "float32")
    result = cost(model, example, method="gmp", schedule=schedule, iterations=8)
    pruned = [0, 0, 0, 0.25, 0.25, 0.5, 0.5, 0.5]
    wanted = sum(3 * 2 * 128 * (1 - share) for share in pruned)
    assert result.sparse_training_flops == pytest.approx(wanted)


def test_the_papers_training_flops_of_kanjivg():
    """DESIGN.md: 3 x forward FLOPs x iterations, 68 x 600 of them."""
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
    plain = keras.Sequential([keras.Input((7,)), keras.layers.Dense(4)])
    with pytest.raises(ValueError, match="sparse"):
        cost(plain, x)
