"""`load_pytorch`: fills a model with the tensors of an original PyTorch checkpoint."""

import os

import numpy as np

from keras_sparse_dm.models.chirodiff import ChiroDiff


def load_pytorch(model, source):
    """Fills a denoiser with the weights of the original PyTorch program.

    Every tensor of the network must be used and every weight filled; until then nothing in
    the model changes. Masks become full: a converted checkpoint is dense.

    Args:
        model: A `ChiroDiff`.
        source: `{tensor name: array}`, or the path of a `.ckpt`, `.pt`, `.pth` (read with
            `weights_only=True`; needs PyTorch, the `convert` extra) or `.safetensors` file.
            Names with or without the published checkpoint's prefix `scorefn.`; the Fourier
            frequencies are the tensor `pe_proj_W`.

    Raises:
        ValueError: for a model that has no conversion, and where names or shapes do not match
            the model; the message lists them.
        ImportError: where reading the file needs a package that is not installed.
    """
    if not isinstance(model, ChiroDiff):
        raise ValueError(f"`model` must be a ChiroDiff; received a {type(model).__name__}.")
    tensors = source if isinstance(source, dict) else _read(source)
    tensors = {name.removeprefix("scorefn."): np.asarray(t) for name, t in tensors.items()}
    plan = _chirodiff_plan(model)

    problems = [f"{name} is missing" for name in plan if name not in tensors]
    problems += [f"{name} has no place in the model" for name in tensors if name not in plan]
    values = {}
    for name, (variable, index, convert) in plan.items():
        if name not in tensors:
            continue
        expected = tuple(variable.shape) if index is None else tuple(variable.shape[1:])
        try:
            value = convert(tensors[name])
        except ValueError:  # not to be split into gates
            value = np.empty(0)
        if value.shape != expected:
            problems.append(
                f"{name} of shape {tensors[name].shape} does not fit {variable.path} {expected}"
            )
        values.setdefault(id(variable), (variable, {}))[1][index] = value
    if problems:
        raise ValueError("`source` does not match the model: " + "; ".join(problems) + ".")

    for variable, parts in values.values():
        whole = parts[None] if None in parts else np.stack([parts[i] for i in sorted(parts)])
        variable.assign(whole)
    for layer in model._flatten_layers():
        for _, mask in getattr(layer, "masks", ()):
            mask.assign(np.ones(mask.shape, "bool"))


def _chirodiff_plan(model):
    """`{tensor name: (variable, index along its first axis or None, conversion)}`."""
    plan = {"pe_proj_W": (model.time_frequencies, None, lambda w: w.reshape(-1))}
    for i, bidirectional in enumerate(model.recurrent):
        for suffix, layer in (
            ("", bidirectional.forward_layer),
            ("_reverse", bidirectional.backward_layer),
        ):
            prefix, cell = "model.rnn.", layer.cell
            plan[f"{prefix}weight_ih_l{i}{suffix}"] = (cell.kernel, None, _gru_matrix)
            plan[f"{prefix}weight_hh_l{i}{suffix}"] = (cell.recurrent_kernel, None, _gru_matrix)
            plan[f"{prefix}bias_ih_l{i}{suffix}"] = (cell.bias, 0, _gru_gates)
            plan[f"{prefix}bias_hh_l{i}{suffix}"] = (cell.bias, 1, _gru_gates)
    for name, layer in (
        ("model.out_proj", model.output_projection),
        ("final_proj.0", model.noise_projection),
    ):
        plan[f"{name}.weight"] = (layer.kernel, None, np.transpose)
        plan[f"{name}.bias"] = (layer.bias, None, np.asarray)
    return plan


def _gru_gates(tensor):
    # PyTorch stacks the gates as reset, update, new; Keras as update, reset, new.
    reset, update, new = np.split(tensor, 3)
    return np.concatenate([update, reset, new])


def _gru_matrix(tensor):
    return _gru_gates(tensor).T


def _read(path):
    if not os.path.isfile(path):
        raise ValueError(f"`source` must be a dictionary or an existing file; received {path!r}.")
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".safetensors":
        try:
            from safetensors.numpy import load_file
        except ImportError as error:
            raise ImportError("Reading .safetensors needs: pip install safetensors") from error
        return load_file(path)
    if suffix not in (".ckpt", ".pt", ".pth"):
        raise ValueError(f"`source` must end in .ckpt, .pt, .pth or .safetensors; got {path!r}.")
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "Reading PyTorch files needs PyTorch: pip install 'keras_sparse_dm[convert]'"
        ) from error
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    return {name: tensor.numpy() for name, tensor in state.items()}
