"""Mixin of all sparse layers: one boolean mask for each kernel."""

import functools
import math

import keras
import numpy as np

from keras_sparse_dm._keras import unlocked
from keras_sparse_dm.layers.guard import guarded, unguard
from keras_sparse_dm.layers.kernel_mask import KernelAxes, KernelMask, KernelTarget
from keras_sparse_dm.lazy import lazy_module

tensorflow = lazy_module("keras_sparse_dm.layers.tensorflow")

# Keras layer class -> its sparse twin; filled by the definition of each twin.
TWINS = {}
# Version of masks in configurations; version 1 identified kernels and layers by position.
VERSION = 2


class MaskedKernels:
    """Mixin that adds one boolean mask per kernel to a Keras layer.

    The mask marks the weights that may differ from zero. The forward pass does not use it: pruned
    weights are zero in the kernel itself, so `call` is that of the Keras layer, with bit-for-bit
    equal results. Masks are not weights of the layer: `weights`, `get_weights`, `count_params` and
    `summary` are the same as for the Keras layer. Keras files and TensorFlow checkpoints do include
    the masks.

    To make a sparse twin of your own layer class, derive from the mixin and the class, and name the
    kernels. `keras_sparse_dm.sparsify` then turns layers of that class into the twin. All sparse
    layers of this package are defined in this way:

    ```python
    @keras.saving.register_keras_serializable(package="my_package")
    class SparseBilinear(MaskedKernels, Bilinear):
        def _kernels(self):
            return {"kernel": self.kernel}
    ```

    Only the first twin of a class counts.

    Override `_kernel_axes` for kernels whose last two axes are not inputs and outputs,
    `kernel_applications` (for counting FLOPs) if a kernel is not applied once for each output
    position, and `_parts` for a layer made of other layers.
    """

    # `{name: KernelMask}` of a built layer's own kernels. Never set through the layer's own
    # `__setattr__`, which would track the masks as weights.
    _records = {}
    # Targets from the configuration, until the layer has masks.
    _mask_targets = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if not issubclass(cls, keras.layers.Layer):
            return
        mixin, *plain = cls.__bases__
        # Classes derived from a sparse layer are not twins.
        if issubclass(mixin, MaskedKernels) and not issubclass(mixin, keras.layers.Layer):
            TWINS.setdefault(plain[0], cls)
        build = cls.build

        # Keras reads the signature of `build`, which `wraps` keeps.
        @functools.wraps(build)
        def build_with_masks(self, *args, **kwargs):
            build(self, *args, **kwargs)
            self._add_masks()

        cls.build = build_with_masks

    def _kernels(self):
        """Return `{name: kernel variable}` of a built layer."""
        return {}

    def _kernel_axes(self, name):
        """Return the `KernelAxes` of the kernel of that name."""
        return KernelAxes()

    def _parts(self):
        """List the layers that a built layer is made of and whose kernels belong to it."""
        return []

    def kernel_applications(self, input_shape):
        """List how often each kernel is applied to one example, in the order of `_kernels`.

        Args:
            input_shape: Shape of the layer's input, the batch axis first.
        """
        positions = math.prod(self.compute_output_shape(input_shape)[1:])
        return [
            positions // KernelAxes(outputs=axes.outputs).as_matrix(kernel.shape)[-1]
            for kernel, axes in own_kernels(self).values()
        ]

    def _add_masks(self):
        """Add full masks to a built layer and its parts for kernels without a mask."""
        if getattr(self, "quantization_mode", None) is None:
            records = {}
            for name, kernel in self._kernels().items():
                # Layers that share a kernel share its mask.
                record = self._records.get(name) or guarded(kernel)
                records[name] = record or KernelMask.full(kernel, name, self._kernel_axes(name))
            self.keep_masks(records)
        for part in self._parts():
            if type(part) in TWINS:
                make_sparse(part, TWINS[type(part)])
            elif isinstance(part, MaskedKernels):
                part._add_masks()
        if self._mask_targets is not None:
            self.set_mask_targets(self._mask_targets)
            object.__setattr__(self, "_mask_targets", None)

    def keep_masks(self, records):
        """Set the records of the layer's own masks, `{kernel name: KernelMask}`."""
        object.__setattr__(self, "_records", records)
        if keras.backend.backend() == "tensorflow":
            masks = {f"{n}_mask": r.mask for n, r in records.items()}
            self._checkpointed = tensorflow.checkpointed(masks)

    def share_masks(self, shared):
        """Use the masks of other layers for kernels shared with them.

        Args:
            shared: `{id of a kernel variable: KernelMask}`.
        """
        kernels = self._kernels()
        records = {n: shared.get(id(kernels[n]), r) for n, r in self._records.items()}
        if records != self._records:
            self.keep_masks(records)

    @property
    def masks(self):
        """List of `(kernel variable, mask variable)`; empty before the layer is built.

        A mask is boolean, has its kernel's shape, and is True for active weights.
        """
        return [(kernel, record.mask) for _, kernel, record in self.mask_records()]

    def mask_records(self):
        """List `(name, kernel variable, KernelMask)` of a built layer and its parts.

        Names are unique in the layer; a part's kernel has a name such as `"query/kernel"`. A
        quantized layer has no masks.
        """
        return self._all_masks() if self.built else []

    def _all_masks(self):
        found = self._own_masks()
        for part in self._parts():
            found += [(f"{part.name}/{name}", k, r) for name, k, r in part._all_masks()]
        return found

    def _own_masks(self):
        if not self._records:
            return []
        kernels = self._kernels()
        return [(name, kernels[name], record) for name, record in self._records.items()]

    def get_config(self):
        config = super().get_config()
        targets = {name: record.target for name, _, record in self.mask_records()}
        if any(target != KernelTarget() for target in targets.values()):
            # Clones need the targets.
            config["mask_version"] = VERSION
            config["mask_targets"] = {name: target.to_list() for name, target in targets.items()}
        return config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        check_version(config.pop("mask_version", 1))
        targets = config.pop("mask_targets", None)
        layer = super().from_config(config)
        object.__setattr__(layer, "_mask_targets", targets)
        return layer

    def set_mask_targets(self, targets):
        """Set the targets of the masks.

        Args:
            targets: `{name: KernelTarget.to_list()}` with the names of `mask_records`, or a list
                in their order, as in files of version 0.1.

        Raises:
            ValueError: for names other than those of the layer's kernels.
        """
        # `build` calls this too, before the layer counts as built.
        records = {name: (kernel, record) for name, kernel, record in self._all_masks()}
        if not isinstance(targets, dict) and len(targets) == len(records):
            targets = dict(zip(records, targets, strict=True))
        if not isinstance(targets, dict) or set(targets) != set(records):
            raise ValueError(
                f"`mask_targets` of layer {self.name!r} must name its kernels "
                f"{sorted(records)}; received {targets}."
            )
        for name, (kernel, record) in records.items():
            record.ask(kernel, KernelTarget.from_list(targets[name]))

    def quantize(self, mode=None, type_check=True, **kwargs):
        """Quantize the layer as Keras quantizes the plain layer, and remove its masks."""
        # Keras skips classes other than its own.
        type_check = type_check and type(self) not in TWINS.values()
        with unlocked(self):
            super().quantize(mode, type_check=type_check, **kwargs)
        if getattr(self, "quantization_mode", None) is not None:
            self.drop_masks()

    def drop_masks(self):
        """Remove the masks of the layer's own kernels; the kernels keep their values."""
        for kernel in self._kernels().values():
            unguard(kernel)
        self.keep_masks({})

    def save_own_variables(self, store):
        super().save_own_variables(store)
        # With LoRA, Keras saves the merged kernel, which is dense.
        merged = getattr(self, "lora_enabled", False)
        for name, kernel, record in self._own_masks() if self.built else ():
            record.follow(kernel)
            target = KernelTarget() if merged else record.target
            store[f"{name}_mask"] = np.ones(kernel.shape, "bool") if merged else record.mask
            store[f"{name}_target"] = target.to_array()

    def load_own_variables(self, store):
        masks = self._own_masks() if self.built else []
        stored = {key: store[key] for key in store.keys()}
        found = {
            # Weights of a plain Keras layer come without masks: nothing in them is pruned.
            name: (stored.pop(f"{name}_mask", None), stored.pop(f"{name}_target", None))
            for name, _, _ in masks
        }
        super().load_own_variables(stored)
        for name, kernel, record in masks:
            mask, target = found[name]
            record.restore(
                kernel,
                np.ones(kernel.shape, "bool") if mask is None else mask,
                KernelTarget() if target is None else KernelTarget.from_array(target),
            )


