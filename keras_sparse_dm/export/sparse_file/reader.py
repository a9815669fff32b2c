"""`load_sparse` and `read_header`: reading of sparse checkpoints."""

import math
from pathlib import Path

import keras
import ml_dtypes  # noqa: F401  # adds bfloat16 to NumPy
import numpy as np
import safetensors

from keras_sparse_dm._keras import object_sharing_scope
from keras_sparse_dm.export.sparse_file import version_1
from keras_sparse_dm.export.sparse_file.format import (
    Damaged,
    checksum,
    from_bit_planes,
    read_content,
)
from keras_sparse_dm.export.sparse_file.layer_state import Stored, layer_arrays, seeds
from keras_sparse_dm.export.sparse_file.matching import check_names, match, path_of
from keras_sparse_dm.export.sparse_file.optimizer_state import load_optimizers, optimizer_variables
from keras_sparse_dm.masks.encoding import decode_mask


def load_sparse(path):
    """Load a model that `save_sparse` saved.

    Keras rebuilds the model from its configuration in safe mode: no code from the file runs. Your
    own classes must be registered with Keras or in a `keras.saving.custom_object_scope`, as for
    `keras.models.load_model`. A model that was saved with its optimizer is compiled, and continues
    training where it stopped.

    Args:
        path: The file.

    Returns:
        The `keras.Model`, with the file's weights, which may be rounded.

    Raises:
        ValueError: for a file that does not exist, is not from `save_sparse`, is damaged (every
            byte is checked) or has a newer version of the format; or if the model cannot be
            rebuilt here.
    """
    path = Path(path)
    content = read_content(path)
    arrays = _Arrays(path, content)
    try:
        model = _rebuild(content["config"])
    except Exception as error:  # the user's classes can raise anything
        raise ValueError(
            f"The model in {path} cannot be rebuilt here: {_reason(error)}. If it has classes "
            "of your own, import the module that registers them, or load it within "
            f"`keras.saving.custom_object_scope`. {_written_by(content)}"
        ) from error
    with arrays:
        try:
            load = version_1.load if content["format_version"] == 1 else _load
            load(model, content, arrays)
        except Damaged:
            raise
        except Exception as error:  # the user's layers can raise anything
            raise ValueError(
                f"The weights in {path} do not fit the model that its configuration makes here: "
                f"{_reason(error)}. {_written_by(content)}"
            ) from error
        arrays.check_all_read()
    return model


def read_header(path):
    """Read the header of a file of `save_sparse`, without the tensors.

    Args:
        path: The file.

    Returns:
        Dictionary of `"format_version"`, `"config"` (of the model), `"metadata"`, `"dtype"`,
        `"optimizer"`, `"versions"` and `"arrays"`. An array has `"shape"`, `"dtype"` in the
        model, `"encoding"`, `"bytes"` in the file, and for a kernel that is stored sparse
        `"active"`, its number of active weights.

    Raises:
        ValueError: as `load_sparse`, but not for damaged tensors, which are not read.
    """
    content = read_content(Path(path))
    sizes = content["tensor_bytes"]
    arrays = {
        name: facts | {"bytes": sizes.get(name, 0) + sizes.get(f"{name}:mask", 0)}
        for name, facts in content["arrays"].items()
    }
    names = ("format_version", "config", "metadata", "dtype", "optimizer", "versions")
    return {name: content[name] for name in names} | {"arrays": arrays}


