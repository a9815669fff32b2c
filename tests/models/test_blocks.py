"""The blocks: group norm, attention and resampling against their plain definitions."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_sparse_dm.models import UNet, blocks
from keras_sparse_dm.models.blocks import Downsample, GroupNorm, ResidualBlock, Upsample


def values_and_gradients(call, *tensors):
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        output = call(*tensors)
        loss = tf.reduce_sum(
            tf.cast(output, "float32") * tf.cast(_weights(output.shape), "float32")
        )
    return np.asarray(output), [np.asarray(g) for g in tape.gradient(loss, tensors)]


def _weights(shape):
    return np.random.default_rng(7).normal(size=shape)


def norm(activation="silu", channels=32, groups=8, **arguments):
    layer = GroupNorm(groups, activation=activation, **arguments)
    layer.build((None, None, None, channels))
    plain = keras.layers.GroupNormalization(groups, epsilon=layer.epsilon)
    plain.build((None, None, None, channels))
    for name, shift in (("gamma", 1.0), ("beta", 0.0)):
        value = shift + keras.random.normal((channels,), stddev=0.3, seed=len(name))
        getattr(layer, name).assign(value)
        getattr(plain, name).assign(value)
    return layer, plain


@pytest.mark.tensorflow
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_group_norm_is_keras_group_norm_and_so_is_its_gradient(activation, graph):
    layer, plain = norm(activation)
    x = np.random.default_rng(0).normal(1, 2, (3, 5, 4, 32)).astype("float32")

    def reference(x):
        y = plain(x)
        return y if activation is None else ops.silu(y)

    call = tf.function(layer.__call__) if graph else layer
    mine, expected = values_and_gradients(call, x), values_and_gradients(reference, x)
    np.testing.assert_allclose(mine[0], expected[0], atol=2e-5)
    np.testing.assert_allclose(mine[1][0], expected[1][0], atol=2e-5)

    def of_weights(layer, call):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(call(tf.constant(x)) * _weights(x.shape).astype("float32"))
        return tape.gradient(loss, [layer.gamma.value, layer.beta.value])

    for a, b in zip(of_weights(layer, call), of_weights(plain, reference), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_group_norm_is_stable_far_from_zero():
    layer, _ = norm(None)
    layer.gamma.assign(np.ones(32))
    layer.beta.assign(np.zeros(32))
    noise = np.random.default_rng(0).normal(size=(2, 8, 8, 32))
    x = (1e3 + noise).astype("float32")
    exact = x.astype("float64").reshape(2, 64, 8, 4)
    exact = (exact - exact.mean((1, 3), keepdims=True)) / exact.std((1, 3), keepdims=True)
    np.testing.assert_allclose(layer(x), exact.reshape(x.shape), atol=2e-3)


def test_group_norm_computes_half_precision_in_full():
    layer, plain = norm(None, dtype="mixed_bfloat16")
    x = 30 + keras.random.normal((2, 4, 4, 32), seed=0)
    output = layer(ops.cast(x, "bfloat16"))
    assert output.dtype == "bfloat16"
    expected = plain(ops.cast(ops.cast(x, "bfloat16"), "float32"))
    np.testing.assert_allclose(ops.cast(output, "float32"), expected, atol=0.05)


def test_group_norm_refuses_channels_that_groups_do_not_divide():
    with pytest.raises(ValueError, match="A group norm of 8 groups"):
        GroupNorm(8).build((None, None, None, 12))


def reference_attention(query, key, value):
    scores = ops.einsum("bqhc,bkhc->bhqk", query, key) / np.sqrt(query.shape[-1])
    return ops.einsum("bhqk,bkhc->bqhc", ops.softmax(scores), value)


@pytest.mark.tensorflow
@pytest.mark.cases(1)
@pytest.mark.parametrize("bound", [2**18, 60, 7], ids=["whole", "parts", "single rows"])
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_attention_and_its_gradient_in_any_number_of_parts(monkeypatch, bound, mode):
    monkeypatch.setattr(blocks, "SCORES", bound)
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=(2, 13, 3, 4)).astype("float32") for _ in range(3)]
    call = blocks.attention
    if mode != "eager":
        call = tf.function(call, jit_compile=mode == "xla")
    mine = values_and_gradients(call, *tensors)
    expected = values_and_gradients(reference_attention, *tensors)
    np.testing.assert_allclose(mine[0], expected[0], atol=1e-5)
    for a, b in zip(mine[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_attention_never_holds_more_scores_than_the_bound(monkeypatch):
    monkeypatch.setattr(blocks, "SCORES", 100)
    seen = []
    softmax = ops.softmax
    monkeypatch.setattr(
        blocks.ops, "softmax", lambda x, *a, **k: seen.append(tuple(x.shape)) or softmax(x, *a, **k)
    )
    x = np.ones((2, 25, 1, 4), "float32")
    values_and_gradients(lambda x: blocks.attention(x, x, x), x)
    assert seen and all(queries * keys <= 100 for _, _, queries, keys in seen)


def test_resampling():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype("float32")
    identity = np.zeros((3, 3, 3, 3), "float32")
    identity[1, 1] = np.eye(3)
    up = Upsample(3, keras.layers.Conv2D)
    up.build(x.shape)
    up.conv.kernel.assign(identity)
    np.testing.assert_array_equal(up(x), x.repeat(2, axis=1).repeat(2, axis=2))
    # PyTorch pads one before and one after, or in the autoencoder only after.
    for padding, first in (((1, 1), 0), ((0, 1), 1)):
        down = Downsample(3, keras.layers.Conv2D, padding=padding)
        down.build(x.shape)
        down.conv.kernel.assign(identity)
        np.testing.assert_array_equal(down(x), x[:, first::2, first::2])


def test_a_residual_block_starts_as_the_identity_and_adds_the_time():
    block = ResidualBlock(64, keras.layers.Conv2D, keras.layers.Dense)
    block.build((None, None, None, 64), (None, 8))
    x, time = keras.random.normal((2, 4, 4, 64)), keras.random.normal((2, 8))
    np.testing.assert_array_equal(block(x, time), x)
    block.conv_2.kernel.assign(keras.random.normal(block.conv_2.kernel.shape, seed=1))
    assert np.abs(np.asarray(block(x, time) - block(x, -time))).max() > 0.01
    assert block.shortcut is None
    wider = ResidualBlock(96, keras.layers.Conv2D, zero=False)
    wider.build((None, None, None, 64))
    assert wider(x).shape == (2, 4, 4, 96) and wider.shortcut is not None


@pytest.mark.slow
def test_remat_gives_the_same_gradients():
    def gradients(remat):
        keras.utils.set_random_seed(0)
        unet = UNet(model_channels=32, channel_mult=(1,), num_res_blocks=1, remat=remat)
        unet.output_conv.kernel.assign(keras.random.normal((3, 3, 32, 3), seed=5))
        x, t = keras.random.normal((2, 4, 4, 3), seed=1), np.array([1, 500])
        variables = [v.value for v in unet.trainable_variables]

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(unet((x, t), training=True)))
            return tape.gradient(loss, variables)

        return step()

    for a, b in zip(gradients(False), gradients(True), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
