"""Example inputs of a model, made from shapes."""

import keras
import numpy as np


def example_inputs(model, inputs):
    """Return the inputs with each shape replaced by zeros of that shape.

    Args:
        model: The `keras.Model` to call; its symbolic inputs, if it has any, give the types.
        inputs: Arrays or tensors, shapes, or tuples, lists and dictionaries of these. A shape is a
            tuple or list of integers with the batch axis first (None counts as 1), or a
            `keras.KerasTensor` or `tf.TensorSpec`. If neither the model nor the shape gives a
            type, a shape with the batch axis only means integers, such as timesteps and lengths,
            and any other shape means floats.

    Raises:
        ValueError: for a shape with unknown axes other than the batch axis.
    """

    def marked(value):
        if isinstance(value, keras.KerasTensor) or type(value).__name__ == "TensorSpec":
            return _Shape(value.shape, getattr(value.dtype, "name", value.dtype))
        if isinstance(value, dict):
            return {key: marked(v) for key, v in value.items()}
        if not isinstance(value, (tuple, list)):
            return value
        if value and all(n is None or isinstance(n, (int, np.integer)) for n in value):
            return _Shape(value)
        return type(value)(marked(v) for v in value)

    structure = marked(inputs)
    leaves = keras.tree.flatten(structure)
    symbolic = keras.tree.flatten(getattr(model, "inputs", None) or [])
    types = [tensor.dtype for tensor in symbolic]
    if len(types) != len(leaves):
        types = [None] * len(leaves)
    leaves = [
        leaf.zeros(dtype) if isinstance(leaf, _Shape) else leaf
        for leaf, dtype in zip(leaves, types, strict=True)
    ]
    return keras.tree.pack_sequence_as(structure, leaves)


class _Shape:
    """Input that is given by its shape only."""

    def __init__(self, shape, dtype=None):
        self.shape = tuple(shape)
        self.dtype = dtype

    def zeros(self, dtype=None):
        shape = (1, *self.shape[1:]) if self.shape[:1] == (None,) else self.shape
        if any(n is None or n < 1 for n in shape):
            raise ValueError(
                "`inputs` must have known shapes with all axes 1 or longer, the batch axis first; "
                f"received {self.shape}."
            )
        dtype = self.dtype or dtype or ("int32" if len(shape) == 1 else "float32")
        # NumPy lacks some float types; layers cast their inputs anyway.
        return np.zeros(shape, "float32" if "float" in dtype else dtype)
