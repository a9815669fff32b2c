"""Conditional assignments in a step, on every backend."""

import keras
from keras import ops


def assign_if(condition, assign, variables):
    """Call a function that assigns variables if a condition holds.

    On TensorFlow and PyTorch the assignments are part of the branch, so variables that are not
    assigned are not copied. On JAX, branches are pure: they return the values of the variables,
    which are assigned afterwards. With donated buffers a branch that is not taken costs nothing.

    Args:
        condition: Scalar boolean tensor.
        assign: Function without arguments.
        variables: All variables that it assigns, each at most once.
    """
    if keras.backend.backend() != "jax":
        ops.cond(condition, assign, lambda: None)
        return

    def before():
        return [ops.convert_to_tensor(v) for v in variables]

    def after():
        with keras.StatelessScope(state_mapping=zip(variables, before(), strict=True)) as scope:
            assign()
        return [scope.get_current_value(v) for v in variables]

    for variable, value in zip(variables, ops.cond(condition, after, before), strict=True):
        variable.assign(value)
