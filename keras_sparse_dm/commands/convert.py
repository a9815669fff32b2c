"""The command `sparse-dm convert`: PyTorch checkpoints to `.keras` files, and back."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from keras_sparse_dm import diffusion, models
from keras_sparse_dm.checks import UsageError, one_of
from keras_sparse_dm.commands.options import fail, load_quietly, parse_options
from keras_sparse_dm.files import os_error_text, whole_file
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.presets import PRESETS

architecture = lazy_module("keras_sparse_dm.convert.architecture")
diffusers = lazy_module("keras_sparse_dm.convert.diffusers")
keras = lazy_module("keras")
plan = lazy_module("keras_sparse_dm.convert.plan")
pytorch = lazy_module("keras_sparse_dm.convert.pytorch")
spellings = lazy_module("keras_sparse_dm.convert.spelling")
tyro = lazy_module("tyro")

KERAS = ".keras"
# Noise schedule of the published checkpoints, for files that do not store their betas.
PUBLISHED_BETAS = (1000, 0.0015, 0.0195)


@dataclass(frozen=True)
class ConvertSettings:
    """Convert a PyTorch checkpoint to a .keras file, or a .keras file to a checkpoint.

    The extension of SOURCE decides which. Only tensors are read from a PyTorch file;
    no code in it is ever run.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """A .ckpt, .pt, .pth, .bin or .safetensors file, a folder of the diffusers library, or a
    .keras file."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET")]
    """The file to write; a folder with --naming diffusers."""
    part: Literal["unet", "autoencoder", "all", "chirodiff"] | None = None
    """Network to convert; all is latent diffusion's U-Net with its autoencoder. By default, the
    networks that SOURCE holds."""
    preset: str | None = None
    """Preset of the network; by default the shapes of the tensors determine the network."""
    ema: bool = False
    """Convert the averaged (EMA) weights of the U-Net, with which the original program samples."""
    head_channels: int = 32
    """Channels of an attention head of the U-Net, which shapes do not determine."""
    norm_groups: int = 32
    """Groups of the autoencoder's group norms, which shapes do not determine."""
    image_size: int = 256
    """Height and width of latent diffusion's images, which shapes do not determine."""
    representation: Literal["absolute", "delta"] = "absolute"
    """ChiroDiff's points as positions or as differences, which shapes do not determine."""
    naming: Literal["original", "diffusers"] = "original"
    """Names of the tensors to write."""
    prefix: bool = False
    """Write names with the prefix of a checkpoint of the whole model."""
    overwrite: bool = False
    """Replace an existing target."""


def convert_command(argv, prog="sparse-dm convert"):
    """Parse the options of `convert`, convert, and return the exit code.

    Args:
        argv: List of command line arguments.
        prog: Name of the command in messages.

    Returns:
        0 for success, 1 for a source that cannot be converted, 2 for wrong options.
    """
    try:
        settings = parse_options(ConvertSettings, argv, prog)
        _check(settings)
    except UsageError as error:
        return fail(prog, error, 2)
    try:
        load_quietly(pytorch)
        if settings.source.suffix == KERAS:
            _to_pytorch(settings)
        else:
            _to_keras(settings)
    except UsageError as error:
        return fail(prog, error, 2)
    except (ValueError, ImportError) as error:
        return fail(prog, error, 1)
    except OSError as error:
        return fail(prog, os_error_text(error), 1)
    except KeyboardInterrupt:
        return fail(prog, f"interrupted; nothing was written to {settings.target}.", 130)
    print(f"Wrote {settings.target}")
    return 0


def _check(settings):
    source, target = settings.source, settings.target
    if not source.exists():
        raise UsageError(f"SOURCE must exist; received {source}.")
    if (source.suffix == KERAS) == (target.suffix == KERAS):
        raise UsageError(
            f"SOURCE or TARGET must be a .keras file, and not both; received {source} and {target}."
        )
    if settings.preset is not None:
        one_of("--preset", settings.preset, PRESETS, error=UsageError)
    if target.is_file() and not settings.overwrite:
        raise UsageError(f"TARGET {target} exists; --overwrite replaces it.")
    if not target.parent.is_dir() and settings.naming == "original":
        raise UsageError(f"The folder of TARGET must exist; received {target}.")


def _to_keras(settings):
    source = pytorch.read_source(settings.source)
    model = _new_model(settings, source)
    conversion = pytorch.convert_into(model, source, ema=settings.ema or None)
    averaged = any(s.naming == "averaged" for s in conversion.spellings.values())
    print(
        f"Converted {conversion.tensors:,} tensors with {conversion.parameters:,} parameters"
        f"{', averaged weights' if averaged else ''}"
    )
    if conversion.left:
        owners = Counter(name.rpartition(".")[0].split(".")[0] for name in conversion.left)
        buffers = owners.pop("", 0)
        named = [f"{owner} ({n:,})" for owner, n in owners.items()]
        named += [f"buffers of the noise schedule ({buffers})"] if buffers else []
        print(f"Left {len(conversion.left):,} tensors: {', '.join(named)}")
    with whole_file(settings.target) as temporary:
        model.save(temporary)


