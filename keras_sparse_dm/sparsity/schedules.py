"""Schedules of topology updates and prune rates.

Called with a training step, a schedule returns `(due, rate)`; the rate is the share of each
kernel's active weights that an update exchanges or, for a method that starts dense, the sparsity to
reach.
Schedules of the TensorFlow Model Optimization Toolkit work too, where it is installed.
"""

import numbers

import keras
import numpy as np
from keras import ops

TOOLKIT = "tensorflow_model_optimization"


class UpdateSchedule:
    """Base class of schedules.

    A schedule of your own overrides `__call__` with functions of `keras.ops`, and `get_config`;
    files of its models load if its class is registered with Keras.
    """

    def __call__(self, step):
        """Return `(due, rate)` of a training step.

        Args:
            step: Scalar integer tensor, 1 or more.

        Returns:
            A scalar boolean tensor, and a scalar float32 tensor in [0, 1].
        """
        raise NotImplementedError

    def get_config(self):
        """Return the arguments of the constructor."""
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class _PruneRate(UpdateSchedule):
    """Schedule with updates at the multiples of `update_every`."""

    def __init__(self, prune_rate, update_every, start_step=0, stop_step=-1):
        self.prune_rate = check_prune_rate(prune_rate)
        self.update_every = check_update_every(update_every)
        for name, step in (("start_step", start_step), ("stop_step", stop_step)):
            if not isinstance(step, numbers.Real) or int(step) != step:
                raise ValueError(f"`{name}` must be a whole number of steps; received {step!r}.")
        self.start_step = int(start_step)
        self.stop_step = int(stop_step)
        if self.start_step < 0:
            raise ValueError(f"`start_step` must be 0 or more; received {start_step}.")
        if self.stop_step != -1 and self.stop_step < self.start_step:
            raise ValueError(
                "`stop_step` must be -1 (never) or at least `start_step`; received "
                f"start_step={start_step}, stop_step={stop_step}."
            )

    def _due(self, step):
        # Step 0 is before the first training step.
        begun = step >= max(1, self.start_step)
        due = ops.logical_and(begun, step % self.update_every == 0)
        return due if self.stop_step == -1 else ops.logical_and(due, step <= self.stop_step)

    def get_config(self):
        return {
            "prune_rate": self.prune_rate,
            "update_every": self.update_every,
            "start_step": self.start_step,
            "stop_step": self.stop_step,
        }


class ConstantPruneRate(_PruneRate):
    """Schedule with the same prune rate at every update, as in the paper.

    Args:
        prune_rate: Share of the active weights that an update exchanges, in (0, 1].
        update_every: Training steps between updates (the paper's exploration frequency),
            1 or more; updates take place at its multiples.
        start_step: First training step that may have an update.
        stop_step: Last training step that may have an update; -1 for no limit.

    Raises:
        ValueError: for values outside these ranges.
    """

    def __call__(self, step):
        return self._due(step), ops.convert_to_tensor(self.prune_rate, "float32")


class CosinePruneRate(_PruneRate):
    """Schedule whose prune rate falls to zero along half a cosine, as in RigL (Evci et al. 2021).

    Args:
        prune_rate: Prune rate at the start, in (0, 1].
        update_every: Training steps between updates, 1 or more.
        start_step: First training step that may have an update.
        stop_step: Training step at which the prune rate reaches zero; must be given.

    Raises:
        ValueError: for values outside these ranges.
    """

    def __init__(self, prune_rate, update_every, start_step=0, stop_step=-1):
        super().__init__(prune_rate, update_every, start_step, stop_step)
        if self.stop_step <= self.start_step:
            raise ValueError(
                "`stop_step` must be given for a cosine decay and be larger than `start_step`; "
                f"received start_step={start_step}, stop_step={stop_step}."
            )

    def __call__(self, step):
        progress = (ops.cast(step, "float32") - self.start_step) / (
            self.stop_step - self.start_step
        )
        progress = ops.clip(progress, 0.0, 1.0)
        return self._due(step), self.prune_rate * 0.5 * (1.0 + ops.cos(np.pi * progress))


