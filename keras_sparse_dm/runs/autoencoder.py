"""Training of the autoencoder for latent diffusion, by command or once for the default."""

import contextlib
import json
import platform
import time
from importlib.metadata import version

import keras
import numpy as np

import keras_sparse_dm
from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.data.cache import cache_folder, fingerprint_of
from keras_sparse_dm.data.images import (
    eval_image_batches,
    image_steps_per_epoch,
    load_images,
    train_image_batches,
)
from keras_sparse_dm.data.pictures import draw_images
from keras_sparse_dm.models import VQAutoencoder
from keras_sparse_dm.runs.callbacks import (
    Checkpoint,
    EpochFigures,
    StopOnDivergence,
    cosine_with_warmup,
    keras_verbosity,
    read_checkpoint,
    save_model,
    trim_metrics,
)
from keras_sparse_dm.runs.folder import CONFIG_FILE, check_folder, unusable_folder, write_json
from keras_sparse_dm.runs.markdown import markdown_table

# Pixels to evaluate at a time: 64 images of 64 x 64, or 4 of 256 x 256.
EVAL_PIXELS = 2**18
# Part of the cached file's name: raise it if the same settings train another autoencoder.
VERSION = 1


def train_autoencoder(settings):
    """Train a `VQAutoencoder` on images and write all results to the run's folder.

    The folder gets `config.json`, `metrics.csv`, a checkpoint after every epoch, and at the end
    `autoencoder.keras`, `reconstructions.png` and `report.md`. A run that was stopped continues
    with `resume=True`.

    Args:
        settings: `AutoencoderRunSettings`.

    Returns:
        The run's folder.

    Raises:
        SettingsError: for settings that cannot work, before training starts.
        TrainingDiverged: if the loss becomes NaN or infinite; the last checkpoint is kept.
        OSError: if a file cannot be written; files written before are kept.
    """
    begin = time.perf_counter()
    settings.check()
    check_folder(settings)
    folder, checkpoint = settings.folder, settings.folder / "checkpoints" / "last.keras"
    new_autoencoder(settings.model, settings.data.image_size, settings.seed)
    train, validation = load_image_data(settings)
    model, epochs_done = None, 0
    if settings.resume and checkpoint.exists():
        model = read_checkpoint(checkpoint)
        steps = image_steps_per_epoch(train, settings.model.batch_size)
        epochs_done = int(model.optimizer.iterations) // steps
        print(f"Resuming {folder} after epoch {epochs_done} of {settings.model.epochs}.")
    else:
        names = ("keras", "tensorflow", "numpy")
        versions = {
            "keras_sparse_dm": keras_sparse_dm.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in names},
        }
        try:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unusable_folder(folder, error) from None
        write_json(folder / CONFIG_FILE, {"settings": settings.to_dict(), "versions": versions})
    print(train.summary)
    trim_metrics(folder / "metrics.csv", epochs_done)
    callbacks = [
        StopOnDivergence(checkpoint),
        EpochFigures(),
        keras.callbacks.CSVLogger(folder / "metrics.csv", append=True),
        Checkpoint(checkpoint),
    ]
    model = fit_autoencoder(
        settings.model,
        train,
        validation,
        settings.seed,
        model=model,
        epochs_done=epochs_done,
        callbacks=callbacks,
        verbose=keras_verbosity(settings.verbose),
    )
    final = model.evaluate(
        eval_image_batches(validation, eval_batch_size(validation)), verbose=0, return_dict=True
    )
    save_model(model, folder / "autoencoder.keras")
    shown = np.stack([validation[i] for i in range(min(32, len(validation)))])
    shown = shown.astype("float32") / 127.5 - 1
    reconstructed = np.concatenate(
        [model.predict_on_batch(shown[i : i + 4]) for i in range(0, len(shown), 4)]
    )
    draw_images(
        [reconstructed, shown], folder / "reconstructions.png", titles=("reconstructed", "real")
    )
    reconstruction = f"{final['reconstruction']:.4f}"
    rows = [
        ("Parameters", f"{model.count_params():,}"),
        ("Images for training, validation", f"{len(train):,}, {len(validation):,}"),
        (f"Validation reconstruction loss ({model.reconstruction})", reconstruction),
        ("Codes used by a validation batch", f"{final['codes_used']:.1%} of {model.codes}"),
        ("Epochs", settings.model.epochs),
        ("Batch size", settings.model.batch_size),
        ("Seed", settings.seed),
        ("Wall time since the (re)start", f"{time.perf_counter() - begin:.0f} s"),
    ]
    write_json(folder / "report.json", {"validation": final, "parameters": model.count_params()})
    (folder / "report.md").write_text(
        "\n".join(
            [
                f"# Autoencoder, {settings.preset}",
                "",
                "![reconstructed images beside real ones](reconstructions.png)",
                "",
                *markdown_table(("", ""), rows),
                "",
            ]
        ),
        encoding="utf-8",
    )
    return folder


