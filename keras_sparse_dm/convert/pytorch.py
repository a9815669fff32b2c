"""`load_pytorch` and `save_pytorch`: conversion from PyTorch checkpoints, and back."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_sparse_dm._keras import flatten_layers
from keras_sparse_dm.checks import one_of
from keras_sparse_dm.convert import diffusers, original
from keras_sparse_dm.convert.architecture import arguments_from_shapes
from keras_sparse_dm.convert.plan import Slot, fill_plan, read_plan
from keras_sparse_dm.convert.spelling import (
    TITLES,
    Spelling,
    choose_spelling,
    may_be_left,
    published,
)
from keras_sparse_dm.convert.tensor_files import SAFETENSORS, read_tensors, write_tensors
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.models.autoencoder import VQAutoencoder
from keras_sparse_dm.models.chirodiff.denoiser import ChiroDiff
from keras_sparse_dm.models.latent_diffusion import LatentDiffusion
from keras_sparse_dm.models.unet import UNet

NAMINGS = ("original", "diffusers")
# Number of problems of each kind that an error names.
_NAMED = 4


def load_pytorch(model, source, ema=None):
    """Fill a model with the weights of a PyTorch checkpoint.

    The checkpoint must hold exactly the tensors of the model's networks; the model does not change
    before that is certain. Masks become full, because a converted checkpoint is dense. Tensors of
    any precision become float32.

    Args:
        model: A `UNet`, `VQAutoencoder`, `LatentDiffusion` or `ChiroDiff`.
        source: One of

            - the path of a `.ckpt`, `.pt`, `.pth` or `.bin` file (needs PyTorch, the `convert`
              extra; only tensors are read, no code in the file is ever run) or of a
              `.safetensors` file,
            - the path of a folder of the diffusers library: a pipeline's, with `unet/` and
              `vqvae/`, or that of one `UNet2DModel` or `VQModel`,
            - `{tensor name: array}`.

            Tensors have the names of the original programs (CompVis/latent-diffusion,
            dasayan05/chirodiff) or of diffusers, with or without the prefixes of published
            checkpoints. A network finds its part in a checkpoint of the whole model, which may
            also hold other networks, the noise schedule and the autoencoder's training losses. A
            `config.json` beside diffusers' tensors must describe the model. A `LatentDiffusion`
            also loads `scale_factor` if there is one.
        ema: True for the averaged copy of the U-Net (`model_ema.`), with which the original
            program samples; False for the weights without averaging; None for the latter, or the
            averaged copy if the checkpoint has only that.

    Raises:
        ValueError: for a model that has no conversion, and if names, shapes or `config.json` do not
            match the model; the message lists them.
        ImportError: if a package that reads the file is not installed.

    Example:

    >>> autoencoder = VQAutoencoder(channels=32, channel_mult=(1,), num_res_blocks=1, codes=16)
    >>> save_pytorch(autoencoder, "autoencoder.safetensors")
    >>> load_pytorch(autoencoder, "autoencoder.safetensors")
    """
    if ema not in (None, True, False):
        raise ValueError(f"`ema` must be True, False or None; received {ema!r}.")
    convert_into(model, read_source(source, networks_of(model)), ema)


def save_pytorch(model, path, naming="original", prefix=False, overwrite=False):
    """Write the weights of a model as a PyTorch checkpoint, which `load_pytorch` can read.

    Pruned weights are written as zeros, and masks are not written.

    Args:
        model: A `UNet`, `VQAutoencoder`, `LatentDiffusion` or `ChiroDiff`.
        path: For the original names, a `.ckpt`, `.pt`, `.pth` or `.bin` file, which will hold
            `{"state_dict": tensors}` (needs PyTorch, the `convert` extra), or a `.safetensors`
            file. For diffusers' names, a folder, in which a `LatentDiffusion` gets the folders
            `unet/` and `vqvae/`.
        naming: `"original"` or `"diffusers"`.
        prefix: Whether the original names get the prefix of a published checkpoint of the whole
            model. Those of a `LatentDiffusion` always get it.
        overwrite: Whether to replace existing files.

    Raises:
        ValueError: for a model that has no conversion, an unknown naming, another file name
            extension, or an existing file.
        ImportError: if a package that writes the file is not installed.

    Example:

    >>> unet = UNet(model_channels=32, channel_mult=(1,), num_res_blocks=1)
    >>> save_pytorch(unet, "unet.safetensors", prefix=True)
    >>> save_pytorch(unet, "ldm/unet", naming="diffusers")
    """
    write_checkpoint(model, path, naming, prefix, overwrite)


def write_checkpoint(model, path, naming="original", prefix=False, overwrite=False):
    """Write a checkpoint as `save_pytorch` does, and count its contents.

    Args:
        model, path, naming, prefix, overwrite: As in `save_pytorch`.

    Returns:
        `(tensors, parameters)`: numbers of tensors and of their values.
    """
    networks = networks_of(model)
    one_of("`naming`", naming, NAMINGS)
    write = {"original": _write_original, "diffusers": _write_diffusers}[naming]
    written = write(model, networks, Path(path), prefix, overwrite)
    return len(written), sum(tensor.size for tensor in written)


def _write_original(model, networks, path, prefix, overwrite):
    _check_free([path], overwrite)
    plan = {}
    for kind, network in networks.items():
        spelling = published(kind) if prefix or len(networks) > 1 else Spelling("original")
        plan |= spelling.plan(original.PLANS[kind](network))
    if isinstance(model, LatentDiffusion) and (model.scale_known > 0 or model.scale_factor != 1):
        plan[original.SCALE_FACTOR] = Slot(model.scale_factor)
    tensors = read_plan(plan)
    write_tensors(path, tensors)
    return [*tensors.values()]


def _write_diffusers(model, networks, path, prefix, overwrite):
    for kind in networks:
        if kind not in diffusers.PLANS:
            raise ValueError(f"`naming` must be 'original': diffusers has no {TITLES[kind]}.")
    if prefix:
        raise ValueError("`prefix` must be False: diffusers' names have none.")
    files = {}
    for kind in networks:
        folder = path / diffusers.FOLDERS[kind][0] if len(networks) > 1 else path
        weights_file = folder / f"{diffusers.WEIGHTS_NAME}{SAFETENSORS}"
        files[kind] = (folder / diffusers.CONFIG_FILE, weights_file)
    _check_free([file for pair in files.values() for file in pair], overwrite)
    written = []
    for kind, (config_file, weights_file) in files.items():
        config = {"_class_name": diffusers.CLASSES[kind]}
        config |= diffusers.config_of(kind, networks[kind])
        if kind == "autoencoder":
            # Diffusers' default is not 1.
            scale = model.scale_factor if isinstance(model, LatentDiffusion) else 1.0
            config["scaling_factor"] = float(scale)
        tensors = read_plan(diffusers.PLANS[kind](networks[kind]))
        weights_file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(weights_file, tensors)
        with whole_file(config_file) as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        written += tensors.values()
    return written


def _check_free(files, overwrite):
    taken = [file for file in files if file.exists()]
    if taken and not overwrite:
        raise ValueError(f"`path` {taken[0]} exists; pass overwrite=True to replace it.")


@dataclass(frozen=True)
class Source:
    """Contents of a checkpoint.

    Attributes:
        tensors: `{name: tensor}`; files are read when a tensor is used.
        configs: `{kind of network: contents of its config.json}`.
    """

    tensors: dict
    configs: dict


@dataclass(frozen=True)
class Conversion:
    """Report of a conversion.

    Attributes:
        tensors: Number of loaded tensors.
        parameters: Number of their values.
        spellings: `{kind of network: Spelling}`.
        left: Names of the tensors that belong to no weight of the model.
    """

    tensors: int
    parameters: int
    spellings: dict
    left: tuple


def networks_of(model):
    """Return the networks of a model: `{kind: network}`.

    Raises:
        ValueError: for a model that has no conversion.
    """
    if isinstance(model, LatentDiffusion):
        return {"unet": model.denoiser, "autoencoder": model.autoencoder}
    for kind, cls in (("unet", UNet), ("autoencoder", VQAutoencoder), ("chirodiff", ChiroDiff)):
        if isinstance(model, cls):
            return {kind: model}
    raise ValueError(
        "`model` must be a UNet, VQAutoencoder, LatentDiffusion or ChiroDiff; received a "
        f"{type(model).__name__}."
    )


def read_source(source, kinds=None):
    """Read the tensors and settings of networks.

    Args:
        source: As in `load_pytorch`.
        kinds: Kinds of networks to read from a folder; by default all that it holds.

    Returns:
        A `Source`.

    Raises:
        ValueError, ImportError: As in `load_pytorch`.
    """
    if isinstance(source, Mapping):
        for name in source:
            if not isinstance(name, str):
                raise ValueError(f"`source` must have names of tensors as keys; received {name!r}.")
        return Source(dict(source), {})
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            "`source` must be a path or a dictionary of tensors; received a "
            f"{type(source).__name__}."
        )
    path = Path(source)
    if path.is_dir() and "chirodiff" not in (kinds or ()):
        return _read_folder(path, kinds)
    config = _read_config(path.parent)
    described = [
        kind for kind, cls in diffusers.CLASSES.items() if config.get("_class_name") == cls
    ]
    return Source(read_tensors(path), dict.fromkeys(described, config))


def _read_folder(path, kinds):
    folders = _network_folders(path)
    if not folders or not set(kinds or ()) <= set(folders):
        wanted = " and a ".join(diffusers.CLASSES.get(k, k) for k in kinds or diffusers.CLASSES)
        there = " and a ".join(diffusers.CLASSES[kind] for kind in folders)
        raise ValueError(
            "`source` must be a file, or a folder of diffusers with the config.json of a "
            f"{wanted}; {path} has {f'that of a {there}' if there else 'none'}."
        )
    tensors, configs = {}, {}
    for kind in kinds or folders:
        folder = folders[kind]
        files = [folder / f"{diffusers.WEIGHTS_NAME}{suffix}" for suffix in (SAFETENSORS, ".bin")]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise ValueError(
                f"`source` must have {files[0].name} or {files[1].name} in {folder}; there is none."
            )
        configs[kind] = _read_config(folder)
        # Keeps the names of the two folders apart.
        prefix = diffusers.FOLDERS[kind][0]
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in read_tensors(file).items()}
        if "scaling_factor" in configs[kind]:
            tensors[original.SCALE_FACTOR] = np.asarray(configs[kind]["scaling_factor"])
    return Source(tensors, configs)


def _network_folders(path):
    """Find diffusers' networks in a folder or its subfolders: `{kind: folder}`."""
    folders = {}
    for kind, cls in diffusers.CLASSES.items():
        for folder in (path, *(path / name for name in diffusers.FOLDERS[kind])):
            if _read_config(folder).get("_class_name") == cls:
                folders.setdefault(kind, folder)
    return folders


