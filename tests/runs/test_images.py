"""Runs on images by command: a folder of pictures, an autoencoder, a sparse U-Net."""

import csv
import json
import warnings

import keras
import numpy as np
import pytest
from PIL import Image

from keras_sparse_dm import sparsity_report
from keras_sparse_dm.cli import main
from keras_sparse_dm.commands.train import parse_settings, train_command
from keras_sparse_dm.diffusion import DiffusionModel
from keras_sparse_dm.models import LatentDiffusion, VQAutoencoder
from keras_sparse_dm.runs.images import ImageRun
from keras_sparse_dm.sparsity import check_invariant

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("private_cache")]

SMALL_AUTOENCODER = (
    *("--channels", "8", "--channel-mult", "1", "2", "--codes", "16", "--norm-groups", "4"),
    *("--batch-size", "8"),
)
IMAGES = ("--dataset", "folder", "--image-size", "16", "--verbose", "0")
TINY = (
    *IMAGES,
    *("--model-channels", "32", "--channel-mult", "1", "--batch-size", "8"),
    *("--noise.timesteps", "20", "--sampling.steps", "3", "--samples", "8"),
    *("--update-every", "3", "--prune-rate", "0.2", "--seed", "3", "--epochs", "2"),
    *("--validation-images", "8"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of 42 pictures of squares and a broken one."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(42):
        pixels = np.full((20, 24, 3), rng.integers(0, 256, 3), "uint8")
        row, column = rng.integers(0, 12, 2)
        pixels[row : row + 8, column : column + 8] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    return folder


@pytest.fixture(scope="module")
def autoencoder_run(folder, tmp_path_factory):
    """Folder of an autoencoder's run, stopped after an epoch and resumed."""
    run = tmp_path_factory.mktemp("autoencoder") / "run"
    arguments = ("train-autoencoder", *IMAGES, *SMALL_AUTOENCODER, "--epochs", "2")
    arguments = (*map(str, arguments), "--data-dir", str(folder), "--output-dir", str(run))
    with pytest.MonkeyPatch.context() as patch:
        stop_after_epochs(patch, VQAutoencoder, 1)
        assert main(arguments) == 130
    assert (run / "checkpoints/last.keras").exists()
    assert main(("train-autoencoder", "--output-dir", str(run), "--resume")) == 0
    return run


@pytest.fixture(scope="module")
def unbroken(folder, autoencoder_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("unbroken") / "run"
    assert train("--output-dir", run, *places(folder, autoencoder_run), *TINY) == 0
    return run


def places(folder, autoencoder_run):
    return "--data-dir", folder, "--autoencoder", autoencoder_run / "autoencoder.keras"


def train(*argv):
    return train_command(["ldm_kanjivg", *map(str, argv)])


def stop_after_epochs(patch, cls, epochs):
    """Interrupt training like Ctrl-C when the next epoch begins."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == epochs:
                raise KeyboardInterrupt

    fit = cls.fit

    def fit_with_stop(self, *args, callbacks=(), **kwargs):
        return fit(self, *args, callbacks=[*callbacks, Stop()], **kwargs)

    patch.setattr(cls, "fit", fit_with_stop)


def losses(run):
    with open(run / "metrics.csv", newline="") as file:
        return [(row["epoch"], row["loss"], row["val_loss"]) for row in csv.DictReader(file)]


def test_the_autoencoder_is_trained_and_shown(autoencoder_run):
    files = {str(p.relative_to(autoencoder_run)) for p in autoencoder_run.rglob("*") if p.is_file()}
    assert files == {
        "config.json",
        "metrics.csv",
        "checkpoints/last.keras",
        "autoencoder.keras",
        "reconstructions.png",
        "report.md",
        "report.json",
    }
    assert [row[0] for row in losses(autoencoder_run)] == ["0", "1"]
    autoencoder = keras.saving.load_model(autoencoder_run / "autoencoder.keras")
    assert (autoencoder.codes, autoencoder.channels, autoencoder.downsampling) == (16, 8, 2)
    assert "Validation reconstruction loss" in (autoencoder_run / "report.md").read_text()


@pytest.mark.nightly
def test_a_run_leaves_the_same_folder_as_one_on_sketches(unbroken, folder):
    files = {str(p.relative_to(unbroken)) for p in unbroken.rglob("*") if p.is_file()}
    assert {f for f in files if not f.startswith("tensorboard")} == {
        "config.json",
        "state.json",
        "metrics.csv",
        "checkpoints/last.keras",
        "model.keras",
        "samples.png",
        "report.md",
        "report.json",
    }
    model = keras.saving.load_model(unbroken / "model.keras")
    assert isinstance(model, LatentDiffusion)
    check_invariant(model)
    report = json.loads((unbroken / "report.json").read_text())
    assert report["training_images"] + report["validation_images"] == 42
    assert report["sparsity"]["nonzeros"] == sparsity_report(model).nonzeros
    assert report["iterations"] == 2 * 5 and report["topology_updates"] == 3
    assert report["latent_shape"] == [8, 8, 3]
    assert {"fd_pixels_untrained", "fd_pixels_generated", "fd_pixels_held_out"} <= set(report)
    assert report["validation_loss_trained"] < report["validation_loss_untrained"]
    text = (unbroken / "report.md").read_text()
    assert "one pass over a 8 x 8 x 3 latent" in text and "Images for training" in text


@pytest.mark.parametrize(("training", "validation"), [(20, 1), (1, 20)])
def test_images_too_few_for_a_distance_have_none(folder, autoencoder_run, training, validation):
    counts = ("--training-images", training, "--validation-images", validation)
    argv = ("ldm_kanjivg", *places(folder, autoencoder_run), *TINY, *counts)
    run = ImageRun(parse_settings([*map(str, argv)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = run.results(np.zeros((8, 16, 16, 3), "float32"))
    distances = {name for name in results if name.startswith("fd_")}
    assert distances == ({"fd_pixels_generated"} if training > 1 else set())


@pytest.mark.nightly
def test_a_run_on_cached_latents_resumes_to_the_bits_of_an_unbroken_one(
    unbroken, folder, autoencoder_run, tmp_path
):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after_epochs(patch, DiffusionModel, 1)
        assert train("--output-dir", run, *places(folder, autoencoder_run), *TINY) == 130
    assert train("--output-dir", run, "--resume") == 0
    assert losses(run) == losses(unbroken)
    mine, theirs = (keras.saving.load_model(f / "model.keras") for f in (run, unbroken))
    for a, b in zip(mine.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.nightly
def test_another_autoencoder_is_refused_on_resuming(unbroken, autoencoder_run, tmp_path, capfd):
    keras.utils.set_random_seed(9)
    trained = keras.saving.load_model(autoencoder_run / "autoencoder.keras")
    other = VQAutoencoder.from_config(trained.get_config())
    changed = autoencoder_run / "autoencoder.keras"
    kept = changed.read_bytes()
    before = {p: p.read_bytes() for p in unbroken.rglob("*") if p.is_file()}
    try:
        other.save(changed)
        assert train("--output-dir", unbroken, "--resume") == 2
    finally:
        changed.write_bytes(kept)
    assert "started with an autoencoder of other weights" in capfd.readouterr().err
    assert before == {p: p.read_bytes() for p in unbroken.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--autoencoder", "nowhere.keras"), "--autoencoder nowhere.keras does not exist"),
        (("--dataset", "celebahq"), "--autoencoder must be given: a .keras file"),
        (("--dataset", "folder"), "--data-dir must be given for --dataset folder"),
        (("--dataset", "mnist"), "--dataset must be one of kanjivg, celebahq"),
        (("--image-size", "60"), "--image-size must be a multiple of 8, the product of"),
        (("--image-size", "4"), "--image-size must be 8 or more; received 4"),
        (("--model-channels", "40"), "`model_channels` must be a multiple of 32"),
        (("--first-stage.channels", "6"), "`channels` must be a multiple of the 8 `norm_groups`"),
        (("--first-stage.codes", "0"), "--first-stage.codes must be 1 or more; received 0"),
        (("--head-channels", "40"), "`head_channels` must divide"),
        (("--units", "8"), "--units"),
    ],
    ids=lambda value: "-".join(value)[2:] if isinstance(value, tuple) else "",
)
def test_bad_options_are_refused_before_any_work(options, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert train(*options) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1 and message in errors[0]
    assert not list(tmp_path.iterdir())


def test_missing_images_are_answered_with_where_to_get_them(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(("train-autoencoder", "ldm_imagenette", "--data-dir", "nowhere")) == 2
    (error,) = (line for line in capfd.readouterr().err.splitlines() if "error:" in line)
    assert "error: --data-dir: data_dir='nowhere' does not exist; for Imagenette, " in error
    assert not list(tmp_path.iterdir())


def test_an_autoencoder_that_does_not_fit_is_refused(folder, tmp_path, capfd):
    wide = VQAutoencoder(channels=8, channel_mult=(1, 2), norm_groups=4, codes=8, code_channels=4)
    wide.save(tmp_path / "wide.keras")
    (tmp_path / "broken.keras").write_bytes(b"not a zip")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    for file, message in (
        ("wide.keras", "must have the 4 channels of the autoencoder's latents"),
        ("broken.keras", "broken.keras cannot be used"),
        ("other.keras", "it holds a Sequential, not a VQAutoencoder"),
    ):
        run = tmp_path / "run"
        arguments = ("--data-dir", folder, "--autoencoder", tmp_path / file, "--output-dir", run)
        assert train(*TINY, *arguments) == 2
        assert message in capfd.readouterr().err
        assert not run.exists()