def trained_autoencoder(settings, train, validation):
    """Return the autoencoder of a run that names none: trained once and kept in the cache folder.

    Args:
        settings: `ImageRunSettings`.
        train, validation: `ImageArrays`.

    Returns:
        A trained `VQAutoencoder`.
    """
    key = fingerprint_of(
        [VERSION, json.loads(json.dumps(vars(settings.first_stage))), train.fingerprint]
    )
    path = cache_folder(settings.cache_dir) / f"autoencoder-v{VERSION}-{key}.keras"
    if path.exists():
        try:
            return keras.saving.load_model(path, compile=False)
        except Exception as error:  # a damaged file can raise anything
            print(f"{path} cannot be read ({type(error).__name__}); training a new autoencoder.")
    print(f"Training the autoencoder once; later runs load it from {path}.")
    model = fit_autoencoder(
        settings.first_stage,
        train,
        validation,
        seed=0,
        verbose=keras_verbosity(settings.verbose),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, path)
    return model


def load_image_data(settings):
    """Return the `(train, validation)` images that a run's settings name.

    Raises:
        SettingsError: if the images are missing or cannot be used.
    """
    d = settings.data
    try:
        with cache_errors():
            return load_images(
                d.dataset,
                data_dir=settings.data_dir,
                cache_dir=settings.cache_dir,
                size=d.image_size,
                train_images=d.training_images or None,
                validation_images=d.validation_images or None,
                characters=d.characters,
            )
    except SettingsError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise SettingsError(f"--data-dir: {error}") from None


@contextlib.contextmanager
def cache_errors():
    """Context that turns errors of a cache that cannot be written into a SettingsError."""
    try:
        yield
    except FileNotFoundError:  # of the data; the cache folder is created
        raise
    except OSError as error:
        # The operating system's errors, which have a number, need no other message.
        if error.errno is not None:
            raise
        raise SettingsError(f"--cache-dir: {error}") from None


def eval_batch_size(images):
    """Return a batch size for evaluation that fits into memory."""
    return max(1, min(64, EVAL_PIXELS // images.size**2))


def new_autoencoder(autoencoder, image_size, seed):
    """Return a new `VQAutoencoder`.

    Args:
        autoencoder: `AutoencoderSettings`.
        image_size: Height and width of the images; a multiple of the downsampling factor.
        seed: Integer seed of the weights.

    Raises:
        SettingsError: for settings that do not fit together or do not fit the image size.
    """
    try:
        model = VQAutoencoder(**autoencoder.arguments(), seed=seed, name="autoencoder")
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if image_size % model.downsampling:
        raise SettingsError(
            f"--image-size must be a multiple of {model.downsampling}, the downsampling factor of "
            f"the autoencoder; received {image_size}."
        )
    return model


def fit_autoencoder(
    autoencoder,
    train,
    validation,
    seed,
    model=None,
    epochs_done=0,
    callbacks=(),
    verbose=0,
):
    """Train an autoencoder with Adam and a learning rate that falls as a cosine.

    Args:
        autoencoder: `AutoencoderSettings`.
        train, validation: `ImageArrays`.
        seed: Integer seed of weights, batches and code restarts.
        model: Compiled `VQAutoencoder` to continue with; a new one by default.
        epochs_done: Number of epochs that the model has been trained for.
        callbacks: Keras callbacks.
        verbose: Argument of `keras.Model.fit`.

    Returns:
        The trained `VQAutoencoder`.
    """
    steps = image_steps_per_epoch(train, autoencoder.batch_size)
    if model is None:
        keras.utils.set_random_seed(seed)
        model = new_autoencoder(autoencoder, train.size, seed)
        learning_rate = cosine_with_warmup(autoencoder.learning_rate, autoencoder.epochs * steps)
        model.compile(keras.optimizers.Adam(learning_rate))
    model.fit(
        train_image_batches(train, autoencoder.batch_size, seed, initial_epoch=epochs_done),
        epochs=autoencoder.epochs,
        initial_epoch=epochs_done,
        steps_per_epoch=steps,
        validation_data=eval_image_batches(validation, eval_batch_size(validation)),
        callbacks=list(callbacks),
        shuffle=False,
        verbose=verbose,
    )
    return model