def _read_config(folder):
    try:
        config = json.loads((folder / diffusers.CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def convert_into(model, source, ema=None):
    """Fill a model from a `Source` as `load_pytorch` does, all or nothing.

    Args:
        model, ema: As in `load_pytorch`.
        source: The `Source`.

    Returns:
        A `Conversion`.

    Raises:
        ValueError: if the source does not match the model.
    """
    networks = networks_of(model)
    tensors, spellings, plan, problems = source.tensors, {}, {}, []
    for kind, network in networks.items():
        plans = {"original": original.PLANS[kind](network)}
        if kind in diffusers.PLANS:
            plans["diffusers"] = diffusers.PLANS[kind](network)
        # Checkpoints of the whole model hold averaged weights of the U-Net only.
        wanted = ema if kind == "unet" or len(networks) == 1 else None
        spelling, network_plan = choose_spelling(kind, plans, tensors, wanted)
        spellings[kind] = spelling
        plan |= network_plan
        config = source.configs.get(kind, {}) if spelling.naming == "diffusers" else {}
        differences = diffusers.config_differences(kind, network, config) if config else []
        if differences:
            file = f"{diffusers.CONFIG_FILE} of the {TITLES[kind]}"
            problems.append(f"{file}: {', '.join(differences)}")
    scaled = isinstance(model, LatentDiffusion) and original.SCALE_FACTOR in tensors
    if scaled:
        plan[original.SCALE_FACTOR] = Slot(model.scale_factor)
    left = tuple(n for n in tensors if n not in plan and may_be_left(n, spellings))
    problems += _tensor_problems(plan, tensors, left)
    if problems:
        for kind, network in networks.items():
            problems[:0] = _other_structure(kind, network, spellings[kind], tensors)
        raise ValueError("`source` does not match the model: " + "; ".join(problems) + ".")

    fill_plan(plan, tensors)
    for layer in flatten_layers(model):
        for _, mask in getattr(layer, "masks", ()):
            mask.assign(np.ones(mask.shape, "bool"))
    if "autoencoder" in networks:
        # Further training must not restart the codes of a trained autoencoder.
        unused_steps = networks["autoencoder"].unused_steps
        unused_steps.assign(np.zeros(unused_steps.shape, "int32"))
    if scaled:
        model.scale_known.assign(1.0)
    parameters = sum(int(np.prod(slot.shape)) for slot in plan.values())
    return Conversion(len(plan), parameters, spellings, left)


def _other_structure(kind, network, spelling, tensors):
    """List the arguments of a network that differ from those that the tensors' shapes imply."""
    if spelling.naming == "averaged":
        return []
    own = spelling.own_names(tensors)
    shapes = {name: np.shape(tensors[stored]) for name, stored in own.items()}
    try:
        told = arguments_from_shapes(kind, spelling.naming, shapes)
    except ValueError:  # the caller lists missing tensors by name
        return []
    return [
        f"`{name}` of the {TITLES[kind]} is {value} there, the model's is {getattr(network, name)}"
        for name, value in told.items()
        if getattr(network, name) != value
    ]


def _tensor_problems(plan, tensors, left):
    left = set(left)
    missing = [f"{name} is missing" for name in plan if name not in tensors]
    unknown = [
        f"{name} has no place in the model"
        for name in tensors
        if name not in plan and name not in left
    ]
    misshaped = []
    for name, slot in plan.items():
        if name in tensors and tuple(np.shape(tensors[name])) != slot.shape:
            misshaped.append(
                f"{name} of shape {tuple(np.shape(tensors[name]))} must be of {slot.shape} to fit "
                f"{slot.variable.path} {tuple(slot.variable.shape)}"
            )
    problems = []
    for texts, what in (
        (missing, "are missing"),
        (unknown, "have no place"),
        (misshaped, "do not fit"),
    ):
        problems += texts[:_NAMED]
        if len(texts) > _NAMED:
            problems.append(f"{len(texts) - _NAMED} more {what}")
    return problems
