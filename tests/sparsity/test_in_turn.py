"""Compiled steps on TensorFlow: one large variable after another, and nothing copied for it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sparse_dm as ksd
from keras_sparse_dm.sparsity import tensorflow as steps

LARGE = 300  # Side of a kernel above `LARGE` elements.


def compiled_step(optimizer, layers=4):
    """Return a compiled step of a sparse network with large kernels, and the model."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((LARGE,))])
    for _ in range(layers):
        model.add(keras.layers.Dense(LARGE, activation="tanh"))
    model.compile(optimizer, "mse")
    ksd.sparsify(model, 0.5, seed=0)
    ksd.sparse_optimizer(model, method="static")
    x = keras.random.normal((4, LARGE), seed=1)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x) ** 2)
        variables = model.trainable_variables
        model.optimizer.apply(tape.gradient(loss, variables), variables)

    return step, model


def operations(step):
    return step.get_concrete_function().graph.get_operations()


def before(operation):
    """List all operations that run before another."""
    found, left = set(), [operation]
    while left:
        op = left.pop()
        for other in [*op.control_inputs, *(tensor.op for tensor in op.inputs)]:
            if other not in found:
                found.add(other)
                left.append(other)
    return found


@pytest.mark.tensorflow
@pytest.mark.cases(1)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_large_kernels_are_updated_from_the_last_to_the_first(optimizer):
    assert LARGE**2 >= steps.LARGE
    step, model = compiled_step(optimizer)
    kernels = [v for v in model.trainable_variables if len(v.shape) == 2]
    handles = {v.value.handle.ref(): i for i, v in enumerate(kernels)}
    graph = step.get_concrete_function().graph
    places = {inner.ref(): handles.get(outer.ref()) for outer, inner in graph.captures}
    updates = [[] for _ in kernels]
    for op in graph.get_operations():
        # Other assignments put the guards' constraint into effect, after all updates.
        if op.type == "AssignSubVariableOp" and places.get(op.inputs[0].ref()) is not None:
            updates[places[op.inputs[0].ref()]].append(op)
    assert all(updates)
    for following, own in zip(updates[1:], updates, strict=False):
        assert all(set(following) <= before(op) for op in own)


@pytest.mark.slow
def test_no_step_makes_later_reads_copy_a_kernel():
    """Forbid gather and scatter, because TensorFlow copies their variable whenever it is read."""
    step, model = compiled_step("adamw")
    step()
    types = {op.type for op in operations(step)}
    assert not [name for name in types if "Gather" in name or "Scatter" in name]


def test_a_step_without_gradients_changes_nothing():
    """Keras's optimizers change nothing either."""
    _, model = compiled_step("adamw", layers=1)
    before = model.get_weights()
    tf.function(lambda: model.optimizer.apply([], []))()
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.slow
@pytest.mark.cases(4)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "nadam"])
@pytest.mark.parametrize("clip", [{}, {"clipnorm": 0.01}, {"global_clipnorm": 0.01}])
def test_the_turns_change_no_number(optimizer, clip):
    """An eager step takes no turns."""
    trained = {}
    for eager in (False, True):
        chosen = keras.optimizers.get({"class_name": optimizer, "config": clip})
        step, model = compiled_step(chosen, layers=2)
        tf.config.run_functions_eagerly(eager)
        try:
            for _ in range(3):
                step()
        finally:
            tf.config.run_functions_eagerly(False)
        trained[eager] = model.get_weights()
    for compiled, plain in zip(trained[False], trained[True], strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-4, atol=1e-5)
