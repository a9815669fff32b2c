"""The vector-quantized autoencoder: nearest codes, training, restarts, errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_sparse_dm.models import VQAutoencoder, codebook

SMALL = {
    "channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "codes": 16,
    "norm_groups": 4,
    "seed": 0,
}


@pytest.fixture(scope="module")
def shared():
    """Shared by all tests; none may change it."""
    model = VQAutoencoder(**SMALL)
    model.codebook.assign(keras.random.normal(model.codebook.shape, seed=3))
    return model


def pictures(n=8, size=8, seed=0):
    """Two-coloured squares of random place and colour, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    images = np.empty((n, size, size, 3), "float32")
    for image in images:
        image[:] = rng.uniform(-1, 1, 3)
        row, column = rng.integers(0, size - 3, 2)
        image[row : row + 4, column : column + 4] = rng.uniform(-1, 1, 3)
    return images


def test_the_published_size():
    with keras.StatelessScope(initialize_variables=False):
        model = VQAutoencoder()
    # Of the published vq-f4, by its file.
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == 55_322_782
    assert model.downsampling == 4


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_every_position_gets_its_nearest_code(shared, height, width, seed):
    latents = np.random.default_rng(seed).normal(size=(2, height, width, 3)).astype("float32")
    quantized, indices = shared.quantize(latents)
    codes = np.asarray(shared.codebook)
    distances = np.sum((latents[..., None, :] - codes) ** 2, axis=-1)
    np.testing.assert_array_equal(indices, distances.argmin(-1))
    np.testing.assert_array_equal(quantized, codes[distances.argmin(-1)])
    again, _ = shared.quantize(quantized)
    np.testing.assert_array_equal(again, quantized)


@pytest.mark.tensorflow
def test_quantizes_in_parts_no_larger_than_the_bound(shared, monkeypatch):
    latents = np.random.default_rng(0).normal(size=(3, 5, 7, 3)).astype("float32")
    whole, _ = shared.quantize(latents)
    seen = []
    argmin = codebook.tf.argmin
    monkeypatch.setattr(codebook, "DISTANCES", 16 * 10)

    def seeing(x, **arguments):
        seen.append(tuple(x.shape))
        return argmin(x, **arguments)

    monkeypatch.setattr(codebook.tf, "argmin", seeing)
    parts, _ = shared.quantize(latents)
    np.testing.assert_array_equal(parts, whole)
    assert set(seen) == {(10, 16)}


@pytest.mark.slow
def test_shapes_and_that_decoding_quantizes_first(shared):
    images = pictures()
    latents = shared.encode(images)
    assert latents.shape == (8, 4, 4, 3)
    decoded = shared.decode(latents)
    assert decoded.shape == images.shape
    quantized, _ = shared.quantize(latents)
    np.testing.assert_array_equal(decoded, shared.decode(quantized, quantize=False))
    np.testing.assert_array_equal(decoded, shared(images))


@pytest.mark.slow
def test_trains_and_uses_its_codes():
    keras.utils.set_random_seed(0)
    model = VQAutoencoder(**SMALL, restart_after=20)
    model.compile(keras.optimizers.Adam(3e-3))
    images = pictures(64)
    before = model.evaluate(images, verbose=0, return_dict=True)
    model.fit(images, batch_size=16, epochs=40, verbose=0)
    after = model.evaluate(images, verbose=0, return_dict=True)
    assert after["reconstruction"] < 0.5 * before["reconstruction"]
    assert after["codes_used"] > 0.5
    assert set(after) == {"loss", "reconstruction", "quantization", "codes_used"}


@pytest.mark.slow
def test_the_gradient_passes_straight_through_to_the_encoder():
    model = VQAutoencoder(**SMALL, commitment=0.0)
    with tf.GradientTape() as tape:
        loss, _, _, indices = model._batch_losses(pictures(), training=True)
    gradients = tape.gradient(
        loss,
        [model.encoder_input.kernel.value, model.codebook.value, model.decoder_output.kernel.value],
    )
    encoder, codebook, decoder = (np.asarray(tf.convert_to_tensor(g)) for g in gradients)
    assert np.abs(encoder).max() > 0 and np.abs(decoder).max() > 0
    # Only codes that were chosen are pulled to the latents.
    chosen = np.unique(indices)
    np.testing.assert_array_equal(np.unique(np.nonzero(codebook)[0]), chosen)


def test_codes_unused_for_long_are_put_where_latents_lie():
    model = VQAutoencoder(**SMALL, restart_after=3)
    model.unused_steps.assign(np.zeros(16))
    far = np.full((16, 3), 100.0, "float32")
    far[0] = 0
    model.codebook.assign(far)
    latents = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
    _, indices = model.quantize(latents)
    for _ in range(2):
        model._restart_unused(latents, indices)
        np.testing.assert_array_equal(model.codebook, far)
    model._restart_unused(latents, indices)
    codes = np.asarray(model.codebook)
    np.testing.assert_array_equal(codes[0], far[0])
    positions = latents.reshape(-1, 3)
    assert all((positions == code).all(-1).any() for code in codes[1:])
    assert len(np.unique(codes[1:], axis=0)) > 5
    np.testing.assert_array_equal(model.unused_steps, np.zeros(16))


@pytest.mark.nightly
def test_a_file_brings_back_weights_codes_and_fingerprint(tmp_path):
    model = VQAutoencoder(**SMALL)
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit(pictures(), verbose=0)
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(again(pictures()), model(pictures()))
    assert again.fingerprint() == model.fingerprint()
    again.trainable = False
    assert again.fingerprint() == model.fingerprint()
    # Resumed training gives the same bits: restarts and moments are in the file.
    again.trainable = True
    for one in (model, again):
        one.fit(pictures(seed=5), verbose=0, shuffle=False)
    np.testing.assert_array_equal(again(pictures()), model(pictures()))
    other = VQAutoencoder(**SMALL)
    assert other.fingerprint() != model.fingerprint()


def test_has_nothing_that_could_be_pruned_by_itself():
    from keras_sparse_dm.sparsity import masked_kernels

    assert not masked_kernels(VQAutoencoder(**SMALL))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 6}, "`channels` must be a multiple of the 4 `norm_groups`; received 6"),
        ({"codes": 0}, "`codes` must be a whole number, 1 or more; received 0"),
        ({"reconstruction": "l3"}, "`reconstruction` must be one of l1, l2; received 'l3'"),
        ({"attention_factors": (8,)}, r"`attention_factors` must be among \[1, 2\]"),
        ({"commitment": -1.0}, "`commitment` must be 0 or more; received -1.0"),
        ({"restart_after": -1}, "`restart_after` must be 0 or more; received -1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refuses_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VQAutoencoder(**(SMALL | arguments))


@pytest.mark.slow
def test_refuses_inputs(shared):
    with pytest.raises(ValueError, match="`images` must be multiples of 2"):
        shared.encode(np.zeros((1, 7, 8, 3), "float32"))
    with pytest.raises(ValueError, match=r"`images` must be of shape .*3\); received \(1, 8, 8\)"):
        shared.encode(np.zeros((1, 8, 8), "float32"))
    with pytest.raises(ValueError, match="`latents` must be of shape"):
        shared.decode(np.zeros((1, 4, 4, 5), "float32"))
    with pytest.raises(ValueError, match="trained on images alone"):
        model = VQAutoencoder(**SMALL)
        model.compile("adam")
        model.fit(pictures(), pictures(), verbose=0)
    with pytest.raises(ValueError, match="must be a latent diffusion preset"):
        VQAutoencoder.from_preset("chirodiff_vmnist")
