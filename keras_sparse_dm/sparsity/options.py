"""Options of sparse training, declared once for all signatures that take them."""

import functools
import inspect
import numbers
from dataclasses import dataclass, fields
from typing import Any

import keras

from keras_sparse_dm.masks.structures import NM
from keras_sparse_dm.sparsity import schedules
from keras_sparse_dm.sparsity.methods import get_method

COMPETITION = ("kernel", "global")
GROW_INIT = ("zeros", "normal")


@dataclass(frozen=True)
class SparsityOptions:
    """Options of sparse training: the method, and the times and sizes of topology updates.

    `DynamicSparsity`, `sparse_optimizer` and `SparseOptimizer` take these arguments.

    Args:
        method: `"rigl"`, `"magran"`, `"set"`, `"snfs"`, `"gmp"`, `"static"` or a
            `SparsityMethod`.
        update_every: Training steps between topology updates (the paper's exploration
            frequency), 1 or more. Updates take place at its multiples. A step is an update of the
            optimizer; with gradient accumulation, one step takes several batches.
        prune_rate: Share of each kernel's active weights that an update exchanges, in (0, 1].
        start_step: First training step that may have an update. Steps count from the draw of the
            masks.
        stop_step: Last training step that may have an update; -1 for no limit, as in the paper.
        schedule: `"constant"`, `"cosine"` (falls to zero at `stop_step`), an `UpdateSchedule` or a
            `PruningSchedule` of tensorflow_model_optimization, which replace the four arguments
            above. `"gmp"` needs a `PolynomialDecay` of the sparsity.
        seed: Integer seed of methods that draw; None for a random seed. A model that was already
            trained sparsely continues its random sequence.
        competition: `"kernel"`: each kernel grows as many weights as it dropped. `"global"`: all
            kernels compete for all dropped weights, so their densities change; needs memory for
            all scores at once.
        grow_init: Initial value of grown weights: `"zeros"`, as in RigL, or `"normal"`, with the
            standard deviation of the kernel's active weights.
        gradient_steps: Number of optimizer steps before and including the update over which the
            dense gradient is averaged: 1, as in the paper, or more, up to the interval between
            updates. More than 1 needs memory of the kernels' size.
        grow_warmup: True to count the bias correction of Adam and AdamW from each weight's growth
            (SMET, arXiv 2606.00888), which needs 4 bytes per weight of the kernels; False to count
            from the start of training, as in the paper.

    Raises:
        ValueError: for an unknown method, schedule or option, or a value outside its range.
    """

    method: Any = "rigl"
    update_every: int = 1100
    prune_rate: float = 0.05
    start_step: int = 0
    stop_step: int = -1
    schedule: Any = "constant"
    seed: int | None = None
    competition: str = "kernel"
    grow_init: str = "zeros"
    gradient_steps: int = 1
    grow_warmup: bool = False

    def __post_init__(self):
        method = get_method(self.method)
        if method.dense_to_sparse and isinstance(self.schedule, str):
            raise ValueError(
                f"`schedule` must give the sparsity at each step for method {method.name!r}: a "
                "keras_sparse_dm.sparsity.PolynomialDecay; received "
                f"{self.schedule!r}."
            )
        schedule = schedules.make_schedule(
            self.schedule, self.prune_rate, self.update_every, self.start_step, self.stop_step
        )
        for argument, allowed in (
            ("competition", COMPETITION),
            ("grow_init", GROW_INIT),
            ("grow_warmup", (False, True)),
        ):
            value = getattr(self, argument)
            if value not in allowed:
                raise ValueError(
                    f"`{argument}` must be one of {', '.join(map(repr, allowed))}; received "
                    f"{value!r}."
                )
        steps = self.gradient_steps
        whole = isinstance(steps, numbers.Integral) and not isinstance(steps, bool)
        if not whole or steps < 1:
            raise ValueError(
                f"`gradient_steps` must be a whole number, 1 or more; received {steps!r}."
            )
        interval = getattr(schedule, "frequency", getattr(schedule, "update_every", None))
        if interval is not None and interval < steps > 1:
            raise ValueError(
                f"`gradient_steps` must not exceed the {interval} steps between updates; "
                f"received {steps}."
            )
        if method.dense_to_sparse and self.competition == "global":
            raise ValueError(
                f"`competition` must be 'kernel' for method {method.name!r}, which grows nothing; "
                "received 'global'."
            )
        # Replace names by objects.
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "schedule", schedule)
        object.__setattr__(self, "gradient_steps", int(steps))

    @property
    def ones_vary(self):
        """True if topology updates change the number of a mask's ones."""
        return self.competition == "global" or self.method.dense_to_sparse

    def keeps_gradients(self, accumulation_steps=1):
        """Tell if dense gradients are kept from batch to batch."""
        if self.method.gradient == "momentum":
            return True
        return self.method.gradient == "step" and self.gradient_steps * accumulation_steps > 1

    def check_kernels(self, kernels):
        """Check that the method can keep the targets of the masks.

        Args:
            kernels: List of `MaskedKernel`.

        Raises:
            ValueError: if it cannot; names the kernel and the conflict.
        """
        method, competition = self.method, self.competition
        for k in kernels:
            if method.single_weights and k.structure.unit > 1:
                raise ValueError(
                    f"`method` {method.name!r} scores single weights and cannot keep the "
                    f"{k.structure} of {k.name}."
                )
            if isinstance(k.structure, NM) and self.ones_vary:
                raise ValueError(
                    f"{k.structure} of {k.name} fixes the density of its kernel, which method "
                    f"{method.name!r} with {competition} competition would change."
                )
            if method.dense_to_sparse and k.target.density is None:
                raise ValueError(
                    f"`method` {method.name!r} needs densities to prune to: call "
                    "`keras_sparse_dm.sparsify(model, sparsity, dense_start=True)` first."
                )
        units = {k.structure.unit for k in kernels if k.target.density != 1.0}
        if competition == "global" and len(units) > 1:
            raise ValueError(
                "`competition` cannot be 'global' among kernels of different structures: units of "
                f"{' and '.join(map(str, sorted(units)))} weights cannot be exchanged."
            )
        if method.dense_to_sparse:
            self.final_sparsity(kernels)
            schedules.check_reaches_its_end(self.schedule)

    def check_not_done(self, kernels, ones):
        """Check that a method that starts dense has something left to prune.

        Args:
            kernels: List of `MaskedKernel`.
            ones: Number of ones of each mask.

        Raises:
            ValueError: if all masks have reached their target.
        """
        done = all(n == k.record.asked_ones for n, k in zip(ones, kernels, strict=True))
        if self.method.dense_to_sparse and done:
            raise ValueError(
                f"`method` {self.method.name!r} has nothing to prune, because the masks have "
                "reached their densities: call `keras_sparse_dm.sparsify(model, sparsity, "
                "dense_start=True)`, or use method 'static' to keep them."
            )

    def final_sparsity(self, kernels):
        """Return the final sparsity of a method that starts dense, None for other methods.

        Raises:
            ValueError: if the schedule ends at another sparsity than `sparsify` was asked for.
        """
        if not self.method.dense_to_sparse:
            return None
        size = sum(k.size for k in kernels)
        asked = 1.0 - sum(k.target.density * k.size for k in kernels) / size
        final = getattr(self.schedule, "final_sparsity", None)
        final = getattr(self.schedule, "target_sparsity", final)
        # `densities` rounds the budget by up to one weight of each kernel.
        rounding = max(5e-3, len(kernels) / size)
        if asked <= 0.0 or (final is not None and abs(asked - final) > rounding):
            raise ValueError(
                f"`schedule` ends at sparsity {final}, but `sparsify` was asked for "
                f"{asked:.4f}: both must be equal and above 0."
            )
        return asked if final is None else final

    def get_config(self):
        """Return the options in Keras's serialized form."""
        # The configuration of the schedule contains the arguments that it replaces.
        names = [f.name for f in fields(self) if f.name not in _OF_THE_SCHEDULE]
        config = {name: getattr(self, name) for name in names}
        config["method"] = keras.saving.serialize_keras_object(self.method)
        config["schedule"] = schedules.serialize_schedule(self.schedule)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["method"] = keras.saving.deserialize_keras_object(
            config["method"], custom_objects=custom_objects
        )
        # Version 0.1 saved no schedule for the static method.
        schedule = config.pop("schedule", None)
        if schedule is not None:
            config["schedule"] = schedules.deserialize_schedule(schedule)
        return cls(**config)

    def __eq__(self, other):
        return isinstance(other, SparsityOptions) and self.get_config() == other.get_config()

    __hash__ = None


_OF_THE_SCHEDULE = ("update_every", "prune_rate", "start_step", "stop_step")


def takes_options(function):
    """Give a function with `*args, **options` the signature of `SparsityOptions`.

    The function's own positional parameters come first, its keyword-only parameters last.
    """
    own = list(inspect.signature(function).parameters.values())
    declared = list(inspect.signature(SparsityOptions).parameters.values())
    before = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
    after = [p for p in own if p.kind is p.KEYWORD_ONLY]

    @functools.wraps(function)
    def with_options(*args, **kwargs):
        return function(*args, **kwargs)

    with_options.__signature__ = inspect.Signature([*before, *declared, *after])
    return with_options
