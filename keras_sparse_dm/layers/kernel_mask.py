"""Mask of one kernel: the mask variable, with its target density and structure."""

import contextlib
import math
import weakref
from dataclasses import dataclass, field

import keras
import numpy as np

from keras_sparse_dm.layers.guard import guard
from keras_sparse_dm.masks.follow import followed_mask
from keras_sparse_dm.masks.structures import Unstructured, structure_from_code


@dataclass(frozen=True)
class KernelAxes:
    """Meaning of a kernel's axes; any other axes are a convolution's window.

    Attributes:
        inputs: Axes of the input features, counted from the end (negative).
        outputs: Axes of the output features, counted from the end. An axis in both, as in a
            depthwise kernel, connects each feature only with itself.
        groups: Number of groups of a grouped convolution.
    """

    inputs: tuple = (-2,)
    outputs: tuple = (-1,)
    groups: int = 1

    def as_matrix(self, shape):
        """Return `(*window, inputs, outputs)`, the shape that distributions use."""
        axes = {axis - len(shape) for axis in range(len(shape))}
        window = [shape[axis] for axis in sorted(axes - {*self.inputs, *self.outputs})]
        inputs = math.prod(shape[axis] for axis in set(self.inputs) - set(self.outputs))
        return (*window, inputs, math.prod(shape[axis] for axis in set(self.outputs)))

    @property
    def structured(self):
        """Axis along which blocks and N:M groups lie: the last pure input axis, or None."""
        return max(set(self.inputs) - set(self.outputs), default=None)


@dataclass(frozen=True)
class KernelTarget:
    """Target density and structure of a kernel's mask, as set by `sparsify`.

    Attributes:
        density: Share of active weights, in (0, 1]; None if it was never set.
        structure: `Unstructured`, `Blocks` or `NM`.
    """

    density: float | None = None
    structure: Unstructured = Unstructured()

    def to_list(self):
        """Return four plain values that `from_list` reads."""
        return [self.density, *self.structure.code]

    @classmethod
    def from_list(cls, values):
        density, *code = values
        return cls(density, structure_from_code(code))

    def to_array(self):
        """Return the same values as a float64 array, for weights files."""
        density = math.nan if self.density is None else self.density
        return np.array([density, *self.structure.code], "float64")

    @classmethod
    def from_array(cls, array):
        density, *code = np.asarray(array).tolist()
        return cls.from_list([None if math.isnan(density) else density, *code])


@dataclass(eq=False)
class KernelMask:
    """Mask of one kernel; layers that share the kernel share this object.

    Attributes:
        mask: Boolean `keras.Variable` of the kernel's shape, True for active weights. Layers save
            and load it but do not track it, so it is not one of their weights. On JAX, an
            optimizer that trains the kernel tracks it.
        axes: `KernelAxes`, the meaning of the kernel's axes.
        target: `KernelTarget`, the target of the mask.
        ones_vary: True while topology updates change the number of ones.
        optimizers: All `SparseOptimizer` objects that hold state of the kernel.
    """

    mask: keras.Variable
    axes: KernelAxes = KernelAxes()
    target: KernelTarget = KernelTarget()
    ones_vary: bool = False
    optimizers: weakref.WeakSet = field(default_factory=weakref.WeakSet, repr=False)

    @classmethod
    def full(cls, kernel, name, axes):
        """Create the mask of a kernel whose weights are all active.

        Args:
            kernel: The `keras.Variable`.
            name: The kernel's name in its layer.
            axes: Its `KernelAxes`.
        """
        with strategy_of(kernel):
            mask = variable_beside(kernel, f"{name}_mask", kernel.shape, "bool", "ones")
        record = cls(mask, axes)
        if kernel.constraint is None:
            # Guard the kernel from the start if it has no constraint of its own. A step that is
            # compiled while the mask is full then includes the guard.
            guard(kernel, record)
        return record

    @property
    def asked_ones(self):
        """Number of ones of the target density, or None."""
        if self.target.density is None:
            return None
        return self.target.structure.ones(tuple(self.mask.shape), self.target.density)

    def ask(self, kernel, target):
        """Set the target of the mask, and guard the kernel from now on."""
        self.target = target
        if target != KernelTarget():
            guard(kernel, self)

    def restore(self, kernel, value, target):
        """Set the mask and its target to values from a file.

        Raises:
            ValueError: for a mask of another shape.
        """
        value = np.asarray(value)
        if value.shape != tuple(self.mask.shape):
            raise ValueError(
                f"The mask of {kernel.path} must have its kernel's shape "
                f"{tuple(self.mask.shape)}; received one of shape {value.shape}."
            )
        self.mask.assign(value.astype("bool"))
        self.ask(kernel, target)
        if not value.all():
            guard(kernel, self)

    def follow(self, kernel):
        """Adapt the mask if something other than sparse training has written the kernel.

        `set_weights` and callbacks that restore an earlier epoch write weights that belong to an
        earlier mask, which `followed_mask` finds. Optimizer state of pruned weights becomes zero.

        Returns:
            False if the weights have more nonzeros than the mask may have ones, or break its
            structure; the mask then stays unchanged.
        """
        new = followed_mask(
            keras.ops.convert_to_tensor(self.mask),
            keras.ops.convert_to_tensor(kernel),
            self.target.structure,
            self.axes.structured,
            asked=None if self.ones_vary else self.asked_ones,
            free=self.ones_vary,
        )
        if new is None:
            return False
        if bool(keras.ops.any(new != self.mask)):
            self.mask.assign(new)
            guard(kernel, self)
            for optimizer in list(self.optimizers):
                optimizer.mask_has_changed(kernel)
        return True


def variable_beside(variable, name, shape, dtype, initializer="zeros"):
    """Create a non-trainable variable beside another: same path, other name."""
    scope = variable.path.rpartition("/")[0]
    parent, _, last = scope.rpartition("/")
    with keras.name_scope(last, override_parent=parent) if last else contextlib.nullcontext():
        return keras.Variable(initializer, shape=shape, dtype=dtype, trainable=False, name=name)


def strategy_of(variable):
    """Return the scope of the `tf.distribute` strategy of a variable."""
    strategy = getattr(variable.value, "distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