class _Sparsity(UpdateSchedule):
    """Schedule of the sparsity, with updates every `frequency` steps from `begin_step` on."""

    def __init__(self, begin_step, end_step, frequency):
        if begin_step < 0:
            raise ValueError(f"`begin_step` must be 0 or more; received {begin_step}.")
        if end_step != -1 and end_step < begin_step:
            raise ValueError(
                f"`end_step` must be at least `begin_step`; received begin_step={begin_step}, "
                f"end_step={end_step}."
            )
        if frequency <= 0:
            raise ValueError(f"`frequency` must be 1 or more; received {frequency}.")
        self.begin_step = begin_step
        self.end_step = end_step
        self.frequency = frequency

    def _due(self, step):
        due = ops.logical_and(
            step >= self.begin_step, (step - self.begin_step) % self.frequency == 0
        )
        return due if self.end_step == -1 else ops.logical_and(due, step <= self.end_step)

    def get_config(self):
        return dict(vars(self))


class ConstantSparsity(_Sparsity):
    """Schedule with the same value at every update, like the toolkit's `ConstantSparsity`.

    Args:
        target_sparsity: The value, in [0, 1).
        begin_step: Step of the first update.
        end_step: Last step that may have an update; -1 for no limit.
        frequency: Steps between updates.

    Raises:
        ValueError: for values outside these ranges.
    """

    def __init__(self, target_sparsity, begin_step, end_step=-1, frequency=100):
        super().__init__(begin_step, end_step, frequency)
        self.target_sparsity = _check_sparsity("target_sparsity", target_sparsity)

    def __call__(self, step):
        return self._due(step), ops.convert_to_tensor(self.target_sparsity, "float32")


class PolynomialDecay(_Sparsity):
    """Schedule of gradual pruning (Zhu & Gupta 2017), like the toolkit's `PolynomialDecay`.

    The sparsity goes from `initial_sparsity` to `final_sparsity`, fast at first:
    `final + (initial - final) * (1 - progress) ** power`.

    Args:
        initial_sparsity: Sparsity at `begin_step`, in [0, 1).
        final_sparsity: Sparsity at `end_step`, in [0, 1).
        begin_step: Step of the first update.
        end_step: Step of the last update.
        power: Exponent.
        frequency: Steps between updates.

    Raises:
        ValueError: for values outside these ranges.
    """

    def __init__(
        self, initial_sparsity, final_sparsity, begin_step, end_step, power=3, frequency=100
    ):
        if end_step == -1:
            raise ValueError("`end_step` must be given for a decay; received -1.")
        super().__init__(begin_step, end_step, frequency)
        self.initial_sparsity = _check_sparsity("initial_sparsity", initial_sparsity)
        self.final_sparsity = _check_sparsity("final_sparsity", final_sparsity)
        self.power = power

    def __call__(self, step):
        steps = ops.cast(step - self.begin_step, "float32")
        progress = ops.clip(steps / (self.end_step - self.begin_step), 0.0, 1.0)
        decayed = (self.initial_sparsity - self.final_sparsity) * (1 - progress) ** self.power
        return self._due(step), decayed + self.final_sparsity


_SCHEDULES = {
    cls.__name__: cls
    for cls in (ConstantPruneRate, CosinePruneRate, ConstantSparsity, PolynomialDecay)
}