def check_version(version):
    """Raise a ValueError if the masks come from a newer version of the package."""
    if version > VERSION:
        raise ValueError(
            f"The model was saved by a newer keras_sparse_dm (masks of version {version}; this "
            f"version reads up to {VERSION}): run pip install --upgrade keras_sparse_dm."
        )


def own_kernels(layer):
    """Return `{name: (kernel variable, KernelAxes)}` of a built layer without its parts.

    Args:
        layer: A Keras layer; the result is empty unless it is sparse or has a sparse twin.
    """
    twin = twin_class(type(layer))
    if twin is None or not layer.built:
        return {}
    try:
        # The method of a twin uses attributes of the plain layer only.
        kernels = twin._kernels(layer)
    except AttributeError:
        if isinstance(layer, MaskedKernels):
            raise
        # A class derived from one with a twin may store its weights differently.
        return {}
    return {name: (kernel, twin._kernel_axes(layer, name)) for name, kernel in kernels.items()}


def parts(layer):
    """List the parts of a built layer that is sparse or has a sparse twin."""
    twin = twin_class(type(layer))
    return twin._parts(layer) if twin is not None and layer.built else []


def twin_class(cls):
    """Return a layer class if it is sparse, else the twin of its nearest base, or None."""
    if issubclass(cls, MaskedKernels):
        return cls
    return next((TWINS[base] for base in cls.__mro__ if base in TWINS), None)


def make_sparse(layer, cls):
    """Turn a built layer into a sparse layer in place, with full masks.

    The object and its variables stay the same, so all references to the layer (shared layers,
    attributes, the graph of a functional model) now refer to the sparse layer.

    Args:
        layer: A built layer without masks.
        cls: The sparse class.
    """
    # Bypass the layer's `__setattr__`, which tracks attributes.
    object.__setattr__(layer, "__class__", cls)
    # Keras stores a wrapper of the plain class's method in the layer.
    object.__setattr__(layer, "_plain_quantize", vars(layer).pop("quantize", None))
    layer._add_masks()


def make_plain(layer, cls):
    """Turn a sparse layer into a plain layer in place; its kernels stay.

    Args:
        layer: Any layer; without masks, only its class changes.
        cls: The plain class.
    """
    if isinstance(layer, MaskedKernels):
        layer.drop_masks()
        quantize = getattr(layer, "_plain_quantize", None)
        for name in ("_records", "_checkpointed", "_mask_targets", "_plain_quantize"):
            if name in vars(layer):
                delattr(layer, name)
        if quantize is not None:
            vars(layer)["quantize"] = quantize
    vars(layer).pop("_turned_sparse", None)
    if type(layer) is not cls:
        object.__setattr__(layer, "__class__", cls)
