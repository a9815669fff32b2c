"""Latent diffusion: frozen autoencoder, scaled latents, generation, mixed precision."""

import keras
import numpy as np
import pytest

from keras_sparse_dm import DynamicSparsity, sparsify
from keras_sparse_dm.diffusion import NoiseSchedule
from keras_sparse_dm.models import LatentDiffusion, UNet, VQAutoencoder
from keras_sparse_dm.sparsity import check_invariant, masked_kernels

SLOW_FIXTURES = {"trained"}


def new_model(**arguments):
    keras.utils.set_random_seed(0)
    autoencoder = VQAutoencoder(
        channels=8, channel_mult=(1, 2), num_res_blocks=1, codes=16, norm_groups=4, seed=0
    )
    autoencoder.codebook.assign(0.5 * keras.random.normal((16, 3), seed=1))
    denoiser = UNet(model_channels=32, channel_mult=(1,), num_res_blocks=1, timesteps=20)
    noise = NoiseSchedule.scaled_linear(20, 0.01, 0.3)
    return LatentDiffusion(
        denoiser, autoencoder, noise, **({"image_size": 8, "seed": 0} | arguments)
    )


def images(n=16, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, 8, 8, 3)).astype("float32")


def weights(model):
    return [np.array(v) for v in model.weights]


@pytest.fixture(scope="module")
def trained():
    """Shared by all tests; none may change it."""
    model = new_model(scale_latents=True)
    sparsify(model, 0.5, seed=0)
    before = weights(model.autoencoder)
    model.compile(keras.optimizers.AdamW(1e-2, use_ema=True, ema_momentum=0.5))
    model.fit(
        images(), batch_size=8, epochs=3, verbose=0, callbacks=[DynamicSparsity(update_every=2)]
    )
    return model, before


def test_the_autoencoder_stays_as_it_was(trained):
    model, before = trained
    for a, b in zip(weights(model.autoencoder), before, strict=True):
        np.testing.assert_array_equal(a, b)
    denoisers = sum(int(np.prod(v.shape)) for v in model.denoiser.trainable_variables)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == denoisers
    # Two moments and one average per trained weight, and nothing for the autoencoder.
    state = [v for v in model.optimizer.variables if v.dtype == "float32" and len(v.shape)]
    assert sum(int(np.prod(v.shape)) for v in state) == 3 * denoisers
    assert all(k.name.startswith("u_net") for k in masked_kernels(model))


@pytest.mark.slow
def test_freezing_and_unfreezing_leaves_the_autoencoder_frozen():
    model = new_model()
    before = [v.path for v in model.trainable_variables]
    model.trainable = False
    assert not model.trainable and not model.trainable_variables
    model.trainable = True
    assert [v.path for v in model.trainable_variables] == before


def test_the_invariant_holds_and_the_topology_moved(trained):
    model, _ = trained
    check_invariant(model)
    assert model.optimizer.topology_updates == 3


def test_latents_are_scaled_by_the_first_batch_only(trained):
    model, _ = trained
    # `fit` without shuffling would see the first eight; it shuffles, so any eight of them.
    latents = np.asarray(model.encode(images()))
    assert float(model.scale_factor) == pytest.approx(1 / latents.std(), rel=0.2)
    scale = float(model.scale_factor)
    model.learn_scale(100 * latents)
    assert float(model.scale_factor) == scale
    x, lengths = model.clean_batch(images(), training=False)
    np.testing.assert_allclose(x, latents * scale, rtol=1e-5, atol=1e-6)
    assert lengths is None
    unscaled = new_model()
    assert float(unscaled.scale_factor) == 1.0


def test_images_and_their_latents_give_the_same_loss(trained):
    model, _ = trained
    latents = np.asarray(model.encode(images()))
    from_images = model.evaluate(images(), batch_size=8, verbose=0)
    from_latents = model.evaluate({"latents": latents}, batch_size=8, verbose=0)
    assert from_latents == pytest.approx(from_images, rel=1e-5)


def test_generates_the_same_whatever_the_batches_and_the_bar(trained, capsys):
    model, _ = trained
    arguments = {"steps": 5, "seed": 3, "progress": False}
    pictures = model.generate(5, **arguments)
    assert pictures.shape == (5, 8, 8, 3) and pictures.dtype == np.float32
    assert np.abs(pictures).max() <= 1
    np.testing.assert_allclose(model.generate(5, batch_size=2, **arguments), pictures, atol=1e-4)
    with_bar = model.generate(5, steps=5, seed=3, progress=True)
    np.testing.assert_array_equal(with_bar, pictures)
    assert "Sampling" in capsys.readouterr().err
    assert np.abs(model.generate(5, steps=5, seed=4, progress=False) - pictures).max() > 0.01
    noisy = model.generate(2, steps=5, eta=1.0, seed=3, progress=False)
    np.testing.assert_array_equal(noisy, model.generate(2, steps=5, eta=1.0, seed=3, progress=True))


def test_a_file_brings_all_of_it_back(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert float(again.scale_factor) == float(model.scale_factor)
    assert float(again.scale_known) == 1.0
    assert again.autoencoder.fingerprint() == model.autoencoder.fingerprint()
    assert not again.autoencoder.trainable
    check_invariant(again)
    np.testing.assert_array_equal(
        again.generate(2, steps=3, seed=0, progress=False),
        model.generate(2, steps=3, seed=0, progress=False),
    )


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_with_the_invariant_kept(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = new_model(scale_latents=True)
        sparsify(model, 0.5, seed=0)
        model.compile(keras.optimizers.AdamW(3e-3, use_ema=True, ema_momentum=0.5))
        history = model.fit(
            images(), batch_size=8, epochs=4, verbose=0, callbacks=[DynamicSparsity(update_every=2)]
        )
        check_invariant(model)
        pictures = model.generate(2, steps=3, seed=0, progress=False)
    finally:
        keras.config.set_dtype_policy(before)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert np.isfinite(pictures).all()


@pytest.mark.slow
def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"`image_size` must be a multiple of 2, .*received 7"):
        new_model(image_size=7)
    autoencoder = VQAutoencoder(channels=8, channel_mult=(1,), norm_groups=4, code_channels=4)
    denoiser = UNet(model_channels=32, channel_mult=(1,), attention_factors=(), timesteps=20)
    with pytest.raises(ValueError, match="must have the 4 channels .* it has 3 and 3"):
        LatentDiffusion(denoiser, autoencoder, NoiseSchedule.linear(20))
    model = new_model()
    with pytest.raises(ValueError, match="dictionary of 'latents'; received .*points"):
        model.clean_batch({"points": images()}, training=True)
    with pytest.raises(ValueError, match=r"Latents must be of shape \(batch_size, 4, 4, 3\)"):
        model.clean_batch({"latents": images()}, training=True)
    for arguments, message in (
        ({"n": 0}, "`n` must be a whole number, 1 or more; received 0"),
        ({"n": 1, "batch_size": 0}, "`batch_size` must"),
        ({"n": 1, "steps": 21}, "`steps` must be a whole number from 1 to 20"),
        ({"n": 1, "eta": 2.0}, "`eta` must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**({"steps": 3, "progress": False} | arguments))
    with pytest.raises(ValueError, match=r"from 0 to 19; received \[20\]"):
        model.diffuse(images()[:1, :4, :4], np.array([20]), 0.0)


@pytest.mark.slow
def test_the_presets_make_it():
    model = LatentDiffusion.from_preset("ldm_kanjivg", seed=0, model_channels=32)
    assert model.latent_shape == (16, 16, 3) and model.scale_latents
    assert model.noise_schedule.kind == "scaled_linear"