def _new_model(settings, source):
    """Return a new model for the requested part of a source."""
    found = spellings.find_networks(source.tensors)
    part = settings.part
    if part is None:
        if not found:
            raise ValueError(
                f"{settings.source} holds none of the networks that can be converted; its tensors "
                f"are {', '.join(list(source.tensors)[:3])}, ..."
            )
        part = "all" if {"unet", "autoencoder"} <= set(found) else next(iter(found))
        print(f"Found the {_title(part)} in {settings.source}, by the names of its tensors")
    classes = _classes() | {"chirodiff": models.ChiroDiff}
    if settings.preset is not None:
        model = models.LatentDiffusion if part == "all" else classes[part]
        return model.from_preset(settings.preset)

    networks = {}
    for kind in _classes() if part == "all" else [part]:
        if kind not in found:
            raise ValueError(f"{settings.source} holds no {_title(kind)}.")
        arguments = _arguments(kind, found[kind], source, settings)
        print(f"{_title(kind)}: {', '.join(f'{k}={v}' for k, v in arguments.items())}")
        networks[kind] = classes[kind](**arguments)
    if part != "all":
        return networks[part]
    schedule = _noise_schedule(source.tensors)
    print(f"{schedule}, image_size={settings.image_size}")
    return models.LatentDiffusion(*networks.values(), schedule, image_size=settings.image_size)


def _classes():
    return {"unet": models.UNet, "autoencoder": models.VQAutoencoder}


def _title(part):
    return {"all": "U-Net and autoencoder"}.get(part) or spellings.TITLES[part]


def _arguments(kind, spelling, source, settings):
    """Return a network's arguments, from its `config.json` or shapes and from the settings."""
    timesteps = {}
    if kind != "autoencoder" and "betas" in source.tensors:
        (count,) = np.shape(source.tensors["betas"])
        timesteps = {"timesteps": count}
    if spelling.naming == "averaged":
        raise UsageError("--preset must be given for a source of averaged weights alone.")
    if spelling.naming == "diffusers" and source.configs.get(kind):
        return diffusers.arguments_of(kind, source.configs[kind]) | timesteps
    own = spelling.own_names(source.tensors)
    shapes = {name: np.shape(source.tensors[stored]) for name, stored in own.items()}
    said = {
        "unet": {"head_channels": settings.head_channels},
        "autoencoder": {"norm_groups": settings.norm_groups},
        "chirodiff": {"representation": settings.representation},
    }[kind]
    return architecture.arguments_from_shapes(kind, spelling.naming, shapes) | said | timesteps


def _noise_schedule(tensors):
    """Return a checkpoint's noise schedule, or the published schedule if it stores no betas."""
    if "betas" not in tensors:
        return diffusion.NoiseSchedule.scaled_linear(*PUBLISHED_BETAS)
    betas = plan.as_float32(tensors["betas"])
    # Undo the rounding to single precision.
    ends = (float(f"{beta:.6g}") for beta in (betas[0], betas[-1]))
    arguments = (len(betas), *ends)
    for make in (diffusion.NoiseSchedule.scaled_linear, diffusion.NoiseSchedule.linear):
        schedule = make(*arguments)
        if np.allclose(schedule.betas, betas, rtol=1e-4):
            return schedule
    raise UsageError("--preset must be given: the source's betas are not linear or scaled linear.")


def _to_pytorch(settings):
    try:
        model = keras.saving.load_model(settings.source, compile=False)
    except Exception as error:  # a damaged file can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{settings.source} cannot be read: {reason}") from None
    if isinstance(model, diffusion.DiffusionModel) and not isinstance(
        model, models.LatentDiffusion
    ):
        model = model.denoiser
    networks = pytorch.networks_of(model)
    everything = "all" if len(networks) > 1 else next(iter(networks))
    part = settings.part or everything
    if part not in (*networks, everything):
        raise UsageError(
            f"--part must be {' or '.join(networks)}, the part that {settings.source} holds; "
            f"received {part}."
        )
    print(f"Read the {_title(part)} from {settings.source}")
    tensors, parameters = pytorch.write_checkpoint(
        networks.get(part, model),
        settings.target,
        naming=settings.naming,
        prefix=settings.prefix,
        overwrite=settings.overwrite,
    )
    print(f"Converted {tensors:,} tensors with {parameters:,} parameters")
