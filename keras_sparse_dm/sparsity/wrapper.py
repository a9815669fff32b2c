"""Base of optimizer wrappers, with the members that only delegate."""

import keras
from keras import ops

from keras_sparse_dm import _keras


def own_values(variables):
    """Give variables values of their own after Keras has assigned other variables to them.

    On JAX both then share an array, which the next step would donate twice.
    """
    if keras.backend.backend() == "jax":
        for variable in variables:
            variable.assign(ops.copy(variable))


def serialized(optimizer):
    """Return an optimizer's configuration, which every backend can load.

    On PyTorch, Keras names a class of its own that only PyTorch has.
    """
    config = keras.saving.serialize_keras_object(optimizer)
    public = getattr(keras.optimizers, config["class_name"], None)
    if public is not None and isinstance(optimizer, public):
        config["module"] = "keras.optimizers"
    return config


class OptimizerWrapper(_keras.AveragesOfInner, keras.optimizers.Optimizer):
    """Optimizer that delegates its steps to an `inner_optimizer`.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        name: Name of the wrapper.
    """

    def __init__(self, inner_optimizer, name):
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer

    @property
    def variables(self):
        return super().variables + self.inner_optimizer.variables

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)
        own_values(var_list)

    @property
    def steps(self):
        """Number of optimizer steps so far."""
        return int(ops.convert_to_numpy(self.iterations))

    @property
    def accumulation_steps(self):
        """Number of batches in one step of the wrapped optimizer, 1 or more."""
        return self.inner_optimizer.gradient_accumulation_steps or 1

    # Keras's SwapEMAWeights looks through one wrapper, which may be loss scaling; then it finds
    # this one.
    @property
    def use_ema(self):
        # False while this wrapper is built, so that it creates no averages of its own.
        return self.built and self.inner_optimizer.use_ema

    @use_ema.setter
    def use_ema(self, value):
        pass

    def set_weights(self, weights):
        """Set all variables, including the wrapped optimizer's, for Keras's HDF5 files."""
        super().set_weights(weights)
        self.inner_optimizer.set_weights(weights[len(super().variables) :])
