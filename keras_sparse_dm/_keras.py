"""Every private name of Keras and TensorFlow that the package needs, behind a plain one.

A new version may change a private name without notice. Here is the one place to mend then:
`tests/test_keras_names.py` tests what each function promises, and another of its tests finds
private names anywhere else in the package.
"""

import contextlib
from dataclasses import dataclass

import keras

# Layers and their variables.


def flatten_layers(layer):
    """List a layer first and then all its sublayers, recursively, each once.

    Wraps `Layer._flatten_layers`; the public `Model.layers` lists one level, and of models only.
    """
    return list(layer._flatten_layers())


def own_variables(layer):
    """List a layer's own variables, trainable ones first, without those of its sublayers.

    Joins `Layer._trainable_variables` and `Layer._non_trainable_variables`; the public
    `Layer.variables` holds those of sublayers too.
    """
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def own_seed_generators(layer):
    """List a layer's own seed generators, without those of its sublayers.

    Reads `Layer._seed_generators`; no public attribute lists them.
    """
    return list(layer._seed_generators)


@contextlib.contextmanager
def unlocked(layer):
    """Unlock a layer while variables are added or removed, and lock it again if it was locked.

    Uses `Layer._tracker`; Keras locks a layer once it is built and has no public way back.
    """
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        yield
    finally:
        if locked:
            layer._tracker.lock()


def untrack(owner, variable):
    """Remove a variable from those of a layer or an optimizer.

    Calls `_untrack_variable`; the public `del layer.name` needs an attribute that holds the
    variable, and optimizers have no such thing.
    """
    owner._untrack_variable(variable)


def has_value(variable):
    """Tell whether a variable has been given its first value, and the memory for it.

    Reads `Variable._value`; the public `Variable.value` would compute a value.
    """
    return getattr(variable, "_value", None) is not None


def kernel_variable(layer):
    """Return the kernel variable of a built dense, einsum or convolution layer.

    Reads `_kernel`; the public `kernel` is a computed tensor under LoRA or quantization.
    """
    return layer._kernel


def attention_projections(layer):
    """List the projections of a built attention layer: query, key, value, gate and output.

    Reads `_query_dense` and its like; only some of them have a public property, and those of
    `GroupQueryAttention` have none.
    """
    names = ("_query_dense", "_key_dense", "_value_dense", "_gate_dense", "_output_dense")
    found = [getattr(layer, name, None) for name in names]
    return [projection for projection in found if projection is not None]


# Models.


def graph_nodes(model):
    """List the calls in a functional or built `Sequential` model, each after those it needs.

    Reads `Functional._nodes_by_depth`, and `Sequential._functional` for the graph inside; the
    public `Functional.operations` tells neither how often nor on what a layer was called.

    Returns:
        List of objects with `operation`, `input_tensors` and `output_tensors`; None for a model
        of another kind.
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
    from keras.src.ops.node import Node

    return isinstance(value, Node)


def has_compiled_loss(model):
    """Tell whether `compile` was given a loss or metrics.

    Looks for the metric that Keras calls "compile_metrics"; no public attribute tells of metrics.
    """
    return model.loss is not None or "compile_metrics" in model.metrics_names


def record_compiled_optimizer(model, optimizer):
    """Put an optimizer in the place of the one that `compile` recorded for saving.

    Changes `Model._compile_config`; calling the public `compile` again would reset more.
    """
    model._compile_config.config["optimizer"] = optimizer


@contextlib.contextmanager
def object_sharing_scope():
    """Share again, on loading, what two layers shared on saving, as `Model.save` does.

    Enters `keras.src.saving.serialization_lib.ObjectSharingScope`, which is not exported.
    """
    from keras.src.saving.serialization_lib import ObjectSharingScope

    with ObjectSharingScope():
        yield


# Optimizers.


def track(optimizer, variable):
    """Add a variable to those of an optimizer.

    Calls `Optimizer._track_variable`; the public `add_variable` makes a new variable.
    """
    optimizer._track_variable(variable)


def variable_key(optimizer, variable):
    """Return the key by which an optimizer knows a variable, on all replicas the same.

    Calls `Optimizer._var_key`; Keras exports no such key.
    """
    return optimizer._var_key(variable)


def trained_variables(optimizer):
    """List the model's variables that an optimizer trains; empty before it is built.

    Reads `Optimizer._trainable_variables`; the public `Optimizer.variables` lists its own.
    """
    return list(getattr(optimizer, "_trainable_variables", None) or [])


def averages(optimizer):
    """List an optimizer's moving averages (EMA), parallel to the variables that it trains.

    Reads `Optimizer._model_variables_moving_average`; the public `Optimizer.variables` does not
    say which ones are averages.

    Returns:
        List of variables, with None where one has no average; None without averages.
    """
    found = getattr(optimizer, "_model_variables_moving_average", None)
    return list(found) if found else None


class AveragesOfInner:
    """Mixin of an optimizer whose averages are those of its `inner_optimizer`.

    Defines `_model_variables_moving_average`, which is where Keras's callback `SwapEMAWeights`
    looks for them, one wrapper deep.
    """

    @property
    def _model_variables_moving_average(self):
        return self.inner_optimizer._model_variables_moving_average


def batches_seen(optimizer):
    """Return the variable that counts the batches an optimizer has been given.

    Reads `Optimizer._iterations`; under gradient accumulation the public `Optimizer.iterations`
    counts updates.
    """
    return optimizer._iterations


def check_known(optimizer, variables):
    """Raise Keras's own ValueError for variables that a built optimizer was not built for.

    Calls `Optimizer._check_variables_are_known`; the public `apply` would need gradients.
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
    """A variable without a value, on which an optimizer can be built.

    Has the `_unique_id` that Keras's optimizers for TensorFlow ask a variable for.
    """

    shape: tuple
    dtype: str
    name: str = ""
    path: str = ""
    _unique_id: int = 0

    @classmethod
    def of(cls, variable, number=0):
        """Describe a variable; each needs a number of its own."""
        shape = tuple(variable.shape)
        return cls(shape, variable.dtype, variable.name, variable.path, number)


# TensorFlow.


def shared_function(function, input_signature):
    """Return a `tf.function` that all its calls in a graph share, traced without autograph.

    Sets the attribute `_noinline`; TensorFlow otherwise copies the function into each call.
    """
    import tensorflow as tf

    return tf.function(
        function,
        input_signature=input_signature,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


def frozen(concrete_function):
    """Return a concrete function with its variables as constants and its loops as they are.

    Calls `tensorflow.python.framework.convert_to_constants`, which is not exported for
    TensorFlow 2.
    """
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    return convert_variables_to_constants_v2(concrete_function, lower_control_flow=False)


def write_loops_in_place(converter):
    """Make a `tf.lite.TFLiteConverter` write each step of a loop into the loop's output.

    Sets `_experimental_enable_dynamic_update_slice`, which has no public form; without it a loop
    copies the outputs of all steps in each.
    """
    converter._experimental_enable_dynamic_update_slice = True


def scale_whole_tensors(converter):
    """Make a `tf.lite.TFLiteConverter` quantize with one scale for each tensor.

    Sets `_experimental_disable_per_channel`, which has no public form.
    """
    converter._experimental_disable_per_channel = True
