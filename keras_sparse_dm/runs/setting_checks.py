"""Checks of the settings of data and autoencoders, before anything is loaded."""

import functools
import math

from keras_sparse_dm.checks import SettingsError, at_least, check_choices, did_you_mean, in_range
from keras_sparse_dm.datasets import IMAGE_DATASETS, SKETCH_DATASETS
from keras_sparse_dm.sparsity.registry import METHODS, facts_of

_at_least = functools.partial(at_least, error=SettingsError)
_number = functools.partial(in_range, error=SettingsError)


def checked_method(option, name):
    """Return the `MethodFacts` of a method.

    Raises:
        SettingsError: naming the option, what was received and what would be right.
    """
    try:
        return facts_of(name)
    except ValueError as error:
        raise SettingsError(f"{option} {error}{did_you_mean(name, METHODS)}") from None


def check_sketch_settings(data, data_dir):
    """Check the settings of sketches.

    Raises:
        SettingsError: naming the option, what was received and what would be right.
    """
    check_choices(data)
    _number("--spacing", data.spacing, 0, 1, closed_low=False)
    _number("--scale", data.scale, 0, math.inf, closed_low=False)
    _number("--simplify", data.simplify, 0, 1)
    _number("--jitter", data.jitter, 0, math.inf)
    _at_least(
        ("--max-points", data.max_points, 3),
        ("--max-sketches", data.max_sketches, 0),
        ("--max-strokes", data.max_strokes, 0),
    )
    if not data.categories:
        raise SettingsError("--categories must name at least one, such as cat; received ().")
    if SKETCH_DATASETS[data.dataset].own and data_dir is None:
        raise SettingsError(
            f"--data-dir must be given for --dataset {data.dataset}: a folder of sketches, or one "
            "file."
        )


def check_image_settings(data, data_dir):
    """Check the settings of images.

    Raises:
        SettingsError: naming the option, what was received and what would be right.
    """
    check_choices(data)
    _at_least(
        ("--image-size", data.image_size, 8),
        ("--training-images", data.training_images, 0),
        ("--validation-images", data.validation_images, 0),
    )
    if IMAGE_DATASETS[data.dataset].own and data_dir is None:
        raise SettingsError(
            f"--data-dir must be given for --dataset {data.dataset}: a folder of images."
        )


def check_seed_and_verbose(settings):
    """Check two settings of every run.

    Raises:
        SettingsError: naming the option, what was received and what would be right.
    """
    at_least(("--seed", settings.seed, 0), error=SettingsError)
    if settings.seed >= 2**31:
        raise SettingsError(f"--seed must be below 2147483648; received {settings.seed}.")
    if settings.verbose not in (-1, 0, 1, 2):
        raise SettingsError(f"--verbose must be -1, 0, 1 or 2; received {settings.verbose}.")


def check_autoencoder_settings(autoencoder, prefix):
    """Check the settings of an autoencoder, whose options begin with a prefix.

    Raises:
        SettingsError: naming the option, what was received and what would be right.
    """
    a = autoencoder
    check_choices(a, prefix.removeprefix("--"))
    _number(f"{prefix}learning-rate", a.learning_rate, 0, math.inf, closed_low=False)
    _at_least(
        (f"{prefix}channels", a.channels, 1),
        (f"{prefix}channel-mult", min(a.channel_mult, default=0), 1),
        (f"{prefix}num-res-blocks", a.num_res_blocks, 1),
        (f"{prefix}codes", a.codes, 1),
        (f"{prefix}code-channels", a.code_channels, 1),
        (f"{prefix}norm-groups", a.norm_groups, 1),
        (f"{prefix}epochs", a.epochs, 1),
        (f"{prefix}batch-size", a.batch_size, 1),
    )
