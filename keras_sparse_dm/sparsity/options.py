"""The options of sparse training, declared once for every signature that takes them."""

import functools
import inspect
import numbers
from dataclasses import dataclass, fields
from typing import Any

import keras

from keras_sparse_dm.masks.structures import NM
from keras_sparse_dm.sparsity.methods import get_method

COMPETITION = ("kernel", "global")
GROW_INIT = ("zeros", "normal")


@dataclass(frozen=True)
class SparsityOptions:
    """How a sparse model trains: the method, when masks change, and by how much.

    `DynamicSparsity`, `sparse_optimizer` and `SparseOptimizer` take these arguments.

    Args:
        method: `"rigl"`, `"magran"`, `"set"`, `"snfs"`, `"gmp"`, `"static"` or a
            `SparsityMethod`.
        update_every: Training steps between topology updates (the paper's exploration
            frequency), 1 or more. Updates come at its multiples. Steps are the optimizer's
            updates: with gradient accumulation, one for several batches.
        prune_rate: Share of each kernel's active weights that an update exchanges, in (0, 1].
        start_step: First training step at which an update may come, counted, as all steps here,
            from where the masks were drawn.
        stop_step: Last such step; -1 for the whole run, as in the paper.
        schedule: `"constant"`, `"cosine"` (falls to zero at `stop_step`) or a
            `PruningSchedule` of tensorflow_model_optimization, which then alone says when
            and how much. `"gmp"` needs its `PolynomialDecay`, of the sparsity.
        seed: Integer seed of the methods that draw; None for a random one. A model that was
            trained sparsely before continues its draws.
        competition: `"kernel"`: every kernel grows as many weights as it dropped. `"global"`:
            all kernels compete for what all have dropped, so that densities shift among them;
            needs the memory of all scores at once.
        grow_init: Initial value of grown weights: `"zeros"`, as in RigL, or `"normal"`, drawn
            with the standard deviation of the kernel's active weights.
        gradient_steps: Number of optimizer steps, up to the update's, over which the dense
            gradient is averaged; 1, as in the paper, or more, up to those between two updates.
            Above 1 it costs memory of the kernels' size.
        grow_warmup: True counts the bias correction of Adam and AdamW from each weight's growth
            (SMET, arXiv 2606.00888); False, as in the paper, from the start of training. True
            costs 4 bytes per weight of the kernels.

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
        # Loads the toolkit.
        from keras_sparse_dm.sparsity.schedules import make_schedule

        method = get_method(self.method)
        if method.dense_to_sparse and isinstance(self.schedule, str):
            raise ValueError(
                f"`schedule` must give the sparsity at each step for method {method.name!r}: a "
                "PolynomialDecay of tensorflow_model_optimization.sparsity.keras; received "
                f"{self.schedule!r}."
            )
        schedule = make_schedule(
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
                f"`gradient_steps` must not be more than the {interval} steps between two "
                f"updates; received {steps}."
            )
        if method.dense_to_sparse and self.competition == "global":
            raise ValueError(
                f"`competition` is about growth, and method {method.name!r} grows nothing; "
                "received 'global'."
            )
        # What names stand for, from here on.
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "schedule", schedule)
        object.__setattr__(self, "gradient_steps", int(steps))

    @property
    def ones_vary(self):
        """True where topology updates change the number of a mask's ones."""
        return self.competition == "global" or self.method.dense_to_sparse

    def keeps_gradients(self, accumulation_steps=1):
        """Tell whether dense gradients are kept from one batch to the next."""
        if self.method.gradient == "momentum":
            return True
        return self.method.gradient == "step" and self.gradient_steps * accumulation_steps > 1

    def check_kernels(self, kernels):
        """Check that the method can keep what the masks were asked to be.

        Args:
            kernels: List of `MaskedKernel`.

        Raises:
            ValueError: naming the kernel, and what does not go together.
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
                    f"`method` {method.name!r} needs the densities to reach: call "
                    "`keras_sparse_dm.sparsify(model, sparsity, dense_start=True)` first."
                )
        units = {k.structure.unit for k in kernels if k.target.density != 1.0}
        if competition == "global" and len(units) > 1:
            raise ValueError(
                "`competition` cannot be 'global' among kernels of different structures: units of "
                f"{' and '.join(map(str, sorted(units)))} weights cannot be exchanged."
            )
        if method.dense_to_sparse:
            from keras_sparse_dm.sparsity.schedules import check_reaches_its_end

            self.final_sparsity(kernels)
            check_reaches_its_end(self.schedule)

    def check_not_done(self, kernels, ones):
        """Check that a method that starts dense does not begin where it should end.

        Args:
            kernels: List of `MaskedKernel`.
            ones: Number of ones of each mask.

        Raises:
            ValueError: if it does.
        """
        done = all(n == k.record.asked_ones for n, k in zip(ones, kernels, strict=True))
        if self.method.dense_to_sparse and done:
            raise ValueError(
                f"`method` {self.method.name!r} has nothing to prune, for the masks are as sparse "
                "as asked: call `keras_sparse_dm.sparsify(model, sparsity, dense_start=True)`, or "
                "use method 'static' to keep them."
            )

    def final_sparsity(self, kernels):
        """Return the sparsity at which a method that starts dense ends, None for others.

        Raises:
            ValueError: where the schedule ends at another than `sparsify` was asked for.
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
                f"`schedule` ends at sparsity {final}, and `sparsify` was asked for "
                f"{asked:.4f}: ask both for the same, above 0."
            )
        return asked if final is None else final

    def get_config(self):
        """Return the options as Keras serializes them."""
        from keras_sparse_dm.sparsity.schedules import serialize_schedule

        # What the schedule has taken in is in its own configuration.
        names = [f.name for f in fields(self) if f.name not in _OF_THE_SCHEDULE]
        config = {name: getattr(self, name) for name in names}
        config["method"] = keras.saving.serialize_keras_object(self.method)
        config["schedule"] = serialize_schedule(self.schedule)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        from keras_sparse_dm.sparsity.schedules import deserialize_schedule

        config = dict(config)
        config["method"] = keras.saving.deserialize_keras_object(
            config["method"], custom_objects=custom_objects
        )
        # Version 0.1 had none with the static method.
        schedule = config.pop("schedule", None)
        if schedule is not None:
            config["schedule"] = deserialize_schedule(schedule)
        return cls(**config)

    def __eq__(self, other):
        return isinstance(other, SparsityOptions) and self.get_config() == other.get_config()

    __hash__ = None


_OF_THE_SCHEDULE = ("update_every", "prune_rate", "start_step", "stop_step")


def takes_options(function):
    """Give a function with `*args, **options` the signature that `SparsityOptions` declares.

    The decorated function's own parameters come first, and its keyword-only ones last.
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
