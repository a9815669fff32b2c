"""What every sparse layer shares: one boolean mask beside each kernel."""

import contextlib
import functools
import math
import weakref
from dataclasses import dataclass

import keras
import numpy as np

from keras_sparse_dm.layers.restoring import restorable_class
from keras_sparse_dm.sparsity.structures import Unstructured, structure_from_code

# Keras layer class -> its sparse twin; filled by the definition of each twin.
TWINS = {}


@dataclass(frozen=True)
class KernelAxes:
    """What the axes of a kernel stand for; those named in neither are a convolution's window.

    Attributes:
        inputs: Axes of the input features, counted from the end (negative).
        outputs: Axes of the output features, counted from the end. An axis named in both,
            as of a depthwise kernel, connects each feature with itself only.
        groups: Number of groups of a grouped convolution.
    """

    inputs: tuple = (-2,)
    outputs: tuple = (-1,)
    groups: int = 1

    def as_matrix(self, shape):
        """Returns `(*window, inputs, outputs)`: the kernel's shape as distributions weigh it."""
        axes = {axis - len(shape) for axis in range(len(shape))}
        window = [shape[axis] for axis in sorted(axes - {*self.inputs, *self.outputs})]
        inputs = math.prod(shape[axis] for axis in set(self.inputs) - set(self.outputs))
        return (*window, inputs, math.prod(shape[axis] for axis in set(self.outputs)))

    @property
    def structured(self):
        """The axis along which blocks and N:M groups lie: the last pure input axis, or None."""
        return max(set(self.inputs) - set(self.outputs), default=None)


