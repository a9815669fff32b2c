"""Sparse checkpoints: one safetensors file that holds only what is not pruned.

The format, version 1. The file is a safetensors file, which any reader of that format opens. Its
header's `__metadata__` holds strings:

- `header_checksum`: of the file's first 8 bytes and the header, in which these 32 digits are `0`.
  Its place, and this rule, are the same in all versions.
- `format`: `keras_sparse_dm.sparse`; `format_version`: `1`.
- `content`: JSON of an object with
    - `config`: the model's configuration, as Keras serializes it; `metadata`: what the caller gave;
      `dtype`, `optimizer`: as of `save_sparse`; `versions`: of the packages that wrote the file
    - `checksums`: `{tensor: checksum of its bytes}`
    - `arrays`: `{name: how this array is stored}`, see below
    - `layers`: which array goes where: for each layer that has any, its `position` among the
      model's layers, its `name`, and `{key of the layer's own saving: name of the array}`
    - `optimizers`: the same for the optimizer and those that it wraps

A checksum is BLAKE2b of 16 bytes, in hexadecimal digits. An array has its `shape` and `dtype` in
the model, and one of these encodings, in C order:

- `dense`: the tensor of its name is the array.
- `bitmask`, `elias_fano`: of a sparse kernel. The tensor of its name holds the values of the
  `active` weights, one after the other, and `<name>:mask` says which these are: by one bit for
  each weight, or by their numbers in Elias-Fano code (`keras_sparse_dm.export.mask_encoding`),
  whichever is smaller. An active weight may be zero.
- `as_kernel`: of an optimizer's state of a sparse kernel, zero where that is pruned: values at the
  active weights of `kernel`.
- `bits`: of booleans and small numbers. The tensor of its name holds `planes` masks of one bit per
  element, the lowest bit of all elements first.
- `mask_of`: the mask of the array `kernel`; has no tensor.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

from keras_sparse_dm.export.averages import averages_of
from keras_sparse_dm.export.mask_encoding import (
    bitmask_bytes,
    decode_mask,
    encode_mask,
    smallest_encoding,
)
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.sparsity.masking import build_optimizer, masked_kernels
from keras_sparse_dm.sparsity.optimizer import SparseOptimizer

FORMAT = "keras_sparse_dm.sparse"
FORMAT_VERSION = 1
DTYPES = ("float32", "float16", "bfloat16")
# What is below is rounded to 65504, the largest number.
_FLOAT16_OVERFLOWS = 65520
_NO_CHECKSUM = "0" * 32
_HEADER_BEGINS = b'{"__metadata__":{"header_checksum":"'
# As safetensors itself has it.
_LONGEST_HEADER = 100_000_000
_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def save_sparse(model, path, dtype="float32", optimizer=False, metadata=None):
    """Saves any Keras model to one file, of its sparse kernels only the active weights.

    Everything that the model needs is in it: configuration, weights, masks, what the masks were
    asked to be, and the state of random generators. A sparse kernel (any that has a mask, full
    or not) takes its active weights and, where it is pruned, at most one bit per weight besides:
    `(1 - S) 4 + 1/8` bytes per weight of a kernel of sparsity S in float32. All else is stored as
    it is. The file is a safetensors file; the module's docstring describes it.

    Where the model's optimizer keeps averaged (EMA) weights, these are saved, as `generate` uses
    them; with `optimizer=True` both they and the weights as they are.

    Args:
        model: A built `keras.Model`, sparse or not.
        path: The file; one that exists is replaced once the new one is whole.
        dtype: Type of the sparse kernels' values in the file, pruned kernels and those with full
            masks alike: `"float32"`, `"float16"` (3 digits, to 65504) or `"bfloat16"` (2 digits,
            any size). What is stored in fewer bits than in the model is rounded.
        optimizer: Whether to save the optimizer's state and compiled configuration too, so that
            training goes on, bit for bit, where it stopped. Needs `"float32"`.
        metadata: Dictionary of what JSON can hold, for `read_header`.

    Returns:
        The file's `pathlib.Path`.

    Raises:
        ValueError: for a model that is not built, an unknown dtype, one below float32 for a model
            without sparse kernels or with the optimizer, weights that are too large for it,
            metadata that is no JSON, an optimizer asked for that the model does not have, pruned
            weights that are not zero, or a layer that keeps files of its own.
        OSError: if the file cannot be written; nothing partial is left.

    Example:

    >>> save_sparse(model, "model.sparse", dtype="float16")
    >>> model = load_sparse("model.sparse")
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {DTYPES}; received {dtype!r}.")
    if not model.built:
        raise ValueError(f"`model` {model.name!r} must be built: call it on a batch first.")
    if optimizer and getattr(model, "optimizer", None) is None:
        raise ValueError(
            f"`optimizer` must be False for model {model.name!r}, which is not compiled and has "
            "none."
        )
    if optimizer and dtype != "float32":
        raise ValueError(
            "`dtype` must be 'float32' with `optimizer=True`: training could not go on from "
            f"rounded weights; received {dtype!r}."
        )
    try:
        metadata = json.loads(json.dumps(metadata or {}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`metadata` must be what JSON can hold: {error}.") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"`metadata` must be a dictionary; received {metadata!r}.")
    kernels = masked_kernels(model)
    if dtype != "float32" and not kernels:
        raise ValueError(
            f"`dtype` {dtype!r} is that of sparse kernels, and model {model.name!r} has none: call "
            "`keras_sparse_dm.sparsify(model, sparsity)`, with sparsity 0 to keep all weights."
        )
    if optimizer:
        build_optimizer(model)
    plan = _Plan(kernels, dtype, {} if optimizer else averages_of(model))
    plan.add_layers(model)
    if optimizer:
        plan.add_optimizers(model.optimizer)
    content = {
        "config": _configuration(model, compiled=optimizer),
        "metadata": metadata,
        "dtype": dtype,
        "optimizer": optimizer,
        "versions": {name: version(name) for name in ("keras_sparse_dm", "keras")},
        "arrays": plan.arrays,
        "layers": plan.layers,
        "optimizers": plan.optimizers,
    }
    path = Path(path)
    with whole_file(path) as temporary:
        _write(temporary, content, plan.tensors)
    return path


def load_sparse(path):
    """Loads a model that `save_sparse` saved.

    The model is rebuilt from its configuration as Keras does it in safe mode: no code from the
    file is run. Classes of your own must be registered with Keras or in a
    `keras.saving.custom_object_scope`, as for `keras.models.load_model`. A model that was saved
    with its optimizer is compiled, and trains on.

    Args:
        path: The file.

    Returns:
        The `keras.Model`. Weights that were rounded are those of the file.

    Raises:
        ValueError: for a file that does not exist, is none of `save_sparse`, is damaged (every
            byte is checked), or of a newer version of the format; or if its model cannot be
            rebuilt here.
    """
    path = Path(path)
    content = _read_content(path)
    arrays = _Arrays(path, content)
    try:
        model = _rebuild(content["config"])
    except Exception as error:  # what a configuration needs may be missing in any way
        raise ValueError(
            f"The model in {path} cannot be rebuilt here: {_first_line(error)}. If it has classes "
            "of your own, import the module that registers them, or load it within "
            f"`keras.saving.custom_object_scope`. {_written_by(content)}"
        ) from error
    with arrays:
        try:
            _load_layers(model, content["layers"], arrays)
            _load_optimizers(model, content["optimizers"], arrays)
        except _Damaged:
            raise
        except Exception as error:  # layers of any kind load for themselves
            raise ValueError(
                f"The weights in {path} do not fit the model that its configuration makes here: "
                f"{_first_line(error)}. {_written_by(content)}"
            ) from error
        arrays.check_all_read()
    return model


def read_header(path):
    """Reads what a file of `save_sparse` says of itself, without the tensors.

    Args:
        path: The file.

    Returns:
        Dictionary of `"format_version"`, `"config"` (of the model), `"metadata"`, `"dtype"`,
        `"optimizer"`, `"versions"`, and `"arrays"`: for each name `"shape"`, `"dtype"` in the
        model, `"encoding"`, `"bytes"` in the file, and of a kernel that is stored sparse
        `"active"`, its number of active weights.

    Raises:
        ValueError: as `load_sparse`, but for damage of the tensors, which are not read.
    """
    content = _read_content(Path(path))
    sizes = content["tensor_bytes"]
    arrays = {
        name: facts | {"bytes": sizes.get(name, 0) + sizes.get(f"{name}:mask", 0)}
        for name, facts in content["arrays"].items()
    }
    names = ("format_version", "config", "metadata", "dtype", "optimizer", "versions")
    return {name: content[name] for name in names} | {"arrays": arrays}


class _Plan:
    """What is to be written: how each array is stored, and tensors whose data are read later.

    Attributes:
        arrays: `{name: facts}` as in the file.
        layers, optimizers: As in the file.
        tensors: `{name: (dtype, shape, function that returns the data)}`.
    """

    def __init__(self, kernels, dtype, averages):
        self.arrays, self.tensors = {}, {}
        self.layers, self.optimizers = [], []
        self._dtype = dtype
        self._averages = averages
        self._kernels = {id(k.kernel): k for k in kernels}
        self._masks = {id(k.mask): k.kernel for k in kernels}
        # By the identity of the variable.
        self._names = {}
        self._state = {}

    def add_layers(self, model):
        for position, layer in enumerate(model._flatten_layers()):
            if hasattr(layer, "save_assets"):
                raise ValueError(
                    f"Layer {layer.name!r} ({type(layer).__name__}) keeps files of its own, which "
                    "this format does not hold: use `model.save`."
                )
            stored = {}
            layer.save_own_variables(stored)
            # Keras leaves these out, but what they draw next is part of where training stands.
            stored |= {f"seed_{i}": g.state for i, g in enumerate(layer._seed_generators)}
            if stored:
                self.layers.append(
                    {
                        "position": position,
                        "name": layer.name,
                        "arrays": {k: self._add(v, layer.name, k) for k, v in stored.items()},
                    }
                )

    def add_optimizers(self, optimizer):
        for one in _chain(optimizer):
            self._state |= _state_of_kernels(one, self._kernels)
        for one in _chain(optimizer):
            stored = _optimizer_arrays(one)
            self.optimizers.append(
                {
                    "name": one.name,
                    "arrays": {k: self._add(v, one.name, k) for k, v in stored.items()},
                }
            )

    def _add(self, value, owner, key):
        """Plans one array, a variable only once, and returns its name."""
        variable = isinstance(value, keras.Variable)
        if variable and id(value) in self._names:
            return self._names[id(value)]
        name = self._unused(value.path if variable else f"{owner}/{key}")
        if variable:
            self._names[id(value)] = name
        if not variable:
            value = keras.ops.convert_to_numpy(value)
        if variable and id(value) in self._kernels:
            self._add_kernel(name, self._kernels[id(value)])
        elif variable and id(value) in self._masks:
            kernel = self._masks[id(value)]
            if id(kernel) not in self._names:
                self._add(kernel, owner, "kernel")
            self._describe(name, value, "mask_of", kernel=self._names[id(kernel)])
        elif variable and id(value) in self._state:
            self._add_state(name, value, self._state[id(value)])
        else:
            self._add_plain(name, self._averages.get(id(value), value), value)
        return name

    def _unused(self, path):
        name, number = path, 0
        while name in self.arrays:
            number += 1
            name = f"{path}_{number}"
        return name

    def _describe(self, name, value, encoding, **facts):
        dtype = keras.backend.standardize_dtype(value.dtype)
        self.arrays[name] = {
            "shape": list(value.shape),
            "dtype": dtype,
            "encoding": encoding,
            **facts,
        }

    def _add_kernel(self, name, k):
        source = self._averages.get(id(k.kernel), k.kernel)
        values, mask = _numpy(source), _numpy(k.mask)
        ones = int(np.count_nonzero(mask))
        if np.any(values[~mask]):
            raise ValueError(
                f"Pruned weights of {k.name} are not zero: something else than sparse training has "
                "written to the kernel. See `keras_sparse_dm.sparsity.check_invariant`."
            )
        dtype = keras.backend.standardize_dtype(k.kernel.dtype)
        # Never in more bits than the model has, nor in fewer where nothing was asked.
        half = np.dtype(dtype).itemsize <= 2
        stored = dtype if half or self._dtype == "float32" else self._dtype
        largest = np.max(np.abs(values), initial=0)
        if stored == "float16" and _FLOAT16_OVERFLOWS <= largest < np.inf:
            raise ValueError(
                f"`dtype` float16 cannot hold the weights of {k.name}, up to {largest:.3g}: use "
                "'bfloat16'."
            )
        if ones == k.size:
            self._describe(name, k.kernel, "dense")
            self._add_tensor(name, stored, values.shape, lambda: _numpy(source).astype(stored))
            return
        encoding, length = smallest_encoding(k.size, ones)
        self._describe(name, k.kernel, encoding, active=ones)
        self._add_tensor(
            name, stored, (ones,), lambda: _numpy(source)[_numpy(k.mask)].astype(stored)
        )
        self._add_tensor(
            f"{name}:mask", "uint8", (length,), lambda: encode_mask(_numpy(k.mask), encoding)
        )

    def _add_state(self, name, variable, k):
        mask = _numpy(k.mask)
        if mask.all() or np.any(_numpy(variable)[~mask]):
            self._add_plain(name, variable, variable)
            return
        self._describe(name, variable, "as_kernel", kernel=self._names[id(k.kernel)])
        dtype = keras.backend.standardize_dtype(variable.dtype)
        ones = int(np.count_nonzero(mask))
        self._add_tensor(name, dtype, (ones,), lambda: _numpy(variable)[_numpy(k.mask)])

    def _add_plain(self, name, source, described):
        dtype = keras.backend.standardize_dtype(described.dtype)
        if dtype not in _TYPES:
            raise ValueError(f"{name} is of type {dtype}, which this format does not hold.")
        size = math.prod(described.shape)
        if dtype in ("bool", "uint8"):
            planes = int(np.max(_numpy(source), initial=0)).bit_length()
            length = planes * bitmask_bytes(size)
            if length < size:
                self._describe(name, described, "bits", planes=planes)
                self._add_tensor(
                    name, "uint8", (length,), lambda: _bit_planes(_numpy(source), planes)
                )
                return
        self._describe(name, described, "dense")
        self._add_tensor(name, dtype, tuple(described.shape), lambda: _numpy(source))

    def _add_tensor(self, name, dtype, shape, data):
        self.tensors[name] = (dtype, tuple(shape), data)


def _write(path, content, tensors):
    """Writes a file tensor by tensor, and its header at the end, in the place left for it."""
    import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 once this is imported

    # Those of large elements first, so that all are aligned.
    names = sorted(tensors, key=lambda name: -np.dtype(tensors[name][0]).itemsize)
    entries, end = {}, 0
    for name in names:
        dtype, shape, _ = tensors[name]
        begin, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        entries[name] = {
            "dtype": _TYPES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    checksums = dict.fromkeys(names, _NO_CHECKSUM)
    length = len(_header(content, checksums, entries))
    with open(path, "wb") as file:
        file.seek(8 + length)
        for name in names:
            dtype, shape, data = tensors[name]
            array = np.asarray(data(), order="C")
            if (array.dtype, array.shape) != (np.dtype(dtype), shape):
                raise ValueError(f"{name} has changed while the model was being saved.")
            data = array.reshape(-1).view("uint8")
            checksums[name] = _checksum(data)
            file.write(data)
        header = _header(content, checksums, entries)
        beginning = len(header).to_bytes(8, "little")
        file.seek(0)
        file.write(beginning + _with_checksum(header, _checksum(beginning, header)))


def _header(content, checksums, entries):
    """The header's bytes, with zeros in place of its own checksum."""
    metadata = {
        "header_checksum": _NO_CHECKSUM,
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "content": _json(content | {"checksums": checksums}),
    }
    header = _json({"__metadata__": metadata} | entries).encode()
    return header + b" " * (-len(header) % 8)


def _json(value):
    return json.dumps(value, separators=(",", ":"))


def _with_checksum(header, checksum):
    begin = len(_HEADER_BEGINS)
    return header[:begin] + checksum.encode() + header[begin + len(checksum) :]


def _checksum(*parts):
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


class _Damaged(ValueError):
    """A file whose bytes are not those that were written."""

    def __init__(self, path, what):
        super().__init__(
            f"{path} is damaged ({what}): copy it again from where it came from, or save the "
            "model again."
        )


def _read_content(path):
    """Reads and checks the header; returns its content, with `tensor_bytes` and the version."""
    if not path.is_file():
        raise ValueError(f"`path` must be an existing file; received {path}.")
    size = path.stat().st_size
    with open(path, "rb") as file:
        beginning = file.read(8)
        length = int.from_bytes(beginning, "little")
        if len(beginning) < 8 or not 2 <= length <= _LONGEST_HEADER:
            raise _not_a_container(path)
        header = file.read(length)
    if len(header) < length:
        if header.startswith(_HEADER_BEGINS):
            raise _Damaged(path, "it ends within its header")
        raise _not_a_container(path)
    ours = header.startswith(_HEADER_BEGINS)
    begin = len(_HEADER_BEGINS)
    stated = header[begin : begin + len(_NO_CHECKSUM)]
    if ours and _checksum(beginning, _with_checksum(header, _NO_CHECKSUM)).encode() != stated:
        raise _Damaged(path, "its header has changed")
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", {})
        found = metadata.get("format") == FORMAT
    except (AttributeError, UnicodeDecodeError, ValueError):
        found = False
    if not ours or not found:
        raise _not_a_container(path)
    # From here on all is as it was written.
    number = int(metadata["format_version"])
    if number > FORMAT_VERSION:
        raise ValueError(
            f"{path} is of version {number} of the format, and this keras_sparse_dm reads up to "
            f"version {FORMAT_VERSION}: upgrade it (pip install --upgrade keras_sparse_dm)."
        )
    content = json.loads(metadata["content"])
    offsets = {name: entry["data_offsets"] for name, entry in entries.items()}
    end = 8 + length + max((end for _, end in offsets.values()), default=0)
    if size != end:
        raise _Damaged(path, f"it has {size} bytes and must have {end}")
    content["tensor_bytes"] = {name: end - begin for name, (begin, end) in offsets.items()}
    content["format_version"] = number
    return content


def _not_a_container(path):
    return ValueError(
        f"{path} is no file of `keras_sparse_dm.export.save_sparse`, or its beginning is damaged. "
        "Files of `model.save` are read by `keras.models.load_model`, those of other programs "
        "by `keras_sparse_dm.convert.load_pytorch`."
    )


class _Arrays:
    """The arrays of an open file, each read, checked and decoded when it is used."""

    def __init__(self, path, content):
        self._path = path
        self._arrays = content["arrays"]
        self._checksums = content["checksums"]
        self._unread = set(self._checksums)

    def __enter__(self):
        import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 once this is imported
        import safetensors

        try:
            # Not mapped: what is read of a mapped file would stay in memory.
            self._file = safetensors.safe_open(self._path, framework="numpy", backend="pread")
        except safetensors.SafetensorError as error:
            raise _Damaged(self._path, str(error)) from None
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
            return _from_bit_planes(stored, facts["planes"], shape).astype(dtype)
        mask = self._mask(facts.get("kernel", name))
        array = np.zeros(math.prod(shape), dtype)
        array[mask] = stored
        return array.reshape(shape)

    def check_all_read(self):
        """Checks tensors that nothing has asked for."""
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
            if _checksum(array.reshape(-1).view("uint8")) != self._checksums[name]:
                raise _Damaged(self._path, f"{name} has changed")
            self._unread.remove(name)
        return array


class _Stored(Mapping):
    """What a layer or an optimizer has saved, as it reads it back."""

    def __init__(self, names, arrays):
        self._names = names
        self._arrays = arrays

    def __getitem__(self, key):
        return self._arrays[self._names[key]]

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)


def _load_layers(model, stored, arrays):
    layers = list(model._flatten_layers())
    for record in stored:
        position, names = record["position"], dict(record["arrays"])
        if position >= len(layers):
            raise ValueError(f"layer {record['name']!r} is missing")
        layer = layers[position]
        for i, generator in enumerate(layer._seed_generators):
            generator.state.assign(arrays[names.pop(f"seed_{i}")])
        if names:
            layer.load_own_variables(_Stored(names, arrays))
    filled = {record["position"] for record in stored}
    empty = [
        layer.name
        for position, layer in enumerate(layers)
        if position not in filled and layer._trainable_variables + layer._non_trainable_variables
    ]
    if empty:
        raise ValueError(f"there is nothing for layer {empty[0]!r}")


def _load_optimizers(model, stored, arrays):
    if not stored:
        return
    build_optimizer(model)
    chain = list(_chain(getattr(model, "optimizer", None)))
    if len(chain) != len(stored):
        raise ValueError(f"the model has {len(chain)} optimizers instead of {len(stored)}")
    for optimizer, record in zip(chain, stored, strict=True):
        values = _Stored(record["arrays"], arrays)
        if _saves_otherwise(optimizer):
            optimizer.load_own_variables(values)
            continue
        variables = _optimizer_arrays(optimizer)
        if set(variables) != set(values):
            raise ValueError(
                f"optimizer {optimizer.name!r} has {len(variables)} variables instead of "
                f"{len(values)}"
            )
        for key, variable in variables.items():
            variable.assign(values[key])


def _chain(optimizer):
    """Yields an optimizer and those that it wraps, from the outermost in."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def _optimizer_arrays(optimizer):
    """Returns `{key: variable or array}` of an optimizer without those that it wraps."""
    if isinstance(optimizer, SparseOptimizer):
        variables = optimizer._own_variables()
    elif _saves_otherwise(optimizer):
        stored = {}
        optimizer.save_own_variables(stored)
        return stored
    else:
        inner = getattr(optimizer, "inner_optimizer", None)
        wrapped = {id(v) for v in inner.variables} if inner is not None else ()
        variables = [v for v in optimizer.variables if id(v) not in wrapped]
    # Not as Keras saves them: all would be copied at once.
    return {str(i): variable for i, variable in enumerate(variables)}


def _saves_otherwise(optimizer):
    """Whether an optimizer saves itself in a way of its own."""
    if isinstance(optimizer, SparseOptimizer):
        return False
    return type(optimizer).save_own_variables is not keras.optimizers.Optimizer.save_own_variables


def _state_of_kernels(optimizer, kernels):
    """Returns `{id of a variable of the optimizer: MaskedKernel whose state it is}`."""
    trained = getattr(optimizer, "_trainable_variables", None) or []
    found = {}
    for index, variable in enumerate(trained):
        k = kernels.get(id(variable))
        if k is None:
            continue
        # Keras keeps such state in lists parallel to the trainable variables.
        for value in vars(optimizer).values():
            if isinstance(value, list) and len(value) == len(trained):
                if getattr(value[index], "shape", None) == variable.shape:
                    found[id(value[index])] = k
    return found


def _configuration(model, compiled):
    # As `model.save` does, so that what two layers share is shared again. Not public in Keras.
    from keras.src.saving.serialization_lib import ObjectSharingScope

    with ObjectSharingScope():
        config = keras.saving.serialize_keras_object(model)
    if not compiled:
        config.pop("compile_config", None)
    return config


def _rebuild(config):
    from keras.src.saving.serialization_lib import ObjectSharingScope

    with ObjectSharingScope():
        return keras.saving.deserialize_keras_object(config, safe_mode=True)


def _written_by(content):
    versions = " and ".join(f"{name} {number}" for name, number in content["versions"].items())
    return f"It was saved by {versions}; this is Keras {keras.__version__}."


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def _numpy(value):
    return value if isinstance(value, np.ndarray) else keras.ops.convert_to_numpy(value)


def _bit_planes(array, planes):
    flat = array.ravel().astype("uint8")
    return np.concatenate(
        [np.zeros(0, "uint8")]
        + [np.packbits((flat >> plane) & 1, bitorder="little") for plane in range(planes)]
    )


def _from_bit_planes(data, planes, shape):
    size = math.prod(shape)
    array = np.zeros(size, "uint8")
    for plane, bits in enumerate(data.reshape(planes, bitmask_bytes(size))):
        array |= np.unpackbits(bits, count=size, bitorder="little") << plane
    return array.reshape(shape)
