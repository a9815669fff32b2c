"""The three scales of a study: the settings that a cell is run with at each of them.

Loads no Keras, so that the command line answers at once.
"""

import dataclasses
from pathlib import Path

from keras_sparse_dm.checks import SettingsError, one_of
from keras_sparse_dm.datasets import IMAGE_DATASETS, SKETCH_DATASETS
from keras_sparse_dm.presets import AutoencoderSettings, get_preset
from keras_sparse_dm.runs.autoencoder_settings import AutoencoderRunSettings
from keras_sparse_dm.runs.settings import RunSettings
from keras_sparse_dm.study.grid import LATENT_DIFFUSION, OPTIONS

SCALES = ("smoke", "reduced", "paper")
PAPER_SAMPLES = 10_000
# The paper trains on 12,500 images, half of CelebA-HQ (appendix C).
FULL_CELEBAHQ = 25_000


def settings_of(
    cell,
    scale,
    data_dir=None,
    *,
    folder=None,
    cache_dir=None,
    epochs=None,
    samples=None,
    autoencoder=None,
):
    """Return the settings of a cell's run at a scale.

    Args:
        cell: The `Cell`.
        scale: `"smoke"` (seconds per run, on data that come with the packages), `"reduced"`
            (minutes per run), or `"paper"`.
        data_dir: Folder that holds one folder per data set, named as in `datasets`.
        folder: The study's folder; the run's folder is `runs/NAME` in it.
        cache_dir: Folder for prepared data.
        epochs: `{preset: epochs}` in place of the scale's epochs.
        samples: Number of samples to evaluate, in place of the scale's.
        autoencoder: Trained autoencoder for latent diffusion.

    Returns:
        `RunSettings`, whose `sampling.evaluation` is the number of samples to evaluate.

    Raises:
        SettingsError: for an unknown scale, or a data set that is missing; the message says where
            to get it.
    """
    one_of("--scale", scale, SCALES, error=SettingsError)
    settings = RunSettings.from_preset(cell.preset)
    of_images = cell.preset in LATENT_DIFFUSION
    dataset = (IMAGE_DATASETS if of_images else SKETCH_DATASETS)[settings.data.dataset]
    place = _data_place(dataset, data_dir)
    training = {"method": cell.method, "sparsity": cell.sparsity}
    if cell.prune_rate is not None:
        training["prune_rate"] = cell.prune_rate
    if cell.category is not None:
        settings = with_parts(settings, data={"categories": (cell.category,)})
    settings = as_in_paper(settings, cell)
    if scale != "smoke" and place is None and dataset.packaged != "whole":
        raise SettingsError(_missing(dataset, data_dir))
    if scale == "reduced":
        settings = _reduced_images(settings, cell) if of_images else _reduced_sketches(settings)
    elif scale == "smoke":
        settings = _smoke_images(settings) if of_images else _smoke_sketches(settings, place)
        place = place if settings.data.dataset == get_preset(cell.preset).data.dataset else None
    if cell.update_every is not None:
        training["update_every"] = cell.update_every
    parts = {"training": training, "data": {}}
    for name, value in cell.options:
        parts[OPTIONS[name][0]][name] = value
    if epochs and cell.preset in epochs:
        training["epochs"] = epochs[cell.preset]
    settings = with_parts(settings, **parts)
    if samples is not None:
        settings = with_parts(settings, sampling={"evaluation": samples})
    folder = None if folder is None else Path(folder)
    if of_images:
        if autoencoder is None and scale == "reduced" and folder is not None:
            autoencoder = folder / "autoencoders" / settings.data.dataset / "autoencoder.keras"
        settings = dataclasses.replace(settings, autoencoder=autoencoder)
    return dataclasses.replace(
        settings,
        output_dir=None if folder is None else folder / "runs" / cell.name,
        data_dir=place,
        cache_dir=cache_dir,
        seed=cell.seed,
        verbose=2,
    )


def as_in_paper(settings, cell):
    """Return a preset's settings with the paper's number of samples, and of CelebA-HQ's images."""
    settings = with_parts(settings, sampling={"evaluation": PAPER_SAMPLES})
    return with_parts(settings, data={"training_images": FULL_CELEBAHQ}) if cell.full else settings