def make_schedule(schedule, prune_rate, update_every, start_step=0, stop_step=-1):
    """Return the schedule of the name `"constant"` or `"cosine"`, or a given schedule.

    The toolkit's `ConstantSparsity` and `PolynomialDecay` become those of this module, which work
    on all backends.

    Raises:
        ValueError: for anything else, and for another schedule of the toolkit on a backend other
            than TensorFlow.
    """
    if isinstance(schedule, UpdateSchedule):
        return schedule
    if _is_of_toolkit(schedule):
        name = type(schedule).__name__
        if type(schedule).__module__.startswith(TOOLKIT) and name in _SCHEDULES:
            return _SCHEDULES[name].from_config(schedule.get_config()["config"])
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                f"`schedule` {name} is a PruningSchedule of {TOOLKIT}, which computes with "
                f"TensorFlow; on the backend {keras.backend.backend()!r}, derive it from "
                "keras_sparse_dm.sparsity.UpdateSchedule."
            )
        return schedule
    named = {"constant": ConstantPruneRate, "cosine": CosinePruneRate}
    if not isinstance(schedule, str) or schedule not in named:
        raise ValueError(
            f"`schedule` must be one of {', '.join(map(repr, named))} or an UpdateSchedule or a "
            f"PruningSchedule of {TOOLKIT}; received {schedule!r}."
        )
    return named[schedule](prune_rate, update_every, start_step, stop_step)


def _is_of_toolkit(schedule):
    # By name, because the toolkit may be missing, and takes seconds to load.
    bases = type(schedule).__mro__
    return any(b.__module__.startswith(TOOLKIT) and b.__name__ == "PruningSchedule" for b in bases)


def next_update(schedule, done):
    """Return the first step after `done` at which a schedule is due.

    Args:
        schedule: The schedule.
        done: Number of steps so far.

    Returns:
        The step; None after the last update, or for a custom schedule.
    """
    if isinstance(schedule, _PruneRate):
        every, begin, end = schedule.update_every, 0, schedule.stop_step
        first = max(schedule.start_step, every)
    elif isinstance(schedule, _Sparsity):
        every, begin, end = schedule.frequency, schedule.begin_step, schedule.end_step
        first = begin
    else:
        return None
    after = max(done + 1, first)
    due = begin + -(-(after - begin) // every) * every
    return due if end == -1 or due <= end else None


def check_reaches_its_end(schedule):
    """Raise a ValueError for a `PolynomialDecay` whose last update is before its end."""
    if not isinstance(schedule, PolynomialDecay):
        return
    short = (schedule.end_step - schedule.begin_step) % schedule.frequency
    if short:
        last = schedule.end_step - short
        raise ValueError(
            f"`schedule` ends at step {schedule.end_step}, but its last update comes at step "
            f"{last}, before it has reached sparsity {schedule.final_sparsity}: `end_step` - "
            f"`begin_step` must be a multiple of its frequency {schedule.frequency}, as with "
            f"end_step={last}."
        )


def serialize_schedule(schedule):
    """Return the configuration of a schedule, also a custom one, for `deserialize_schedule`."""
    config = schedule.get_config()
    # The toolkit nests the arguments in its configuration.
    config = config.get("config", config)
    return {"class_name": keras.saving.get_registered_name(type(schedule)), "config": config}


def deserialize_schedule(config):
    """Return the schedule of a configuration from `serialize_schedule`.

    Raises:
        ValueError: for a class that is not registered with Keras.
    """
    name = config["class_name"]
    cls = _SCHEDULES.get(name) or keras.saving.get_registered_object(name)
    if cls is None:
        raise ValueError(
            f"Unknown schedule class {name!r}: decorate it with "
            "`keras.saving.register_keras_serializable()` and import it before loading."
        )
    return cls.from_config(config["config"])


def check_prune_rate(prune_rate):
    """Return `prune_rate` as a float; raise a ValueError unless it is in (0, 1]."""
    try:
        value = float(prune_rate)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0.0 < value <= 1.0:
        raise ValueError(f"`prune_rate` must be a number in (0, 1]; received {prune_rate!r}.")
    return value


def check_update_every(update_every):
    """Return `update_every` as an integer; raise a ValueError unless it is 1 or more."""
    if isinstance(update_every, numbers.Real) and not isinstance(update_every, bool):
        if update_every >= 1 and float(update_every).is_integer():
            return int(update_every)
    raise ValueError(
        f"`update_every` must be a whole number of steps, 1 or more; received {update_every!r}."
    )


def _check_sparsity(name, sparsity):
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"`{name}` must be in [0, 1); received {sparsity!r}.")
    return sparsity
