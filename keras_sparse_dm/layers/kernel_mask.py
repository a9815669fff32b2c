"""The record of one kernel's mask: the mask variable, and what was asked of it."""

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
    """Meaning of a kernel's axes; those named in neither are a convolution's window.

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
        """Return `(*window, inputs, outputs)`: the kernel's shape as distributions weigh it."""
        axes = {axis - len(shape) for axis in range(len(shape))}
        window = [shape[axis] for axis in sorted(axes - {*self.inputs, *self.outputs})]
        inputs = math.prod(shape[axis] for axis in set(self.inputs) - set(self.outputs))
        return (*window, inputs, math.prod(shape[axis] for axis in set(self.outputs)))

    @property
    def structured(self):
        """The axis along which blocks and N:M groups lie: the last pure input axis, or None."""
        return max(set(self.inputs) - set(self.outputs), default=None)


@dataclass(frozen=True)
class KernelTarget:
    """Density and structure that were asked of a kernel's mask.

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
        density, *code = np.asarray(array).tolist()
        return cls.from_list([None if math.isnan(density) else density, *code])


@dataclass(eq=False)
class KernelMask:
    """The mask of one kernel; layers that share the kernel share this record.

    Attributes:
        mask: Boolean `keras.Variable` of the kernel's shape, True where a weight is active. No
            layer tracks it, so it is no weight of a layer; layers save and load it. On JAX, an
            optimizer that trains the kernel tracks it.
        axes: `KernelAxes`, what the kernel's axes stand for.
        target: `KernelTarget`, what the mask was asked to be.
        ones_vary: True while topology updates change the number of ones.
        optimizers: Every `SparseOptimizer` that trains the kernel and has state of it.
    """

    mask: keras.Variable
    axes: KernelAxes = KernelAxes()
    target: KernelTarget = KernelTarget()
    ones_vary: bool = False
    optimizers: weakref.WeakSet = field(default_factory=weakref.WeakSet, repr=False)

    @classmethod
    def full(cls, kernel, name, axes):
        """Return the record of a kernel whose weights are all active.

        Args:
            kernel: The `keras.Variable`.
            name: The kernel's name in its layer.
            axes: Its `KernelAxes`.
        """
        with strategy_of(kernel):
            mask = variable_beside(kernel, f"{name}_mask", kernel.shape, "bool", "ones")
        record = cls(mask, axes)
        if kernel.constraint is None:
            # From the start where the kernel has no constraint of its own, so that a step that
            # is compiled while the mask is full knows the guard too.
            guard(kernel, record)
        return record

    @property
    def asked_ones(self):
        """Number of ones that the mask was asked to have, or None."""
        if self.target.density is None:
            return None
        return self.target.structure.ones(tuple(self.mask.shape), self.target.density)

    def ask(self, kernel, target):
        """Set what the mask is asked to be, and guard its kernel from then on."""
        self.target = target
        if target != KernelTarget():
            guard(kernel, self)

    def restore(self, kernel, value, target):
        """Set the mask and what it was asked to be, as a file holds them.

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
        """Make the mask that of the kernel's weights, where something else has written them.

        `set_weights` and callbacks that restore an earlier epoch write weights that belong to an
        earlier mask: see `followed_mask`. State of optimizers for pruned weights becomes zero.

        Returns:
            False where the weights have more nonzeros than the mask may have ones, or not in
            its structure; the mask is then left as it is.
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
    """Make a variable that is not trained, with the path of another but for the name."""
    scope = variable.path.rpartition("/")[0]
    parent, _, last = scope.rpartition("/")
    with keras.name_scope(last, override_parent=parent) if last else contextlib.nullcontext():
        return keras.Variable(initializer, shape=shape, dtype=dtype, trainable=False, name=name)


def strategy_of(variable):
    """Return the scope of the `tf.distribute` strategy that a variable lives under."""
    strategy = getattr(variable.value, "distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