class _Arrays:
    """Arrays of an open file; reads, checks and decodes an array when it is accessed."""

    def __init__(self, path, content):
        self._path = path
        self._arrays = content["arrays"]
        self._checksums = content["checksums"]
        self._unread = set(self._checksums)

    def __enter__(self):
        try:
            # The pages of a mapped file would stay in memory.
            self._file = safetensors.safe_open(self._path, framework="numpy", backend="pread")
        except safetensors.SafetensorError as error:
            raise Damaged(self._path, str(error)) from None
        self._file.__enter__()
        return self

    def __exit__(self, *exception):
        self._file.__exit__(*exception)

    def __getitem__(self, name):
        facts = self._arrays[name]
        shape, dtype, encoding = tuple(facts["shape"]), facts["dtype"], facts["encoding"]
        if encoding == "mask_of":
            return self._mask(facts["kernel"]).reshape(shape)
        stored = self._tensor(name)
        if encoding == "dense":
            return stored.astype(dtype, copy=False).reshape(shape)
        if encoding == "bits":
            return from_bit_planes(stored, facts["planes"], shape).astype(dtype)
        mask = self._mask(facts.get("kernel", name))
        array = np.zeros(math.prod(shape), dtype)
        array[mask] = stored
        return array.reshape(shape)

    def facts(self, name):
        """Return the shape, type and encoding of an array."""
        return self._arrays[name]

    def path(self, name):
        """Return the path of an array's variable."""
        return self._arrays[name].get("path", name)

    def check_all_read(self):
        """Check the tensors that nothing has read."""
        for name in list(self._unread):
            self._tensor(name)

    def _mask(self, name):
        facts = self._arrays[name]
        size = math.prod(facts["shape"])
        if facts["encoding"] == "dense":
            return np.ones(size, "bool")
        data = self._tensor(f"{name}:mask")
        return decode_mask(data, facts["encoding"], size, facts["active"])

    def _tensor(self, name):
        array = np.asarray(self._file.get_tensor(name), order="C")
        if name in self._unread:
            if checksum(array.reshape(-1).view("uint8")) != self._checksums[name]:
                raise Damaged(self._path, f"{name} has changed")
            self._unread.remove(name)
        return array


def _load(model, content, arrays):
    names = {}
    for record, layer in match(content["layers"], model):
        try:
            names |= _load_layer(layer, record["arrays"], arrays)
        except Damaged:
            raise
        except Exception as error:  # the user's layers can raise anything
            raise ValueError(f"layer {path_of(layer)!r}: {_reason(error)}") from error
    trained = [v for v in model.trainable_variables if id(v) in names]
    paths = {arrays.path(names[id(v)]): v.path for v in trained}
    # Keras's files read a slash as a group, so optimizers may write another sign in their keys.
    paths |= {path.replace("/", "|"): here.replace("/", "|") for path, here in paths.items()}

    def rename(key):
        """Return an optimizer's key with a trained variable's path here."""
        path = max((path for path in paths if path in key), key=len, default="")
        return key.replace(path, paths[path]) if path else key

    load_optimizers(
        model,
        content["optimizers"],
        arrays,
        lambda optimizer: optimizer_variables(optimizer, names),
        rename,
    )


def _load_layer(layer, names, arrays):
    """Load a layer without its sublayers.

    Args:
        layer: The layer.
        names: `{key: name of the array}`.
        arrays: The file's arrays.

    Returns:
        `{id of a variable: name of its array}`.
    """
    here = layer_arrays(layer)
    variables = {
        key: v for key, v in here.items() if key in names and isinstance(v, keras.Variable)
    }
    check_names([(arrays.path(names[key]), v.path) for key, v in variables.items()])
    for key, variable in variables.items():
        shape, stored = tuple(variable.shape), tuple(arrays.facts(names[key])["shape"])
        if shape != stored:
            raise ValueError(f"{variable.name!r} has shape {shape}, in the file {stored}")
    states = seeds(layer)
    rest = {key: name for key, name in names.items() if not key.startswith("seed:")}
    if states.keys() != names.keys() - rest.keys():
        raise ValueError("it has other random generators than in the file")
    for key, state in states.items():
        state.assign(arrays[names[key]])
    if rest:
        layer.load_own_variables(Stored(rest, arrays))
    return {id(variable): names[key] for key, variable in variables.items()}


def _rebuild(config):
    with object_sharing_scope():
        return keras.saving.deserialize_keras_object(config, safe_mode=True)


def _written_by(content):
    versions = " and ".join(f"{name} {number}" for name, number in content["versions"].items())
    return f"It was saved by {versions}; this is Keras {keras.__version__}."


def _reason(error):
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.split(". ")[0].rstrip(".:")
