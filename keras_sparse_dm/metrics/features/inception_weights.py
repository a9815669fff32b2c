"""Weights of an Inception network: reading them, their names, batch norms folded in."""

from collections.abc import Mapping

import numpy as np

from keras_sparse_dm.convert.tensor_files import read_tensors
from keras_sparse_dm.metrics.features.inception_network import FIRST_CONVOLUTION, KINDS

EPSILON = 1e-3
# Number of problems of each kind that an error names.
_NAMED = 4


def load_network(path, kind):
    """Read the tensors of an Inception network and check their names and shapes.

    Args:
        path: Path of a file, or `{tensor name: array}`.
        kind: A key of `KINDS`, or None to recognize the network by its tensors.

    Returns:
        `(kind, {tensor name: tensor})`, with torchvision's names.

    Raises:
        ValueError: if the tensors are not those of the network.
    """
    if isinstance(path, Mapping):
        source, tensors = "`path`", dict(path)
    else:
        source = f"`path` {path}"
        try:
            tensors = read_tensors(path)
        except ValueError as error:
            raise ValueError(str(error).replace("`source`", "`path`")) from None
    tensors = _plain_names(tensors, source)
    if kind is None:
        shape = tuple(tensors[f"{FIRST_CONVOLUTION}.conv.weight"].shape)
        kind = "quickdraw" if len(shape) == 4 and shape[1] == 1 else "fid"
    expected = KINDS[kind].shapes()
    found = {name: tensors[name] for name in expected if name in tensors}
    problems = {
        "with the wrong shape": [
            f"{name} {tuple(tensor.shape)}, not {expected[name]}"
            for name, tensor in found.items()
            if tuple(tensor.shape) != expected[name]
        ],
        # The classifier comes after the features, and some files lack it.
        "missing": [name for name in expected if name not in found and name != "fc.weight"],
        "unknown": [
            name
            for name in tensors
            if name not in expected
            and name != "fc.bias"
            and not name.endswith(".num_batches_tracked")
            and not name.startswith(KINDS[kind].ignored)
        ],
    }
    problems = [
        f"{title}: {', '.join(names[:_NAMED])}"
        + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for title, names in problems.items()
        if names
    ]
    if problems:
        raise ValueError(
            f"{source} must hold the {kind!r} Inception network and nothing else. Tensors "
            f"{'; '.join(problems)}. {KINDS[kind].sources}."
        )
    return kind, found


def _plain_names(tensors, source):
    """Return the tensors under torchvision's names, without the prefix of a wrapping module."""
    for first, rename in (
        (f"{FIRST_CONVOLUTION}.conv.weight", lambda name: name),
        ("blocks.0.0.conv.weight", _name_of_wrapped),
    ):
        prefixes = [name.removesuffix(first) for name in tensors if name.endswith(first)]
        if prefixes:
            prefix = min(prefixes, key=len)
            return {rename(name.removeprefix(prefix)): t for name, t in tensors.items()}
    raise ValueError(
        f"{source} must hold an Inception network, with a tensor "
        f"{FIRST_CONVOLUTION}.conv.weight; it holds "
        f"{', '.join(list(tensors)[:_NAMED]) or 'nothing'}."
    )


# pytorch-fid groups the parts in blocks, each of which ends at a tap.
_WRAPPED = (
    (FIRST_CONVOLUTION, "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    ("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    tuple(f"Mixed_{part}" for part in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e")),
    ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)


def _name_of_wrapped(name):
    for block, parts in enumerate(_WRAPPED):
        for number, part in enumerate(parts):
            beginning = f"blocks.{block}.{number}."
            if name.startswith(beginning):
                return f"{part}.{name.removeprefix(beginning)}"
    return name


def fold_batch_norms(tensors):
    """Return `{name: (kernel, bias)}` of the convolutions, with their batch norms folded in."""
    weights = {}
    for name in tensors:
        name, is_convolution, _ = name.partition(".conv.weight")
        if not is_convolution:
            continue
        kernel, gamma, beta, mean, variance = (
            tensors[f"{name}.{part}"].astype("float64")
            for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        scale = gamma / np.sqrt(variance + EPSILON)
        # PyTorch stores (out, in, height, width), Keras (height, width, in, out).
        kernel = kernel.transpose(2, 3, 1, 0) * scale
        bias = beta - mean * scale
        weights[name] = kernel.astype("float32"), bias.astype("float32")
    return weights