class MaskedKernels:
    """Mixin that gives a Keras layer one boolean mask per kernel.

    The mask says where the kernel may differ from zero. It never enters the forward pass:
    pruned weights are zero in the kernel itself, so `call` is the parent's, unchanged, and a
    layer whose masks are full computes bit for bit what the Keras layer computes.

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

    _mask_variables = ()
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
        """Returns `{name: kernel variable}` of a built layer."""
        return {}

    def _kernel_axes(self, name):
        """Returns the `KernelAxes` of the kernel of that name."""
        return KernelAxes()

    def _parts(self):
        """Returns the layers that a built layer is made of and whose kernels are its own."""
        return []

    def kernel_applications(self, input_shape):
        """How often each kernel is applied to one example, in the order of `_kernels`.

        Args:
            input_shape: Shape of the layer's input, the batch axis first.
        """
        positions = math.prod(self.compute_output_shape(input_shape)[1:])
        return [
            positions // KernelAxes(outputs=axes.outputs).as_matrix(kernel.shape)[-1]
            for kernel, axes in own_kernels(self).values()
        ]

    def _add_masks(self):
        """Adds the masks that are missing, full, to a built layer and to its parts."""
        kernels = list(self._kernels().items())[len(self._mask_variables) :]
        if kernels and getattr(self, "quantization_mode", None) is None:
            masks = list(self._mask_variables)
            locked = self._tracker.locked
            self._tracker.unlock()
            with strategy_of(kernels[0][1]):
                for name, kernel in kernels:
                    if isinstance(kernel.constraint, SparseTrainingOnly):
                        # Another layer has the same kernel, and one mask serves both.
                        masks.append(kernel.constraint.mask)
                        continue
                    mask = self.add_weight(
                        name=f"{name}_mask",
                        shape=kernel.shape,
                        dtype="bool",
                        initializer="ones",
                        trainable=False,
                    )
                    # A mask added after `build` stands beside its kernel too.
                    mask._path = f"{kernel.path}_mask"
                    kernel.constraint = SparseTrainingOnly(mask, kernel.constraint)
                    masks.append(mask)
            # Only the masks are kept: a kernel held here too would be tracked twice.
            self._mask_variables = masks
            if locked:
                self._tracker.lock()
        for part in self._parts():
            make_sparse(part)
        if self._mask_targets is not None:
            self.set_mask_targets(self._mask_targets)
            self._mask_targets = None

    @property
    def masks(self):
        """List of `(kernel variable, mask variable)`; empty before the layer is built.

        A mask is boolean, has its kernel's shape, and is True where a weight is active.
        """
        return self._all_masks() if self.built else []

    def _all_masks(self):
        own = [(kernel, mask) for _, kernel, mask in self._own_masks()]
        return own + [pair for part in self._parts() for pair in part.masks]

    def _own_masks(self):
        """Lists `(name, kernel variable, mask variable)`; none of a quantized layer."""
        if not self._mask_variables:
            return []
        kernels = self._kernels().items()
        return [
            (name, kernel, mask)
            for (name, kernel), mask in zip(kernels, self._mask_variables, strict=True)
        ]

    def get_config(self):
        config = super().get_config()
        targets = [target_of(kernel) for kernel, _ in self.masks]
        if any(target != KernelTarget() for target in targets):
            # What the masks were asked to be, for clones.
            config["mask_targets"] = [target.to_list() for target in targets]
        return config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        targets = config.pop("mask_targets", None)
        layer = super().from_config(config)
        layer._mask_targets = targets
        return layer

    def set_mask_targets(self, targets):
        """Sets what the masks were asked to be, from `KernelTarget.to_list` of each."""
        for (kernel, _), target in zip(self._all_masks(), targets, strict=True):
            kernel.constraint.target = KernelTarget.from_list(target)

    def quantize(self, mode=None, type_check=True, **kwargs):
        """Quantizes the layer as Keras does the plain one; it has no masks from then on."""
        locked = self._tracker.locked
        self._tracker.unlock()
        try:
            # Keras would pass over any class but its own.
            super().quantize(mode, type_check=False, **kwargs)
            for mask in self._mask_variables:
                self._untrack_variable(mask)
            self._mask_variables = []
        finally:
            if locked:
                self._tracker.lock()

    @contextlib.contextmanager
    def _without_masks(self):
        """Context in which the layer has the variables of the plain Keras layer only."""
        variables = self._non_trainable_variables
        masks = {id(mask) for mask in self._mask_variables}
        plain = [variable for variable in variables if id(variable) not in masks]
        # Not through the layer's own `__setattr__`, which tracks what is set.
        object.__setattr__(self, "_non_trainable_variables", plain)
        try:
            yield
        finally:
            object.__setattr__(self, "_non_trainable_variables", variables)

    def save_own_variables(self, store):
        with self._without_masks():
            super().save_own_variables(store)
        # Keras merges the weights of LoRA into the kernel that it saves: a dense one.
        merged = getattr(self, "lora_enabled", False)
        for name, kernel, mask in self._own_masks() if self.built else ():
            target = KernelTarget() if merged else target_of(kernel)
            store[f"{name}_mask"] = np.ones(mask.shape, "bool") if merged else mask
            store[f"{name}_target"] = target.to_array()

    def load_own_variables(self, store):
        masks = self._own_masks() if self.built else []
        stored = {key: store[key] for key in store.keys()}
        targets = [stored.pop(f"{name}_target", None) for name, _, _ in masks]
        # Weights of the plain Keras layer have none: nothing in them is pruned.
        values = [stored.pop(f"{name}_mask", np.ones(mask.shape)) for name, _, mask in masks]
        with self._without_masks():
            super().load_own_variables(stored)
        for (_, kernel, mask), value, target in zip(masks, values, targets, strict=True):
            mask.assign(np.asarray(value, "bool"))
            kernel.constraint.target = (
                KernelTarget() if target is None else KernelTarget.from_array(np.asarray(target))
            )


@dataclass(frozen=True)
class KernelTarget:
    """What a kernel's mask was asked to be.

    Attributes:
        density: Share of active weights, in (0, 1]; None if nobody has asked.
        structure: `Unstructured`, `Blocks` or `NM`.
    """

    density: float | None = None
    structure: Unstructured = Unstructured()

    def to_list(self):
        """Four plain values that `from_list` reads."""
        return [self.density, *self.structure.code]

    @classmethod
    def from_list(cls, values):
        density, *code = values
        return cls(density, structure_from_code(code))

    def to_array(self):
        """The same as float64, for weights files."""
        density = math.nan if self.density is None else self.density
        return np.array([density, *self.structure.code], "float64")

    @classmethod
    def from_array(cls, array):
        density, *code = array.tolist()
        return cls.from_list([None if math.isnan(density) else density, *code])


class SparseTrainingOnly(keras.constraints.Constraint):
    """Stands on every sparse kernel, so that no optimizer trains its pruned weights.

    Keras applies a variable's constraint after an optimizer's update. `SparseOptimizer` puts
    the kernel's own constraint in its place while it works. Any other optimizer meets this
    one: where the mask prunes, it raises, before the first step wherever steps are compiled.
    A step that was compiled while the mask was still full keeps the pruned weights at zero.

    Args:
        mask: The kernel's mask variable.
        constraint: The kernel's own constraint, or None.
    """

    def __init__(self, mask, constraint=None):
        self.mask = mask
        self.constraint = constraint
        self.target = KernelTarget()
        # Every `SparseOptimizer` that trains the kernel and has state of it.
        self.optimizers = weakref.WeakSet()

    def __call__(self, w):
        if _prunes(self.mask):
            raise ValueError(
                "This model is sparse, and this optimizer would train its pruned weights too: "
                "pass the callback `keras_sparse_dm.DynamicSparsity` to `fit` (method 'static' "
                "keeps the masks as they are). In a loop of your own, and where a model trains "
                "by other optimizers than `model.optimizer`, wrap each by "
                "`keras_sparse_dm.sparse_optimizer`."
            )
        if self.constraint is not None:
            w = self.constraint(w)
        return keras.ops.where(self.mask, w, keras.ops.zeros((), w.dtype))


def target_of(kernel):
    """Returns the `KernelTarget` of a kernel variable."""
    return getattr(kernel.constraint, "target", KernelTarget())


def own_kernels(layer):
    """Returns `{name: (kernel variable, KernelAxes)}` of a built layer without its parts.

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


