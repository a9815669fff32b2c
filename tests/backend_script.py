"""Sparse training on one backend, for `test_backends.py`; without TensorFlow on the others.

`backend_script.py make FOLDER` trains, samples, measures and saves.
`backend_script.py check FOLDER FROM ...` loads what other backends saved and compares predictions.
`backend_script.py methods` trains with other methods, options and precisions.
"""

import json
import os
import sys
from pathlib import Path


def data_of(network):
    """Return training data, and inputs of the denoiser."""
    rng = np.random.default_rng(0)
    if network == "sketches":
        points = rng.normal(size=(16, 12, 3)).astype("float32")
        lengths = rng.integers(5, 13, 16).astype("int32")
        t = rng.integers(0, 1000, 16).astype("int32")
        return {"points": points, "lengths": lengths}, (points, t, lengths)
    latents = rng.normal(size=(8, 8, 8, 3)).astype("float32")
    return {"latents": latents}, (latents, rng.integers(0, 1000, 8).astype("int32"))


def new_model(network):
    """Return an untrained model of tiny networks, half of whose weights are pruned."""
    keras.utils.set_random_seed(0)
    schedule = ksd.diffusion.NoiseSchedule.linear(1000)
    if network == "sketches":
        model = ksd.diffusion.DiffusionModel(ksd.models.ChiroDiff(8, 2), schedule, seed=1)
    else:
        unet = ksd.models.UNet(
            32, channel_mult=(1,), num_res_blocks=1, attention_factors=(1,), head_channels=8
        )
        vq = ksd.models.VQAutoencoder(
            8, channel_mult=(1, 2), num_res_blocks=1, codes=16, norm_groups=4, restart_after=1
        )
        if network == "latents":
            vq.compile(keras.optimizers.Adam(1e-3))
            images = np.random.default_rng(1).uniform(-1, 1, (4, 16, 16, 3)).astype("float32")
            losses = vq.fit(images, batch_size=2, verbose=0).history
            assert np.isfinite(losses["loss"]).all(), losses
        model = ksd.models.LatentDiffusion(unet, vq, schedule, image_size=16, seed=1)
    ksd.sparsify(model, 0.5, seed=0)
    return model


def train(model, data, method, **options):
    """Train for eight steps with four updates, and check the invariant and the masks."""
    before = {k.name: to_numpy(k.mask) for k in ksd.sparsity.masked_kernels(model)}
    callback = ksd.DynamicSparsity(method, update_every=2, prune_rate=0.3, seed=0, **options)
    history = model.fit(
        data,
        batch_size=4,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=data,
        callbacks=[callback],
    )
    assert np.isfinite([*history.history["loss"], *history.history["val_loss"]]).all()
    ksd.sparsity.check_invariant(model)
    after = {k.name: to_numpy(k.mask) for k in ksd.sparsity.masked_kernels(model)}
    assert any((before[name] != mask).any() for name, mask in after.items())
    if options.get("competition") != "global":
        assert all(before[name].sum() == mask.sum() for name, mask in after.items())


def make(folder):
    """Train a model of each kind, save it, and save what it predicts."""
    for network in ("sketches", "latents"):
        data, inputs = data_of(network)
        model = new_model(network)
        model.compile(keras.optimizers.AdamW(1e-3, use_ema=True, ema_momentum=0.9))
        train(model, data, "rigl")
        arguments = {"lengths": [5, 9]} if network == "sketches" else {"n": 2, "progress": False}
        samples = model.generate(steps=3, seed=0, **arguments)
        assert np.isfinite(samples).all()
        # Another batch size and a second call give the same samples.
        again = model.generate(steps=3, seed=0, batch_size=1, **arguments)
        np.testing.assert_allclose(again, samples, atol=1e-4)
        noisy = model.generate(steps=3, seed=0, eta=1.0, **arguments)
        assert np.isfinite(noisy).all() and (noisy != samples).any()
        model.save(folder / f"{network}.keras")
        ksd.export.save_sparse(model, folder / f"{network}.sparse")
        np.save(folder / f"{network}.npy", to_numpy(model.denoiser(inputs)))
        # A loaded model trains on to the same weights.
        loaded = keras.saving.load_model(folder / f"{network}.keras")
        for one in (model, loaded):
            train(one, data, "rigl")
        for ours, theirs in zip(model.weights, loaded.weights, strict=True):
            np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))

    model = new_model("sketches")
    cost = ksd.metrics.cost(model.denoiser, [(1, 12, 3), (1,), (1,)])
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40)).astype("uint8")
    features = ksd.metrics.EmbeddedFeatures()(images)
    np.save(folder / "features.npy", features)
    (folder / "facts.json").write_text(json.dumps(cost.to_dict()))


def try_methods():
    """Train with other methods and options, and in half precision."""
    data, _ = data_of("sketches")
    for method, options, optimizer in (
        ("magran", {"grow_init": "normal"}, {}),
        ("snfs", {}, {"clipnorm": 1.0}),
        ("set", {"grow_warmup": True}, {"global_clipnorm": 1.0}),
        ("rigl", {"competition": "global", "gradient_steps": 2}, {}),
    ):
        model = new_model("sketches")
        model.compile(keras.optimizers.AdamW(1e-3, **optimizer))
        train(model, data, method, **options)
    for policy in ("mixed_bfloat16", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        model = new_model("sketches")
        model.compile(keras.optimizers.AdamW(1e-3))
        train(model, data, "rigl")
        keras.config.set_dtype_policy("float32")


def check(folder, source):
    """Load what another backend saved, and compare what it predicts."""
    for network in ("sketches", "latents"):
        data, inputs = data_of(network)
        expected = np.load(source / f"{network}.npy")
        model = keras.saving.load_model(source / f"{network}.keras")
        ksd.sparsity.check_invariant(model)
        np.testing.assert_allclose(to_numpy(model.denoiser(inputs)), expected, atol=1e-5)
        if network == "sketches":
            train(model, data, "rigl")
        model = ksd.export.load_sparse(source / f"{network}.sparse")
        ksd.sparsity.check_invariant(model)
        np.testing.assert_allclose(to_numpy(model.denoiser(inputs)), expected, atol=1e-5)
    ours, theirs = (np.load(f / "features.npy") for f in (folder, source))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * abs(ours).max())
    ours, theirs = ((f / "facts.json").read_text() for f in (folder, source))
    assert ours == theirs


def check_refusals(folder):
    """Check the sentence of what needs TensorFlow."""
    model = new_model("sketches")
    for name in ("to_saved_model", "to_tflite"):
        try:
            getattr(ksd.export, name)(model, folder / "exported")
        except ModuleNotFoundError as error:
            assert "tensorflow is not installed; install it with: pip" in str(error), error
        else:
            raise AssertionError(f"{name} ran")


if __name__ == "__main__":
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        # As if they were not installed.
        for name in ("tensorflow", "tensorflow_model_optimization", "tensorflow_datasets"):
            sys.modules[name] = None

    import keras
    import numpy as np
    from keras.ops import convert_to_numpy as to_numpy

    import keras_sparse_dm as ksd

    mode, *folders = sys.argv[1:]
    folders = [Path(folder) for folder in folders]
    if mode == "make":
        make(*folders)
        if keras.backend.backend() != "tensorflow":
            check_refusals(*folders)
    elif mode == "methods":
        try_methods()
    else:
        for source in folders[1:]:
            check(folders[0], source)
