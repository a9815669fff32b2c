"""Precision of a run's computations."""

import contextlib

import keras


@contextlib.contextmanager
def computing_in(precision):
    """Context in which new layers compute in a precision.

    Args:
        precision: Name of a Keras dtype policy: `"float32"`, `"mixed_bfloat16"` or
            `"mixed_float16"`.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
