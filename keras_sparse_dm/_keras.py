"""Functions around every private name of Keras and TensorFlow that the package uses.

New versions may change private names without notice. This file is then the only one to change:
`tests/test_keras_names.py` tests each function, and finds private names in the rest of the package.
"""

import contextlib
from dataclasses import dataclass

import keras
from keras.src.ops.node import Node
from keras.src.saving.serialization_lib import ObjectSharingScope

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


# Layers and their variables.


def flatten_layers(layer):
    """List a layer and all its sublayers, recursively, each once.

    Wraps `Layer._flatten_layers`; the public `Model.layers` lists one level only, and other layers
    lack it.
    """
    return list(layer._flatten_layers())


def own_variables(layer):
    """List a layer's own variables without those of its sublayers, trainable ones first.

    Joins `Layer._trainable_variables` and `Layer._non_trainable_variables`; the public
    `Layer.variables` includes sublayers.
    """
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def own_seed_generators(layer):
    """List a layer's own seed generators, without those of its sublayers.

    Reads `Layer._seed_generators`; no public attribute lists them.
    """
    return list(layer._seed_generators)


@contextlib.contextmanager
def unlocked(layer):
    """Unlock a layer in a context, to add or remove variables, and then restore its lock.

    Uses `Layer._tracker`; Keras locks a layer once it is built and has no public way to unlock it.
    """
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        yield
    finally:
        if locked:
            layer._tracker.lock()


def untrack(owner, variable):
    """Remove a variable from a layer or an optimizer.

    Calls `_untrack_variable`; the public `del layer.name` needs an attribute that holds the
    variable and does not work for optimizers.
    """
    owner._untrack_variable(variable)


def has_value(variable):
    """Tell if a variable is initialized, so that it holds memory.

    Reads `Variable._value`; the public `Variable.value` would initialize it.
    """
    return getattr(variable, "_value", None) is not None


def kernel_variable(layer):
    """Return the kernel variable of a built dense, einsum or convolution layer.

    Reads `_kernel`; with LoRA or quantization, the public `kernel` is a computed tensor.
    """
    return layer._kernel


def attention_projections(layer):
    """List the query, key, value, gate and output projections of a built attention layer.

    Reads `_query_dense` and similar attributes; only some have a public property, and
    `GroupQueryAttention` has none.
    """
    names = ("_query_dense", "_key_dense", "_value_dense", "_gate_dense", "_output_dense")
    found = [getattr(layer, name, None) for name in names]
    return [projection for projection in found if projection is not None]


# Models.


