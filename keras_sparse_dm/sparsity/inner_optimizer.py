"""The optimizer inside: whether it can train sparsely, its state, and its step."""

from collections import defaultdict

import keras

from keras_sparse_dm import _keras
from keras_sparse_dm.layers.kernel_mask import variable_beside
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.sparsity.topology_update import masked

tensorflow = lazy_module("keras_sparse_dm.sparsity.tensorflow")

# Ftrl divides by state that is zero where weights are pruned, and the state of
# MultiOptimizer is not accessible.
UNSUPPORTED = ("Ftrl", "MultiOptimizer")
# Their update of a weight depends on the others too, so that pruned weights have to be put
# back to zero after it.
MIXING = ("Muon",)
# Adafactor divides the mean squares of a row and a column by their product; where both are
# pruned whole, only this keeps it from 0 / 0.
ADAFACTOR_EPSILON = 1e-16
# State that holds nothing from one step to the next, and so need not be zero where pruned.
SCRATCH = {"Adafactor": ("velocity",)}


def slots(optimizer, variables):
    """Find the state that a built optimizer keeps of each variable it trains.

    An optimizer makes per-weight state by the public `add_variable_from_reference`. A second
    optimizer of the same class and configuration, whose state has no elements, is built for the
    same variables and records these calls; the state is then found by name and order.

    Args:
        optimizer: A built `keras.optimizers.Optimizer`, which is not changed.
        variables: The variables that it was built for, in that order.

    Returns:
        List parallel to `variables` of `{name: variable}`, as `{"momentum": ..., "velocity":
        ..., "average": ...}`.
    """
    found = [{} for _ in variables]
    by_name = defaultdict(list)
    for variable in optimizer.variables:
        by_name[variable.name].append(variable)
    scratch = [name for cls in type(optimizer).__mro__ for name in SCRATCH.get(cls.__name__, ())]
    for place, name, full_name in _calls(optimizer, variables):
        # Two variables of one name are in the order of the calls.
        state = by_name[full_name].pop(0)
        if name not in scratch:
            found[place][name] = state
    return found


def _calls(optimizer, variables):
    """List `(place of the variable, name, name of the state)` as `build` makes the state."""
    # Without elements, so that the state has none, and with the path and the number of axes.
    stand_ins = [variable_beside(v, v.name, (0,) * len(v.shape), v.dtype) for v in variables]
    places = {id(v): i for i, v in enumerate(stand_ins)}
    calls = []

    class Recorder(type(optimizer)):
        def add_variable_from_reference(self, reference_variable, name=None, initializer="zeros"):
            state = super().add_variable_from_reference(reference_variable, name, initializer)
            calls.append((places[id(reference_variable)], name or "var", state.name))
            return state

    try:
        recorder = Recorder.from_config(optimizer.get_config())
    except Exception as error:  # a class of the user's own may fail in any way
        raise ValueError(
            f"`inner_optimizer` {type(optimizer).__name__} cannot be made again from its "
            f"`get_config()`, which sparse training needs to tell whose state is whose: {error}"
        ) from error
    recorder.build(stand_ins)
    return calls


def check_inner(inner):
    """Raise a ValueError for an optimizer that `SparseOptimizer` cannot wrap."""
    if not isinstance(inner, keras.optimizers.Optimizer):
        raise ValueError(
            f"`inner_optimizer` must be a keras.optimizers.Optimizer; received {inner!r}."
        )
    if getattr(inner, "inner_optimizer", None) is not None:
        raise ValueError(
            f"`inner_optimizer` must not wrap another; received {inner!r}. Put "
            "loss scaling outside: LossScaleOptimizer(SparseOptimizer(...))."
        )
    if is_one_of(inner, UNSUPPORTED):
        raise ValueError(
            f"`inner_optimizer` must update each weight from its own gradient and state; "
            f"{type(inner).__name__} does not, and would let pruned weights change. "
            "Use AdamW, Adam, SGD, RMSprop, Lion or another."
        )
    epsilon = getattr(inner, "epsilon_1", 1.0)
    if is_one_of(inner, ("Adafactor",)) and epsilon < ADAFACTOR_EPSILON:
        raise ValueError(
            "`inner_optimizer` Adafactor divides 0 by 0 where a row and a column of a kernel "
            f"are pruned, unless `epsilon_1` is at least {ADAFACTOR_EPSILON}; received "
            f"epsilon_1={epsilon}."
        )


def is_one_of(optimizer, names):
    """Tell whether an optimizer's class, or one that it derives from, has one of these names."""
    return bool({cls.__name__ for cls in type(optimizer).__mro__} & set(names))


def apply_masked(inner, pairs, masks):
    """Apply an optimizer to masked gradients.

    Args:
        inner: The optimizer.
        pairs: List of `(variable, gradient or None)`, gradients summed over the replicas.
        masks: `{key of a variable: mask}`.
    """
    variables = [variable for variable, _ in pairs]

    def masked_gradients():
        own = [(masks.get(_keras.variable_key(inner, v)), g) for v, g in pairs]
        return [g if m is None or g is None else masked(m, g) for m, g in own]

    if keras.backend.backend() != "tensorflow":
        inner.apply(masked_gradients(), variables)
        return
    if tensorflow.in_a_replica():
        tensorflow.apply_summed(inner, masked_gradients(), variables)
    elif inner.gradient_accumulation_steps or not tensorflow.runs_in_any_order():
        inner.apply(masked_gradients(), variables)
    elif inner.clipnorm or inner.global_clipnorm or inner.clipvalue:
        tensorflow.apply_in_turn(inner, masked_gradients(), variables, {})
    else:
        # Nothing looks at a gradient before the update of its variable.
        tensorflow.apply_in_turn(inner, [gradient for _, gradient in pairs], variables, masks)


def on_tensorflow(name, otherwise):
    """Return a function of `sparsity.tensorflow` there, and another on other backends."""
    if keras.backend.backend() != "tensorflow":
        return otherwise
    return getattr(tensorflow, name)