def with_parts(settings, **parts):
    """Return settings with some values of their parts replaced: `part={"name": value}`."""
    return dataclasses.replace(
        settings,
        **{
            name: dataclasses.replace(getattr(settings, name), **values)
            for name, values in parts.items()
        },
    )


def _data_place(dataset, data_dir):
    """Return the absolute path of a data set in `data_dir`, or None."""
    if data_dir is None:
        return None
    for pattern in dataset.folders:
        found = sorted(Path(data_dir).glob(pattern))
        if found:
            return found[0].absolute()
    return None


def _missing(dataset, data_dir):
    name = dataset.folders[0]
    found = f"{Path(data_dir) / name} does not exist" if data_dir else "the option is not given"
    return (
        f"--data-dir must be a folder in which {name} holds the data set; {found}. Put "
        f"{dataset.source} there."
    )


def _reduced_sketches(settings):
    """Return settings that train the paper's network for minutes, as `quickstart` does."""
    quick = get_preset("quickstart").training
    # VMNIST's network is so small that a larger batch takes hardly more time.
    epochs, batch_size = {
        "chirodiff_kanjivg": (8, 64),
        "chirodiff_vmnist": (15, 128),
        "chirodiff_quickdraw": (1, 128),
    }[settings.preset]
    training = dataclasses.replace(quick, epochs=epochs, batch_size=batch_size)
    settings = dataclasses.replace(settings, training=training)
    return with_parts(settings, sampling={"evaluation": 1000})


def _reduced_images(settings, cell):
    """Return settings with the network and training of `ldm_kanjivg`, on small images."""
    small = get_preset("ldm_kanjivg")
    settings = dataclasses.replace(
        settings,
        model=small.model,
        training=small.training,
        sampling=small.sampling,
        first_stage=small.autoencoder,
    )
    data = {
        "image_size": 64,
        "cache_latents": True,
        "training_images": 10_000 if cell.full else 5_000,
        "validation_images": 500,
    }
    return with_parts(settings, data=data, sampling={"evaluation": 1000})


def _smoke_sketches(settings, place):
    """Return settings with the paper's network on 64 sketches, of KanjiVG if need be.

    The sketches of KanjiVG and the digits for VMNIST come with Python packages.
    """
    if place is None and not SKETCH_DATASETS[settings.data.dataset].packaged:
        settings = with_parts(settings, data={"dataset": "kanjivg"})
    settings = with_parts(
        settings,
        data={"max_sketches": 64},
        training={
            "epochs": 2,
            "batch_size": 16,
            "update_every": 2,
            "learning_rate": 8e-3,
            "ema_momentum": 0.9,
        },
        sampling={"steps": 5, "evaluation": 64},
    )
    # The same number for the picture as for the evaluation, so that sampling is traced only once.
    return dataclasses.replace(settings, samples=64)


def _smoke_images(settings):
    """Return settings with a tiny network and autoencoder on a few rendered kanji."""
    small = get_preset("ldm_kanjivg")
    settings = dataclasses.replace(
        settings,
        model=dataclasses.replace(small.model, channel_mult=(1,), attention_factors=(1,)),
        data=dataclasses.replace(
            small.data, image_size=32, training_images=64, validation_images=16
        ),
        training=dataclasses.replace(
            small.training, epochs=2, update_every=2, learning_rate=1e-3, ema_momentum=0.9
        ),
        first_stage=AutoencoderSettings(
            channels=8,
            num_res_blocks=1,
            codes=64,
            norm_groups=4,
            reconstruction="l2",
            epochs=1,
            batch_size=16,
            learning_rate=2e-3,
        ),
        samples=16,
    )
    return with_parts(settings, sampling={"steps": 5, "evaluation": 64})


def autoencoder_settings(settings):
    """Return the `AutoencoderRunSettings` that train the autoencoder of a reduced run."""
    return AutoencoderRunSettings(
        preset=settings.preset,
        output_dir=settings.autoencoder.parent,
        data_dir=settings.data_dir,
        cache_dir=settings.cache_dir,
        model=settings.first_stage,
        data=settings.data,
        verbose=2,
    )


def sampling_steps_of(study, settings):
    """Return the numbers of sampling steps that a run is evaluated with, the run's own last."""
    own = settings.sampling.steps
    steps = study.sampling_steps or (own,)
    return tuple(sorted(set(steps), key=lambda n: (n == own, n)))
