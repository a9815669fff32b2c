"""The mixin of every sparse layer: one boolean mask beside each kernel."""

import functools
import math

import keras
import numpy as np

from keras_sparse_dm._keras import unlocked
from keras_sparse_dm.layers.guard import guarded, unguard
from keras_sparse_dm.layers.kernel_mask import KernelAxes, KernelMask, KernelTarget

# Keras layer class -> its sparse twin; filled by the definition of each twin.
TWINS = {}
# Version of the masks in configurations; version 1 knew kernels and layers by their position.
VERSION = 2


class MaskedKernels:
    """Mixin that gives a Keras layer one boolean mask per kernel.

    The mask says where the kernel may differ from zero. It never enters the forward pass:
    pruned weights are zero in the kernel itself, so `call` is the parent's, unchanged, and a
    layer whose masks are full computes bit for bit what the Keras layer computes. Masks are no
    weights of the layer: `weights`, `get_weights`, `count_params` and `summary` are those of
    the Keras layer. Files of Keras and checkpoints of TensorFlow hold them all the same.

    The sparse twin of a layer of your own lists the mixin before it and names its kernels;
    `keras_sparse_dm.sparsify` then turns plain layers of that class into their twin too. All
    the layers of this package are made in this way:

    ```python
    @keras.saving.register_keras_serializable(package="my_package")
    class SparseBilinear(MaskedKernels, Bilinear):
        def _kernels(self):
            return {"kernel": self.kernel}
    ```

    A class has one twin, the first that is defined.

    A kernel whose last two axes are not its inputs and outputs says so in `_kernel_axes`; a
    layer that applies a kernel otherwise than once for each of its output positions says so
    in `kernel_applications`, from which FLOPs are counted; a layer that is made of others
    names these in `_parts`.
    """

    # `{name: KernelMask}` of a built layer's own kernels. Never set through the layer's own
    # `__setattr__`, which would track the masks as weights.
    _records = {}
    # From the configuration, until there are masks.
    _mask_targets = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if not issubclass(cls, keras.layers.Layer):
            return
        mixin, *plain = cls.__bases__
        # Not where a sparse layer is derived from.
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
        """List the layers that a built layer is made of and whose kernels are its own."""
        return []

    def kernel_applications(self, input_shape):
        """Count how often each kernel is applied to one example, in the order of `_kernels`.

        Args:
            input_shape: Shape of the layer's input, the batch axis first.
        """
        positions = math.prod(self.compute_output_shape(input_shape)[1:])
        return [
            positions // KernelAxes(outputs=axes.outputs).as_matrix(kernel.shape)[-1]
            for kernel, axes in own_kernels(self).values()
        ]

    def _add_masks(self):
        """Add the masks that are missing, full, to a built layer and to its parts."""
        if getattr(self, "quantization_mode", None) is None:
            records = {}
            for name, kernel in self._kernels().items():
                # Another layer may have the same kernel, and one mask serves both.
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
            from keras_sparse_dm.layers.tensorflow import checkpointed

            self._checkpointed = checkpointed({f"{n}_mask": r.mask for n, r in records.items()})

    def share_masks(self, shared):
        """Take the masks of other layers for the kernels that this layer shares with them.

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

        A mask is boolean, has its kernel's shape, and is True where a weight is active.
        """
        return [(kernel, record.mask) for _, kernel, record in self.mask_records()]

    def mask_records(self):
        """List `(name, kernel variable, KernelMask)` of a built layer, its parts included.

        Names are unique in the layer, those of parts as `"query/kernel"`. A quantized layer has
        none.
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
            # What the masks were asked to be, for clones.
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
        """Set what the masks were asked to be.

        Args:
            targets: `{name: KernelTarget.to_list()}` with the names of `mask_records`; a list
                in that order, as files of version 0.1 hold it, serves too.

        Raises:
            ValueError: for other names than those of the layer's kernels.
        """
        # Called from `build` too.
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
        """Quantize the layer as Keras does the plain one; it has no masks from then on."""
        # Keras passes over any class but its own.
        type_check = type_check and type(self) not in TWINS.values()
        with unlocked(self):
            super().quantize(mode, type_check=type_check, **kwargs)
        if getattr(self, "quantization_mode", None) is not None:
            self.drop_masks()

    def drop_masks(self):
        """Forget the masks of the layer's own kernels, which keep their values."""
        for kernel in self._kernels().values():
            unguard(kernel)
        self.keep_masks({})

    def save_own_variables(self, store):
        super().save_own_variables(store)
        # Keras merges the weights of LoRA into the kernel that it saves: a dense one.
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
            # Weights of the plain Keras layer have none: nothing in them is pruned.
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
    """Raise a ValueError for masks of a newer version."""
    if version > VERSION:
        raise ValueError(
            f"The model was saved by a newer keras_sparse_dm (version {version} of its masks; this "
            f"one reads up to {VERSION}): upgrade it (pip install --upgrade keras_sparse_dm)."
        )


def own_kernels(layer):
    """Return `{name: (kernel variable, KernelAxes)}` of a built layer without its parts.

    Args:
        layer: A Keras layer, sparse or one that has a sparse twin; any other has none.
    """
    twin = twin_class(type(layer))
    if twin is None or not layer.built:
        return {}
    try:
        # A twin reads only what the plain layer has too.
        kernels = twin._kernels(layer)
    except AttributeError:
        if isinstance(layer, MaskedKernels):
            raise
        # A class derived from one with a twin, which keeps its weights otherwise.
        return {}
    return {name: (kernel, twin._kernel_axes(layer, name)) for name, kernel in kernels.items()}


def parts(layer):
    """List the layers that a built layer, sparse or with a sparse twin, is made of."""
    twin = twin_class(type(layer))
    return twin._parts(layer) if twin is not None and layer.built else []


def twin_class(cls):
    """Return the sparse class that a layer class is or derives its twin from, or None."""
    if issubclass(cls, MaskedKernels):
        return cls
    return next((TWINS[base] for base in cls.__mro__ if base in TWINS), None)


def make_sparse(layer, cls):
    """Turn a built layer into a sparse one where it stands, with full masks.

    The object stays the same, and so do its variables: whatever refers to it (a shared layer,
    an attribute, the graph of a functional model) refers to the sparse layer from then on.

    Args:
        layer: A built layer without masks.
        cls: The sparse class that it becomes.
    """
    # Not through the layer's own `__setattr__`, which tracks what is set.
    object.__setattr__(layer, "__class__", cls)
    # Keras's wrapper of the plain class's method.
    object.__setattr__(layer, "_plain_quantize", vars(layer).pop("quantize", None))
    layer._add_masks()


def make_plain(layer, cls):
    """Turn a sparse layer into one of a plain class where it stands; its kernels stay.

    Args:
        layer: Any layer; one without masks only gets the class.
        cls: The class that it becomes.
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
