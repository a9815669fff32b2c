"""Functions of tensors that the backend compiles."""

import functools

from keras_sparse_dm.lazy import lazy_module

keras = lazy_module("keras")
ops = lazy_module("keras.ops")
jax = lazy_module("jax")
tf = lazy_module("tensorflow")
torch = lazy_module("torch")


def compiled(function, variables=tuple, assigned=(), shapes=None, dtypes=None, **options):
    """Return a function of tensors that the backend compiles, without gradients.

    TensorFlow traces a graph, JAX compiles a program for each shape of the tensors, and PyTorch
    runs the function as it is.

    Args:
        function: Takes tensors, and returns tensors.
        variables: Function that returns the variables that `function` reads. JAX passes their
            present values to the program; any other variable would be a constant of it.
        assigned: Variables that `function` reads and assigns.
        shapes, dtypes: Shapes and types of the tensors, with None for sizes that vary: TensorFlow
            then traces one graph for all of them.
        options: Arguments of `tf.function`.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        if shapes is not None:
            pairs = zip(shapes, dtypes, strict=True)
            options["input_signature"] = [tf.TensorSpec(*pair) for pair in pairs]
        return tf.function(function, **options)
    if backend == "torch":
        return _without_gradients(function)
    return _jitted(function, variables, assigned)


def _without_gradients(function):
    @functools.wraps(function)
    def without_gradients(*tensors):
        with torch.no_grad():
            return function(*tensors)

    return without_gradients


def _jitted(function, variables, assigned):
    @jax.jit
    def program(values, tensors):
        mapping = zip([*variables(), *assigned], values, strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            outputs = function(*tensors)
        return outputs, [scope.get_current_value(v) for v in assigned]

    @functools.wraps(function)
    def jitted(*tensors):
        values = [ops.convert_to_tensor(v) for v in [*variables(), *assigned]]
        outputs, new = program(values, tensors)
        for variable, value in zip(assigned, new, strict=True):
            variable.assign(value)
        return outputs

    return jitted