def has_sparse_kernel(layer):
    """Whether a layer, sparse or not, has a kernel with a mask, which may be another's too."""
    return any(isinstance(k.constraint, SparseTrainingOnly) for k, _ in own_kernels(layer).values())


def parts(layer):
    """Returns the layers that a built layer, sparse or with a sparse twin, is made of."""
    twin = twin_class(type(layer))
    return twin._parts(layer) if twin is not None and layer.built else []


def twin_class(cls):
    """Returns the sparse class that a layer class is or derives its twin from, or None."""
    if issubclass(cls, MaskedKernels):
        return cls
    return next((TWINS[base] for base in cls.__mro__ if base in TWINS), None)


def make_sparse(layer):
    """Turns a built layer into its sparse twin where it stands, with full masks.

    The object stays the same, and so do its variables: whatever refers to it (a shared layer,
    an attribute, the graph of a functional model) refers to the sparse layer from then on.

    Args:
        layer: A built layer whose class, or one that it derives from, has a twin.
    """
    if not isinstance(layer, MaskedKernels):
        # Not through the layer's own `__setattr__`, which tracks what is set.
        object.__setattr__(layer, "__class__", _sparse_class(type(layer)))
        # Keras's wrapper of the plain class's method.
        vars(layer).pop("quantize", None)
    layer._add_masks()


@functools.cache
def _sparse_class(cls):
    if cls in TWINS:
        return TWINS[cls]
    # A class derived from one with a twin: its own methods come before the twin's.
    return restorable_class(cls, (cls, twin_class(cls)))


def strategy_of(variable):
    """Returns the scope of the `tf.distribute` strategy that a variable lives under."""
    strategy = getattr(variable.value, "distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def _prunes(mask):
    """Whether a mask prunes anything now, also while a TensorFlow function is traced."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            return not np.all(keras.ops.convert_to_numpy(mask))
    return not np.all(keras.ops.convert_to_numpy(mask))
