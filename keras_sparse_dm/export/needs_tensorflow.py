"""Check of the backend, for formats that only TensorFlow writes."""

import keras


def check_backend(function):
    """Raise a ValueError unless Keras runs on TensorFlow.

    Args:
        function: Name of the function that needs TensorFlow.
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            f"{function} needs the backend 'tensorflow', but Keras runs on {backend!r}: save the "
            "model with `model.save`, and load and export it in a process with "
            "KERAS_BACKEND=tensorflow."
        )
