"""`save_sparse`: writing of sparse checkpoints."""

import json
import math
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

from keras_sparse_dm._keras import object_sharing_scope
from keras_sparse_dm.checks import one_of
from keras_sparse_dm.export.averages import averages_of
from keras_sparse_dm.export.sparse_file.format import TYPES, bit_planes, write
from keras_sparse_dm.export.sparse_file.layer_state import layer_arrays
from keras_sparse_dm.export.sparse_file.matching import path_of
from keras_sparse_dm.export.sparse_file.optimizer_state import (
    chain,
    optimizer_variables,
    saves_otherwise,
    states,
)
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.layers.locations import locations, unique_name
from keras_sparse_dm.masks.encoding import (
    bitmask_bytes,
    encode_mask,
    smallest_encoding,
)
from keras_sparse_dm.sparsity.install import build_optimizer
from keras_sparse_dm.sparsity.kernels import masked_kernels

DTYPES = ("float32", "float16", "bfloat16")
# Smaller numbers round to at most 65504, the largest number of float16.
_FLOAT16_OVERFLOWS = 65520


def save_sparse(model, path, dtype="float32", optimizer=False, metadata=None):
    """Save any Keras model to one file, with only the active weights of sparse kernels.

    The file holds all that the model needs: configuration, weights, masks and their targets, and
    the state of random generators. A sparse kernel (one with a mask, full or not) takes the space
    of its active weights and, if it is pruned, of at most one bit per weight: `(1 - S) 4 + 1/8`
    bytes per weight for sparsity S in float32. The file is a safetensors file;
    `keras_sparse_dm.export.sparse_file` describes it.

    If the model's optimizer keeps averaged (EMA) weights, the file holds those, as `generate` uses
    them; with `optimizer=True` it holds them and the weights of training.

    Args:
        model: A built `keras.Model`, sparse or not.
        path: The file; replaces an existing file once the new one is complete.
        dtype: Type of the values of all kernels with masks in the file: `"float32"`, `"float16"`
            (3 digits, up to 65504) or `"bfloat16"` (2 digits, any size). Storing fewer bits than
            the model has rounds the values.
        optimizer: Whether to save the optimizer's state and the compiled configuration too, so
            that training continues bit for bit where it stopped. Needs `"float32"`.
        metadata: Dictionary that JSON can hold, for `read_header`.

    Returns:
        `pathlib.Path` of the file.

    Raises:
        ValueError: for a model that is not built; an unknown dtype; half precision for a model
            without sparse kernels, with the optimizer, or with weights that are too large;
            metadata that JSON cannot hold; `optimizer=True` for a model without one; pruned
            weights that are not zero; or a layer that saves its own files.
        OSError: if the file cannot be written; nothing partial is left.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> report = sparsify(model, 0.5)
    >>> file = save_sparse(model, "model.sparse", dtype="float16", metadata={"epochs": 10})
    >>> read_header(file)["metadata"]
    {'epochs': 10}
    >>> model = load_sparse(file)
    """
    one_of("`dtype`", dtype, DTYPES)
    if not model.built:
        raise ValueError(f"`model` {model.name!r} must be built: call it on a batch first.")
    if optimizer and getattr(model, "optimizer", None) is None:
        raise ValueError(
            f"`optimizer` must be False for model {model.name!r}, which is not compiled and has "
            "none."
        )
    if optimizer and dtype != "float32":
        raise ValueError(
            "`dtype` must be 'float32' with `optimizer=True`: training could not continue from "
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
        write(temporary, content, plan.tensors)
    return path


class _Plan:
    """Plan of a file: the encoding of each array, and tensors whose data are read later.

    Attributes:
        arrays, layers, optimizers: Entries of the file's content.
        tensors: `{name: (dtype, shape, function that returns the data)}`.
    """

    def __init__(self, kernels, dtype, averages):
        self.arrays, self.tensors = {}, {}
        self.layers, self.optimizers = [], []
        self._dtype = dtype
        self._averages = averages
        self._kernels = {id(k.kernel): k for k in kernels}
        self._masks = {id(k.mask): k.kernel for k in kernels}
        # Keys are ids of variables.
        self._names = {}
        self._state = {}

    def add_layers(self, model):
        for location, layer in locations(model).items():
            if hasattr(layer, "save_assets"):
                raise ValueError(
                    f"Layer {layer.name!r} ({type(layer).__name__}) keeps files of its own, which "
                    "this format does not hold: use `model.save`."
                )
            arrays = layer_arrays(layer)
            self.layers.append(
                {
                    "path": path_of(layer),
                    "location": location,
                    "arrays": {key: self._add(v, layer.name, key) for key, v in arrays.items()},
                }
            )

    def add_optimizers(self, optimizer):
        for one in chain(optimizer):
            for state, owner in states(one):
                if id(owner) in self._kernels and state.shape == owner.shape:
                    self._state[id(state)] = self._kernels[id(owner)]
        for one in chain(optimizer):
            if saves_otherwise(one):
                arrays = {}
                one.save_own_variables(arrays)
            else:
                # Keras's `save_own_variables` would copy all variables at once.
                arrays = optimizer_variables(one, self._names)
            self.optimizers.append(
                {
                    "name": one.name,
                    "arrays": {key: self._add(v, one.name, key) for key, v in arrays.items()},
                }
            )

    def _add(self, value, owner, key):
        """Plan one array, unless its variable is planned already, and return its name."""
        variable = isinstance(value, keras.Variable)
        if variable and id(value) in self._names:
            return self._names[id(value)]
        path = value.path if variable else f"{owner}/{key}"
        name = unique_name(path, self.arrays)
        if variable:
            self._names[id(value)] = name
        else:
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
        if name != path:
            self.arrays[name]["path"] = path
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
                f"Pruned weights of {k.name} are not zero: something other than sparse training "
                "has written to the kernel. See `keras_sparse_dm.sparsity.check_invariant`."
            )
        dtype = keras.backend.standardize_dtype(k.kernel.dtype)
        # Never more bits than in the model, and fewer only on request.
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
        if dtype not in TYPES:
            raise ValueError(f"{name} is of type {dtype}, which this format does not hold.")
        size = math.prod(described.shape)
        if dtype in ("bool", "uint8"):
            planes = int(np.max(_numpy(source), initial=0)).bit_length()
            length = planes * bitmask_bytes(size)
            if length < size:
                self._describe(name, described, "bits", planes=planes)
                self._add_tensor(
                    name, "uint8", (length,), lambda: bit_planes(_numpy(source), planes)
                )
                return
        self._describe(name, described, "dense")
        self._add_tensor(name, dtype, tuple(described.shape), lambda: _numpy(source))

    def _add_tensor(self, name, dtype, shape, data):
        self.tensors[name] = (dtype, tuple(shape), data)


def _configuration(model, compiled):
    # As in `model.save`, so that layers share again what they share now.
    with object_sharing_scope():
        config = keras.saving.serialize_keras_object(model)
    if not compiled:
        config.pop("compile_config", None)
    return config


def _numpy(value):
    return value if isinstance(value, np.ndarray) else keras.ops.convert_to_numpy(value)