def graph_nodes(model):
    """List the calls in a functional or built `Sequential` model in topological order.

    Reads `Functional._nodes_by_depth`, and `Sequential._functional` for the graph inside; the
    public `Functional.operations` lacks the inputs and the number of calls of a layer.

    Returns:
        List of objects with `operation`, `input_tensors` and `output_tensors`; None for other
        models.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    by_depth = getattr(graph, "_nodes_by_depth", None)
    if by_depth is None:
        return None
    return [node for _, part in sorted(by_depth.items(), reverse=True) for node in part]


def is_graph_node(value):
    """Tell whether an object is the record of one call in a functional model.

    Imports `keras.src.ops.node.Node`, which is not exported.
    """
    return isinstance(value, Node)


def has_compiled_loss(model):
    """Tell if `compile` was given a loss or metrics.

    Looks for Keras's metric named "compile_metrics"; no public attribute shows the metrics.
    """
    return model.loss is not None or "compile_metrics" in model.metrics_names


def record_compiled_optimizer(model, optimizer):
    """Replace the optimizer that `compile` recorded for saving.

    Changes `Model._compile_config`; calling the public `compile` again would also reset metrics.
    """
    model._compile_config.config["optimizer"] = optimizer


@contextlib.contextmanager
def object_sharing_scope():
    """Save and load objects that several layers share as one object, as `Model.save` does.

    Enters `keras.src.saving.serialization_lib.ObjectSharingScope`, which Keras does not export.
    """
    with ObjectSharingScope():
        yield


# Optimizers.


def track(optimizer, variable):
    """Add an existing variable to an optimizer.

    Calls `Optimizer._track_variable`; the public `add_variable` creates a new variable.
    """
    optimizer._track_variable(variable)


def variable_key(optimizer, variable):
    """Return an optimizer's key of a variable, which is the same on all replicas.

    Calls `Optimizer._var_key`; Keras exports no such key.
    """
    return optimizer._var_key(variable)


def trained_variables(optimizer):
    """List the model's variables that an optimizer trains; empty before it is built.

    Reads `Optimizer._trainable_variables`; the public `Optimizer.variables` lists the optimizer's
    own variables.
    """
    return list(getattr(optimizer, "_trainable_variables", None) or [])


def averages(optimizer):
    """List an optimizer's moving averages (EMA) in the order of the variables that it trains.

    Reads `Optimizer._model_variables_moving_average`; the public `Optimizer.variables` does not
    show which variables are averages.

    Returns:
        List of variables, with None for a variable without an average; None without averages.
    """
    found = getattr(optimizer, "_model_variables_moving_average", None)
    return list(found) if found else None


class AveragesOfInner:
    """Mixin for an optimizer wrapper that exposes the averages of its `inner_optimizer`.

    Defines `_model_variables_moving_average`, which Keras's callback `SwapEMAWeights` reads, also
    through one wrapper.
    """

    @property
    def _model_variables_moving_average(self):
        return self.inner_optimizer._model_variables_moving_average


def batches_seen(optimizer):
    """Return the variable that counts the batches that an optimizer has received.

    Reads `Optimizer._iterations`; with gradient accumulation, the public `Optimizer.iterations`
    counts updates.
    """
    return optimizer._iterations


def check_known(optimizer, variables):
    """Raise Keras's ValueError for variables that a built optimizer was not built for.

    Calls `Optimizer._check_variables_are_known`; the public `apply` needs gradients.
    """
    optimizer._check_variables_are_known(variables)


class StepsOfItsOwn:
    """Mixin of an optimizer on TensorFlow whose steps can be taken one variable after another.

    Overrides `_apply_weight_decay`, `_update_model_variables_moving_average` and
    `_all_reduce_sum_gradients` beside the public `update_step`; Keras has no public hook around
    the work on a single variable. Classes that derive from it define the attributes.

    Attributes:
        turn_of: `turn_of(variable)` returns the context for the work on one variable.
        own_gradient: `own_gradient(gradient, variable)` returns what the update is to see.
        keras_variable: `keras_variable(variable)` returns the `keras.Variable` of a variable.
        in_turn: False leaves the order of the work to TensorFlow.
        summed: True where the gradients are summed over the replicas already.
    """

    turn_of = own_gradient = keras_variable = None
    in_turn = summed = False

    def _apply_weight_decay(self, variables):
        if not self.in_turn:  # Otherwise each turn decays its variable.
            super()._apply_weight_decay(variables)

    def update_step(self, gradient, variable, learning_rate):
        if not self.in_turn:
            super().update_step(gradient, variable, learning_rate)
            return
        with self.turn_of(variable):
            # `update_step` is given what a Keras variable holds.
            super()._apply_weight_decay([self.keras_variable(variable)])
            gradient = self.own_gradient(gradient, variable)
            super().update_step(gradient, variable, learning_rate)

    def _update_model_variables_moving_average(self, trainable_variables):
        if not self.in_turn:
            super()._update_model_variables_moving_average(trainable_variables)
            return
        # As Keras does it, which takes all variables at once.
        not_first = keras.ops.cast(keras.ops.not_equal(self.iterations, 0), "float32")
        averages = self._model_variables_moving_average
        for variable, average in zip(trainable_variables, averages, strict=True):
            if average is not None:
                with self.turn_of(average):
                    kept = keras.ops.cast(self.ema_momentum * not_first, variable.dtype)
                    average.assign(kept * average + (1 - kept) * variable)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars if self.summed else super()._all_reduce_sum_gradients(grads_and_vars)


@dataclass(frozen=True, eq=False)
class VariableDescription:
    """Description of a variable, without a value, for which an optimizer can be built.

    Has the `_unique_id` that Keras's optimizers for TensorFlow read.
    """

    shape: tuple
    dtype: str
    name: str = ""
    path: str = ""
    _unique_id: int = 0

    @classmethod
    def of(cls, variable, number=0):
        """Describe a variable; each variable needs its own number."""
        shape = tuple(variable.shape)
        return cls(shape, variable.dtype, variable.name, variable.path, number)


# TensorFlow.


def shared_function(function, input_signature):
    """Return a `tf.function` without autograph whose body is shared by all calls in a graph.

    Sets the attribute `_noinline`; TensorFlow otherwise copies the body into each call.
    """
    return tf.function(
        function,
        input_signature=input_signature,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


def frozen(concrete_function):
    """Return a concrete function with variables turned into constants and loops kept.

    Calls `tensorflow.python.framework.convert_to_constants`, which TensorFlow 2 does not export.
    """
    return convert_variables_to_constants_v2(concrete_function, lower_control_flow=False)


def write_loops_in_place(converter):
    """Make a `tf.lite.TFLiteConverter` write each step of a loop into the loop's output.

    Sets `_experimental_enable_dynamic_update_slice`, which has no public form; without it, every
    step copies the outputs of all steps.
    """
    converter._experimental_enable_dynamic_update_slice = True


def scale_whole_tensors(converter):
    """Make a `tf.lite.TFLiteConverter` quantize with one scale per tensor.

    Sets `_experimental_disable_per_channel`, which has no public form.
    """
    converter._experimental_disable_per_channel = True
