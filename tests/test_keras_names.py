"""Private names of Keras, TensorFlow and the toolkit: their behaviour, and their places.

A canary tests the behaviour of each function in `keras_sparse_dm/_keras.py`. The canaries import
that file alone, so they still work if a new version of Keras breaks the import of the package.
"""

import ast
import configparser
import contextlib
import functools
import importlib
import importlib.util
import inspect
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "keras_sparse_dm"
FILE = PACKAGE / "_keras.py"


def _loaded_alone(file):
    spec = importlib.util.spec_from_file_location(f"{file.stem}_alone", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_keras = _loaded_alone(FILE)


# Canaries -----------------------------------------------------------------------------------


def canary(*names, of="Keras"):
    """Decorate the canary of a function that uses these private names."""

    def decorate(test):
        function = test.__name__.removeprefix("test_canary_")

        @functools.wraps(test)
        def told(*args, **kwargs):
            try:
                test(*args, **kwargs)
            except Exception as error:
                library = importlib.import_module(of.lower())
                pytest.fail(
                    f"{of} {library.__version__} has changed {' or '.join(names)}, on which "
                    f"keras_sparse_dm relies: fix `{function}` in keras_sparse_dm/_keras.py. "
                    f"({type(error).__name__}: {error})"
                )

        told.names = names
        return told

    return decorate


def on_tensorflow(test):
    """Skip a test on other backends than TensorFlow."""
    elsewhere = keras.backend.backend() != "tensorflow"
    return pytest.mark.skipif(elsewhere, reason="TensorFlow is not the backend")(test)


class Pair(keras.layers.Layer):
    """Layer with variables of each kind, a seed generator and two sublayers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Dense(3, name="first")
        self.second = keras.layers.Dense(3, name="second")
        self.again = self.first
        self.generator = keras.random.SeedGenerator(7)

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build((*input_shape[:-1], 3))
        self.scale = self.add_weight(name="scale", shape=(3,))
        self.count = self.add_weight(name="count", shape=(3,), trainable=False)

    def call(self, inputs):
        return self.second(self.first(inputs)) * self.scale


def make_pair():
    pair = Pair(name="pair")
    pair.build((None, 2))
    return pair


def make_variable(value=1.0, shape=(2, 3), **arguments):
    return keras.Variable(np.full(shape, value, "float32"), **arguments)


def make_optimizer(cls=keras.optimizers.Adam, number=2, **arguments):
    """Return a built optimizer and the variables that it trains."""
    variables = [make_variable(name=f"v{i}", shape=(2 + i, 3)) for i in range(number)]
    optimizer = cls(**arguments)
    optimizer.build(variables)
    return optimizer, variables


def make_compiled(**arguments):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", **arguments)
    return model


def are(found, wanted):
    """Tell if two lists hold the same objects in the same order."""
    return [id(one) for one in found] == [id(one) for one in wanted]


@canary("`Layer._flatten_layers`")
def test_canary_flatten_layers():
    pair, dense = make_pair(), keras.layers.Dense(1)
    assert are(_keras.flatten_layers(dense), [dense])
    # Each layer once, although one is held twice.
    assert are(_keras.flatten_layers(pair), [pair, pair.first, pair.second])
    inner = keras.Sequential([keras.Input((2,)), pair, dense])
    inputs = keras.Input((2,))
    model = keras.Model(inputs, inner(inputs))
    found = _keras.flatten_layers(model)
    wanted = [model, *model.layers, pair, pair.first, pair.second, dense]
    # Input layers of inner models may be included or not.
    found = [x for x in found if x in model.layers or not isinstance(x, keras.layers.InputLayer)]
    assert found[0] is model and sorted(map(id, found)) == sorted(map(id, wanted))
    # A layer comes after the layer that holds it.
    places = [found.index(layer) for layer in (model, inner, pair, pair.first)]
    assert places == sorted(places)


@canary("`Layer._trainable_variables`", "`Layer._non_trainable_variables`")
def test_canary_own_variables():
    pair = make_pair()
    assert are(_keras.own_variables(pair), [pair.scale, pair.count])
    assert are(_keras.own_variables(pair.first), [pair.first.kernel, pair.first.bias])
    pair.trainable = False
    assert are(_keras.own_variables(pair), [pair.scale, pair.count])
    # A copy, so that changing the list does not change the layer.
    _keras.own_variables(pair).clear()
    assert are(_keras.own_variables(pair), [pair.scale, pair.count])


@canary("`Layer._seed_generators`")
def test_canary_own_seed_generators():
    pair = make_pair()
    assert are(_keras.own_seed_generators(pair), [pair.generator])
    dropout = keras.layers.Dropout(0.5, seed=1)
    assert are(_keras.own_seed_generators(dropout), [dropout.seed_generator])
    assert _keras.own_seed_generators(keras.Sequential([dropout])) == []


@canary("`Layer._tracker`")
def test_canary_unlocked():
    pair = make_pair()

    def add():
        return pair.add_weight(name="late", shape=(1,), trainable=False)

    with pytest.raises(ValueError):
        add()
    with _keras.unlocked(pair):
        late = add()
        pair.held = late
    assert are(_keras.own_variables(pair), [pair.scale, pair.count, late])
    with pytest.raises(ValueError):
        add()
    with pytest.raises(KeyError), _keras.unlocked(pair):
        raise KeyError
    with pytest.raises(ValueError):
        add()
    # An unlocked layer stays unlocked.
    open_still = Pair()
    with _keras.unlocked(open_still):
        pass
    open_still.add_weight(name="late", shape=(1,))


@canary("`Layer._untrack_variable`", "`Optimizer._untrack_variable`")
def test_canary_untrack():
    pair = make_pair()
    _keras.untrack(pair, pair.count)
    assert are(_keras.own_variables(pair), [pair.scale])
    with pytest.raises(ValueError):  # locked as before
        pair.add_weight(name="late", shape=(1,))
    optimizer, _ = make_optimizer()
    before = optimizer.variables
    extra = optimizer.add_variable((2,), name="extra")
    assert are(optimizer.variables, [*before, extra])
    _keras.untrack(optimizer, extra)
    assert are(optimizer.variables, before)


@canary("`Variable._value`")
def test_canary_has_value():
    assert _keras.has_value(make_variable())
    with keras.StatelessScope(initialize_variables=False):
        variable = keras.Variable(initializer="zeros", shape=(2, 3))
    assert not _keras.has_value(variable)


@canary("`Dense._kernel`", "`EinsumDense._kernel`", "`BaseConv._kernel`")
def test_canary_kernel_variable():
    layers = [
        (keras.layers.Dense(4), (None, 3), (3, 4)),
        (keras.layers.EinsumDense("ab,bc->ac", 4), (None, 3), (3, 4)),
        (keras.layers.Conv1D(4, 2), (None, 9, 3), (2, 3, 4)),
        (keras.layers.Conv2D(4, 2), (None, 9, 9, 3), (2, 2, 3, 4)),
        (keras.layers.Conv3D(4, 2), (None, 9, 9, 9, 3), (2, 2, 2, 3, 4)),
    ]
    for layer, input_shape, shape in layers:
        layer.build(input_shape)
        kernel = _keras.kernel_variable(layer)
        assert kernel is layer.kernel and isinstance(kernel, keras.Variable)
        assert tuple(kernel.shape) == shape
        layer.enable_lora(1)
        assert _keras.kernel_variable(layer) is kernel
        # If this becomes a variable too, use the public name.
        assert not isinstance(layer.kernel, keras.Variable)


@canary("`MultiHeadAttention._query_dense` or one of its like")
def test_canary_attention_projections():
    layer = keras.layers.MultiHeadAttention(num_heads=2, key_dim=4, value_dim=5)
    layer.build((None, 7, 8), (None, 7, 8))
    found = _keras.attention_projections(layer)
    assert are(found, [layer.query_dense, layer.key_dense, layer.value_dense, layer.output_dense])
    layer = keras.layers.GroupQueryAttention(head_dim=4, num_query_heads=2, num_key_value_heads=1)
    layer.build((None, 7, 8), (None, 7, 8))
    found = _keras.attention_projections(layer)
    shapes = [tuple(projection.kernel.shape) for projection in found]
    assert shapes == [(8, 2, 4), (8, 1, 4), (8, 1, 4), (2, 4, 8)]
    # All kernels of the layer belong to them, including those of a gate.
    layer = keras.layers.MultiHeadAttention(num_heads=2, key_dim=4, use_gate=True)
    layer.build((None, 7, 8), (None, 7, 8))
    found = _keras.attention_projections(layer)
    assert len(found) == 5
    kernels = [v for v in layer.variables if v.name == "kernel"]
    assert {id(v) for v in kernels} == {id(_keras.kernel_variable(part)) for part in found}


@canary("`Functional._nodes_by_depth`", "`Sequential._functional`")
def test_canary_graph_nodes():
    shared, joined = keras.layers.Dense(2, name="shared"), keras.layers.Add(name="joined")
    one, two = keras.Input((2,), name="one"), keras.Input((2,), name="two")
    model = keras.Model([one, two], joined([shared(one), shared(two)]))
    nodes = _keras.graph_nodes(model)
    names = [node.operation.name for node in nodes]
    assert sorted(names[:2]) == ["one", "two"]
    assert names[2:] == ["shared", "shared", "joined"]
    assert nodes[-1].operation is joined
    outputs = {id(tensor) for node in nodes[2:4] for tensor in node.output_tensors}
    assert {id(tensor) for tensor in nodes[-1].input_tensors} == outputs
    assert {id(node.input_tensors[0]) for node in nodes[2:4]} == {id(one), id(two)}
    assert are(nodes[-1].output_tensors, model.outputs)
    assert are(nodes[-1].outputs, model.outputs)

    sequential = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="dense")])
    nodes = _keras.graph_nodes(sequential)
    assert [node.operation.name for node in nodes][1:] == ["dense"]
    assert are(nodes[-1].outputs, sequential.outputs)
    assert _keras.graph_nodes(keras.Sequential([keras.layers.Dense(2)])) is None

    class Subclassed(keras.Model):
        pass

    assert _keras.graph_nodes(Subclassed()) is None


def test_canary_is_graph_node():
    inputs, layer = keras.Input((2,)), keras.layers.Dense(2)
    model = keras.Model(inputs, layer(inputs))
    node = _keras.graph_nodes(model)[-1]
    assert _keras.is_graph_node(node)
    assert not any(map(_keras.is_graph_node, [layer, model, inputs, "node"]))
    # A model calls the operation of each node.
    node.operation = keras.layers.Activation(lambda x: 7.0 + 0 * x)
    assert np.all(np.asarray(model(np.ones((1, 2)))) == 7.0)


@canary('the metric "compile_metrics"', "`Model.loss`")
def test_canary_has_compiled_loss():
    x, y = np.ones((4, 2)), np.ones((4, 1))
    assert not _keras.has_compiled_loss(make_compiled())
    for arguments in ({"loss": "mse"}, {"loss": "mse", "metrics": ["mae"]}):
        model = make_compiled(**arguments)
        assert _keras.has_compiled_loss(model)
        model.train_on_batch(x, y)
        assert _keras.has_compiled_loss(model)
    assert _keras.has_compiled_loss(make_compiled(metrics=["mae"]))
    assert _keras.has_compiled_loss(make_compiled(weighted_metrics=["mae"]))


@canary("`Model._compile_config`")
def test_canary_record_compiled_optimizer(tmp_path):
    model = make_compiled(loss="mse")
    recorded = model.optimizer = keras.optimizers.Adam(0.25)
    _keras.record_compiled_optimizer(model, recorded)
    assert model.get_compile_config()["optimizer"]["class_name"] == "Adam"
    assert model.get_compile_config()["loss"] == "mse"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(recorded)
    assert float(loaded.optimizer.learning_rate) == 0.25


class Twice(keras.layers.Layer):
    """Layer made of two other layers, which may be the same."""

    def __init__(self, one, two, **kwargs):
        super().__init__(**kwargs)
        self.one, self.two = one, two

    def get_config(self):
        parts, serialized = (self.one, self.two), keras.saving.serialize_keras_object
        return dict(zip(("one", "two"), map(serialized, parts), strict=True))

    @classmethod
    def from_config(cls, config):
        return cls(**{k: keras.saving.deserialize_keras_object(v) for k, v in config.items()})


@canary("`keras.src.saving.serialization_lib.ObjectSharingScope`")
def test_canary_object_sharing_scope():
    shared = keras.layers.Dense(1)
    layer = Twice(shared, shared)

    def restored(scope):
        with scope():
            config = keras.saving.serialize_keras_object(layer)
        with scope():
            found = keras.saving.deserialize_keras_object(config, {"Twice": Twice})
        return found.one is found.two

    assert restored(_keras.object_sharing_scope)
    # Sharing ends with the scope.
    assert not restored(contextlib.nullcontext)


@canary("`Optimizer._track_variable`")
def test_canary_track():
    optimizer, _ = make_optimizer()
    before, extra = optimizer.variables, make_variable(name="extra", trainable=False)
    _keras.track(optimizer, extra)
    assert are(optimizer.variables, [*before, extra])


@canary("`Optimizer._var_key`")
def test_canary_variable_key():
    optimizer, variables = make_optimizer()
    keys = [_keras.variable_key(optimizer, variable) for variable in variables]
    assert len(set(keys)) == 2
    # `update_step` receives the content of the variable, which is a variable itself.
    if keras.backend.backend() == "tensorflow":
        assert keys == [_keras.variable_key(optimizer, v.value) for v in variables]
    other, _ = make_optimizer(keras.optimizers.SGD)
    assert keys == [_keras.variable_key(other, variable) for variable in variables]


@canary("`Optimizer._trainable_variables`")
def test_canary_trained_variables():
    assert _keras.trained_variables(keras.optimizers.Adam()) == []
    assert _keras.trained_variables(None) == []
    optimizer, variables = make_optimizer()
    assert are(_keras.trained_variables(optimizer), variables)


@canary("`Optimizer._model_variables_moving_average`")
def test_canary_averages():
    assert _keras.averages(None) is None
    assert _keras.averages(make_optimizer()[0]) is None
    assert _keras.averages(keras.optimizers.Adam(use_ema=True)) is None
    optimizer, variables = make_optimizer(use_ema=True, ema_momentum=0.5)
    found = _keras.averages(optimizer)
    assert [tuple(v.shape) for v in found] == [tuple(v.shape) for v in variables]
    assert {id(v) for v in found} <= {id(v) for v in optimizer.variables}
    optimizer.apply([keras.ops.ones(v.shape) for v in variables])
    optimizer.apply([keras.ops.ones(v.shape) for v in variables])
    assert not np.array_equal(found[0], variables[0])
    # Keras moves these into the weights.
    wanted = [np.array(v) for v in found]
    optimizer.finalize_variable_values(variables)
    for variable, value in zip(variables, wanted, strict=True):
        np.testing.assert_array_equal(variable, value)


@canary("`SwapEMAWeights`, which looks for `Optimizer._model_variables_moving_average`")
def test_canary_AveragesOfInner():
    class Outer(_keras.AveragesOfInner, keras.optimizers.Optimizer):
        use_ema = property(lambda self: self.built, lambda self, value: None)
        variables = property(lambda self: self.inner_optimizer.variables)

        def __init__(self, inner):
            super().__init__(learning_rate=0.0)
            self.inner_optimizer = inner

        def build(self, variables):
            self.inner_optimizer.build(variables)
            super().build(variables)

        def apply(self, grads, trainable_variables=None):
            self.inner_optimizer.apply(grads, trainable_variables)

        def finalize_variable_values(self, var_list):
            self.inner_optimizer.finalize_variable_values(var_list)

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = Outer(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))
    optimizer.build(model.trainable_variables)
    assert are(_keras.averages(optimizer), _keras.averages(optimizer.inner_optimizer))
    model.compile(optimizer, "mse")
    seen = {}

    def keep(name):
        seen[name] = [np.array(v) for v in model.trainable_variables]

    callbacks = [
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: keep("trained")),
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: keep("averaged")),
    ]
    model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=2, callbacks=callbacks, verbose=0)
    assert not np.array_equal(seen["trained"][0], seen["averaged"][0])


@canary("`Optimizer._iterations`")
def test_canary_batches_seen():
    optimizer, variables = make_optimizer(gradient_accumulation_steps=2)
    assert isinstance(_keras.batches_seen(optimizer), keras.Variable)
    for _ in range(3):
        optimizer.apply([keras.ops.ones(v.shape) for v in variables])
    assert int(_keras.batches_seen(optimizer)) == 3 and int(optimizer.iterations) == 1
    optimizer, _ = make_optimizer()
    assert _keras.batches_seen(optimizer) is optimizer.iterations


OPTIMIZERS = (
    *("SGD", "RMSprop", "Adam", "AdamW", "Adadelta", "Adagrad", "Adamax", "Nadam", "Lion"),
    *("Lamb", "Adafactor", "Muon"),
)


@canary("`Optimizer._check_variables_are_known`")
def test_canary_check_known():
    optimizer, variables = make_optimizer()
    _keras.check_known(optimizer, variables[:1])
    with pytest.raises(ValueError):
        _keras.check_known(optimizer, [*variables, make_variable()])


def seen_as(optimizer, **steps):
    """Return the same optimizer as one of a class that steps as `StepsOfItsOwn` says."""
    cls = type("Seen", (_keras.StepsOfItsOwn, type(optimizer)), steps)
    view = object.__new__(cls)
    object.__setattr__(view, "__dict__", vars(optimizer))
    return view


@pytest.mark.cases(1)
@on_tensorflow
@canary(
    "`Optimizer._apply_weight_decay`",
    "`Optimizer._update_model_variables_moving_average`",
    "`Optimizer._all_reduce_sum_gradients`",
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_canary_StepsOfItsOwn(name):
    import tensorflow as tf

    arguments = {"learning_rate": 0.1, "weight_decay": 0.3, "use_ema": True, "ema_momentum": 0.7}
    cls, turns, trained = getattr(keras.optimizers, name), [], {}

    @contextlib.contextmanager
    def turn_of(variable):
        value = variable.value if isinstance(variable, keras.Variable) else variable
        turns.append(value.shape[0])
        yield

    def train(how):
        optimizer, variables = make_optimizer(cls, **arguments)
        own = {_keras.variable_key(optimizer, v): v for v in variables}
        ways = {
            "plain": optimizer,
            "in order": seen_as(optimizer, in_turn=False),
            "summed": seen_as(optimizer, summed=True),
            "in turn": seen_as(
                optimizer,
                in_turn=True,
                turn_of=staticmethod(turn_of),
                own_gradient=staticmethod(lambda gradient, variable: gradient * 1.0),
                keras_variable=staticmethod(lambda v: own[_keras.variable_key(optimizer, v)]),
            ),
        }
        for step in range(3):
            ways[how].apply([tf.fill(v.shape, 0.5 + step) for v in variables], variables)
        trained[how] = [np.array(v) for v in optimizer.variables + variables]

    for how in ("plain", "in order", "summed", "in turn"):
        train(how)
        for value, plain in zip(trained[how], trained["plain"], strict=True):
            np.testing.assert_allclose(value, plain, rtol=1e-6)
    # Decay with update, and average, of variables with 2 and 3 rows.
    assert turns == [2, 3, 2, 3] * 3

    # Gradients that are summed already are not summed again, and the update sees its own.
    seen = []

    class Watched(cls):
        def _all_reduce_sum_gradients(self, grads_and_vars):
            seen.append("sum")
            return super()._all_reduce_sum_gradients(grads_and_vars)

        def update_step(self, gradient, variable, learning_rate):
            seen.append(float(gradient[0, 0]))
            super().update_step(gradient, variable, learning_rate)

    optimizer, variables = make_optimizer(Watched, number=1, **arguments)
    gradients = [tf.ones(v.shape) for v in variables]
    seen_as(optimizer, summed=True).apply(gradients, variables)
    assert seen == [1.0]
    seen_as(optimizer).apply(gradients, variables)
    assert seen == [1.0, "sum", 1.0]
    steps = {
        "turn_of": lambda _, variable: turn_of(variable),
        "own_gradient": lambda _, g, v: 2 * g,
        "keras_variable": lambda _, v: variables[0],
    }
    seen_as(optimizer, in_turn=True, **steps).apply(gradients, variables)
    assert seen[3:] == ["sum", 2.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
@canary("what an optimizer asks a variable for when it is built, such as `_unique_id`")
def test_canary_VariableDescription(name):
    variables = [make_variable(name=f"v{i}", shape=(2, 3)) for i in range(2)]
    cls, made = getattr(keras.optimizers, name), []
    optimizer = cls(use_ema=True)

    def add_variable(shape, initializer="zeros", dtype=None, **_):
        made.append(_keras.VariableDescription(tuple(shape), dtype or "float32"))
        return made[-1]

    def add_variable_from_reference(reference_variable, name=None, initializer="zeros"):
        return add_variable(reference_variable.shape, initializer, reference_variable.dtype)

    optimizer.add_variable = add_variable
    optimizer.add_variable_from_reference = add_variable_from_reference
    described = [_keras.VariableDescription.of(v, i) for i, v in enumerate(variables)]
    assert described[0].shape == (2, 3) and described[0].dtype == "float32"
    optimizer.build(described)
    assert len(_keras.averages(optimizer)) == 2
    real = cls(use_ema=True)
    before = len(real.variables)
    real.build(variables)
    wanted = [tuple(v.shape) for v in real.variables[before:]]
    # Nadam makes a scalar more in another way.
    assert sorted(v.shape for v in made) == sorted(shape for shape in wanted if shape)


@on_tensorflow
@canary("the attribute `_noinline`", of="TensorFlow")
def test_canary_shared_function():
    import tensorflow as tf

    function = _keras.shared_function(lambda x: x + 1, [tf.TensorSpec((), "int32")])
    outer = tf.function(lambda x: function(x) * function(x + 1))
    graph = outer.get_concrete_function(tf.TensorSpec((), "int32")).graph.as_graph_def()
    called = {n.attr["f"].func.name for n in graph.node if "PartitionedCall" in n.op}
    assert len(called) == 1
    (inner,) = [f for f in graph.library.function if f.signature.name in called]
    assert inner.attr["_noinline"].b
    assert int(outer(tf.constant(1))) == 6


@on_tensorflow
@canary("`tensorflow.python.framework.convert_to_constants`", of="TensorFlow")
def test_canary_frozen():
    import tensorflow as tf

    variable = tf.Variable([[2.0]])

    @tf.function(input_signature=[tf.TensorSpec((1, 1), "float32", name="x")])
    def function(x):
        return tf.while_loop(lambda x: tf.reduce_sum(x) < 100.0, lambda x: (x @ variable,), (x,))[0]

    frozen = _keras.frozen(function.get_concrete_function())
    graph = frozen.graph.as_graph_def()
    ops = {n.op for n in graph.node} | {n.op for f in graph.library.function for n in f.node_def}
    assert not frozen.variables and not ops & {"ReadVariableOp", "VarHandleOp"}
    # A loop stays one operation, which the converter supports.
    assert {"While", "StatelessWhile"} & ops and "Switch" not in ops
    assert float(frozen(tf.constant([[3.0]]))[0][0, 0]) == 192.0
    assert converted(frozen)


def converted(concrete_function, change=lambda converter: None):
    """Return the content of a `.tflite` file."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete_function])
    change(converter)
    return converter.convert()


@on_tensorflow
@canary("`TFLiteConverter._experimental_enable_dynamic_update_slice`", of="TensorFlow")
def test_canary_write_loops_in_place():
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((4, 3), "float32", name="x")])
    def function(x):
        array = tf.TensorArray("float32", 4, element_shape=(3,))
        loop = tf.while_loop(
            lambda i, _: i < 4,
            lambda i, array: (i + 1, array.write(i, 2.0 * x[i])),
            (tf.constant(0), array),
        )
        return loop[1].stack()

    frozen = _keras.frozen(function.get_concrete_function())
    assert b"DYNAMIC_UPDATE_SLICE" not in names_of_operators(converted(frozen))
    found = names_of_operators(converted(frozen, _keras.write_loops_in_place))
    assert b"DYNAMIC_UPDATE_SLICE" in found


def names_of_operators(content):
    """Return the names of the operators in the subgraphs of a `.tflite` file."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    assert interpreter.Interpreter(model_content=content)
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    numbers = {max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes}
    operators = vars(schema.BuiltinOperator)
    return {name.encode() for name, number in operators.items() if number in numbers}


@on_tensorflow
@canary("`TFLiteConverter._experimental_disable_per_channel`", of="TensorFlow")
def test_canary_scale_whole_tensors():
    import tensorflow as tf

    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    kernel = tf.constant(np.random.default_rng(0).normal(size=(64, 64)), "float32")
    function = tf.function(lambda x: x @ kernel).get_concrete_function(
        tf.TensorSpec((1, 64), "float32", name="x")
    )

    def scales(change):
        def quantized(converter):
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            change(converter)

        model = schema.ModelT.InitFromPackedBuf(converted(function, quantized), 0)
        tensors = [t for t in model.subgraphs[0].tensors if t.type == schema.TensorType.INT8]
        return [len(t.quantization.scale) for t in tensors]

    assert scales(lambda converter: None) == [64]
    assert scales(_keras.scale_whole_tensors) == [1]


def functions_of(tree):
    """List the public functions and classes that a module defines."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]


def test_every_function_for_a_private_name_has_a_canary():
    tested = {n.removeprefix("test_canary_") for n in globals() if n.startswith("test_canary_")}
    functions = set(functions_of(ast.parse(FILE.read_text(encoding="utf-8"))))
    assert functions == tested, (
        "Give every public function of keras_sparse_dm/_keras.py a canary "
        "`test_canary_<its name>` in this file, and remove those of functions that are gone."
    )


@pytest.mark.slow
def test_every_function_for_a_private_name_is_needed():
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")]
    imports = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    ours = [node for node in imports if node.module == f"{PACKAGE.name}.{FILE.stem}"]
    used = {alias.name for node in ours for alias in node.names}
    # Also as `_keras.name`.
    attributes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    used |= {n.attr for n in attributes if getattr(n.value, "id", None) == FILE.stem}
    unused = set(functions_of(ast.parse(FILE.read_text(encoding="utf-8")))) - used
    assert not unused, "Remove what nothing uses any more from keras_sparse_dm/_keras.py."


def test_what_has_changed_is_told_with_the_place_to_mend(monkeypatch):
    monkeypatch.delattr(keras.layers.Layer, "_flatten_layers")
    with pytest.raises(pytest.fail.Exception) as caught:
        test_canary_flatten_layers()
    assert str(caught.value).startswith(
        f"Keras {keras.__version__} has changed `Layer._flatten_layers`, on which keras_sparse_dm "
        "relies: fix `flatten_layers` in keras_sparse_dm/_keras.py."
    )


# Private names elsewhere --------------------------------------------------------------------

# Names of the standard library, of NumPy and of other formats, none of them Keras's or
# TensorFlow's: `{(file, name): reason}`.
ALLOWED = {
    ("__init__.py", "_initializing"): "the only sign of a module in the middle of its import",
    ("convert/pytorch.py", "_class_name"): "a key of the configuration files of diffusers",
    ("convert/original.py", "_reverse"): "the end of PyTorch's names for the weights of a GRU",
    ("convert/tensor_files.py", "numpy._core.multiarray.scalar"): "a name inside of pickles",
    ("convert/tensor_files.py", "_codecs.encode"): "a name inside of pickles",
    ("data/formats/restricted_pickle.py", "numpy._core.multiarray"): "a name inside of pickles",
    ("data/formats/restricted_pickle.py", "numpy._core.numeric"): "a name inside of pickles",
    ("data/formats/restricted_pickle.py", "_codecs"): "a name inside of pickles",
    ("data/formats/restricted_pickle.py", "_frombuffer"): "a name inside of pickles",
    ("data/formats/restricted_pickle.py", "_reconstruct"): "a name inside of pickles",
    ("data/formats/restricted_pickle.py", "_Unpickler"): "its public twin cannot be restricted",
    ("data/worker_processes.py", "_exit"): "documented as `os._exit`",
    ("study/worker.py", "_exit"): "documented as `os._exit`",
    ("metrics/intervals.py", "_asdict"): "documented for named tuples",
}

# Private modules without a private name.
PRIVATE_MODULES = (
    *("keras.src", "keras._tf_keras", "tensorflow.python", "tensorflow.core"),
    *("tensorflow.lite.python", "tensorflow.lite.tools", "tensorflow.compiler", "tf.python"),
    *("tensorflow.__internal__", "tf.__internal__", "tensorflow_model_optimization.python"),
)
PRIVATE = re.compile(r"_[A-Za-z0-9]\w*")
PRIVATE_PATH = re.compile(r"([A-Za-z]\w*\.)*_[A-Za-z0-9]\w*(\.\w+)*")
# Definitions of private names in the source of a class.
DEFINITION = re.compile(r"(?:\bdef |\bself\.|\bcls\.|\bobj\.|\blayer\.)(_[A-Za-z0-9]\w*)")


def is_private(name):
    return PRIVATE.fullmatch(name) is not None


def path_of(node):
    """Return the dotted path of an expression such as `keras.layers.Dense`, else ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        path = path_of(node.value)
        return path and f"{path}.{node.attr}"
    return ""


@functools.cache
def private_names_in(file):
    """Return the private names that the classes of a Python file define."""
    return frozenset(DEFINITION.findall(Path(file).read_text(encoding="utf-8")))


@functools.cache
def private_names_of(cls):
    """Return the private names of another library's class and of its objects."""
    names = {name for name in dir(cls) if is_private(name)}
    for base in inspect.getmro(cls) if isinstance(cls, type) else ():
        # Some classes are not written in Python.
        with contextlib.suppress(OSError, TypeError):
            names |= set(DEFINITION.findall(inspect.getsource(base)))
    kinds = (keras.layers.Layer, keras.optimizers.Optimizer)
    if isinstance(cls, type) and issubclass(cls, kinds):
        names |= private_names_of_backends()
    return frozenset(names)


@functools.cache
def private_names_of_backends():
    """Return the private names of layers, models and optimizers on every backend of Keras."""
    folder = Path(inspect.getfile(keras.layers.Layer)).parents[1] / "backend"
    patterns = ("*/layer.py", "*/trainer.py", "*/optimizer*.py", "*/optimizers/*.py")
    files = [file for pattern in patterns for file in folder.glob(pattern)]
    torch = importlib.util.find_spec("torch")
    if torch is not None:  # found, and not imported
        files.append(Path(torch.origin).parent / "nn" / "modules" / "module.py")
    return frozenset().union(*map(private_names_in, files))


@functools.cache
def private_names_of_keras():
    """Return the private names of all Keras classes that the package uses."""
    classes = (
        *(keras.layers.Layer, keras.Model, keras.Sequential, keras.optimizers.Optimizer),
        *(keras.Variable, keras.KerasTensor, keras.random.SeedGenerator, keras.metrics.Metric),
        *(keras.callbacks.Callback, keras.initializers.Initializer),
        *(keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention, keras.layers.Dense),
        *(keras.layers.EinsumDense, keras.layers.Conv2D, keras.layers.SeparableConv2D),
        *(keras.layers.GRU, keras.layers.GRUCell, keras.layers.Bidirectional, keras.layers.RNN),
        *(keras.layers.BatchNormalization, keras.layers.GroupNormalization),
        type(keras.Model(inputs := keras.Input((1,)), inputs)),
        *(getattr(keras.optimizers, name) for name in (*OPTIMIZERS, "LossScaleOptimizer")),
    )
    return frozenset().union(*map(private_names_of, classes))


@dataclass
class OurClass:
    """Source of a class of the package."""

    file: str
    line: int
    name: str
    # As written in the file.
    bases: list
    # Meaning of the bases' first names in the file.
    imports: dict
    defined: set = field(default_factory=set)
    # `(line, name)` of names used on `self`, `cls` and `super()`.
    used: list = field(default_factory=list)
    calls_super: bool = False


class Reader(ast.NodeVisitor):
    """Visitor that records the private names that a file defines and uses."""

    def __init__(self, file, package):
        self.file, self.package = file, package
        self.defined = set()
        self.classes = []
        # `(line, name)` of names used on other objects, and of strings.
        self.used, self.strings, self.modules = [], [], []
        self.imports = {}
        self.inside = []
        self.not_names = set()

    def visit_Import(self, node):
        for alias in node.names:
            self.note_module(node, alias.name)
            self.imports[alias.asname or alias.name.split(".")[0]] = (
                alias.name if alias.asname else alias.name.split(".")[0]
            )

    def visit_ImportFrom(self, node):
        for alias in node.names:
            path = f"{node.module or ''}.{alias.name}"
            self.note_module(node, path)
            self.imports[alias.asname or alias.name] = path

    def note_module(self, node, path):
        private = any(is_private(part) for part in path.split("."))
        if not path.startswith(f"{self.package}.") and (private or is_private_module(path)):
            self.modules.append((node.lineno, path))

    def visit_ClassDef(self, node):
        self.define(node.name)
        ours = OurClass(
            self.file, node.lineno, node.name, list(map(path_of, node.bases)), self.imports
        )
        for child in node.body:
            targets = [child.target] if isinstance(child, ast.AnnAssign) else []
            targets += child.targets if isinstance(child, ast.Assign) else []
            ours.defined |= {t.id for t in targets if isinstance(t, ast.Name)}
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                ours.defined.add(child.name)
        self.classes.append(ours)
        self.inside.append(ours)
        self.visit_docstring(node)
        self.generic_visit(node)
        self.inside.pop()
        self.defined |= set(filter(is_private, ours.defined))

    def visit_FunctionDef(self, node):
        self.define(node.name)
        self.visit_docstring(node)
        self.generic_visit(node)

    def visit_Module(self, node):
        self.visit_docstring(node)
        for child in node.body:
            targets = child.targets if isinstance(child, ast.Assign) else []
            for target in targets:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        self.define(part.id)
        self.generic_visit(node)

    def visit_docstring(self, node):
        if ast.get_docstring(node) is not None:
            self.not_names.add(id(node.body[0].value))

    def define(self, name):
        if is_private(name):
            self.defined.add(name)

    def visit_Attribute(self, node):
        if is_private_module(path_of(node)):
            self.modules.append((node.lineno, path_of(node)))
        if is_private(node.attr):
            on_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            on_super = isinstance(node.value, ast.Call) and path_of(node.value.func) == "super"
            if self.inside and (on_self or on_super):
                if on_self and isinstance(node.ctx, ast.Store):
                    self.inside[-1].defined.add(node.attr)
                self.inside[-1].used.append((node.lineno, node.attr))
            else:
                self.used.append((node.lineno, node.attr))
        self.generic_visit(node)

    def visit_Call(self, node):
        function = path_of(node.func)
        if self.inside and function == "super":
            self.inside[-1].calls_super = True
        if function in ("getattr", "setattr", "hasattr", "delattr"):
            name = node.args[1]
            start = name.values[0] if isinstance(name, ast.JoinedStr) else None
            if isinstance(start, ast.Constant) and start.value.startswith("_"):
                self.strings.append((node.lineno, ast.unparse(name)))
        # Attributes set on another library's object past its `__setattr__`.
        if function == "object.__setattr__":
            self.define(node.args[1].value)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "setdefault":
            if ast.unparse(node.func.value).startswith("vars("):
                self.define(node.args[0].value)
        self.generic_visit(node)

    def visit_JoinedStr(self, node):
        self.not_names |= {id(value) for value in node.values}
        self.generic_visit(node)

    def visit_Constant(self, node):
        text = node.value
        if isinstance(text, str) and id(node) not in self.not_names:
            if PRIVATE_PATH.fullmatch(text) or is_private_module(text):
                self.strings.append((node.lineno, text))


def is_private_module(path):
    return any(path == module or path.startswith(f"{module}.") for module in PRIVATE_MODULES)


def private_names_of_others(folder):
    """List `(file, line, name, reason)` of other libraries' private names in a package."""
    readers = []
    for file in sorted(folder.rglob("*.py")):
        if file != folder / FILE.name:
            reader = Reader(file.relative_to(folder).as_posix(), folder.name)
            reader.visit(ast.parse(file.read_text(encoding="utf-8")))
            readers.append(reader)
    ours = frozenset().union(*(reader.defined for reader in readers))
    # One reason for each place.
    found = {}
    for reader in readers:
        for line, path in reader.modules:
            found[reader.file, line, path] = "a private module"
        for line, name in reader.used + reader.strings:
            if name in private_names_of_keras():
                found[reader.file, line, name] = "Keras has this name"
            elif name not in ours:
                found[reader.file, line, name] = "nothing in the package defines it"
    for family in families([cls for reader in readers for cls in reader.classes], folder):
        for cls in family.classes:
            for line, name in cls.used:
                if name not in family.defined:
                    found[cls.file, line, name] = f"{cls.name} does not define it"
        first = family.classes[0]
        for name in filter(is_private, family.defined & family.of_others):
            why = f"{first.name} and a base from another library define it"
            found[first.file, first.line, name] = why
    return sorted((*place, why) for place, why in found.items())


@dataclass
class Family:
    """Class of the package with its bases in the package and the names of its other bases."""

    classes: list
    defined: set
    of_others: set


def families(classes, folder):
    """Yield a `Family` for each class of the package."""
    by_path = {}
    for cls in classes:
        module = f"{folder.name}.{cls.file.removesuffix('.py').replace('/', '.')}"
        by_path[f"{module.removesuffix('.__init__')}.{cls.name}"] = cls
    for path, cls in by_path.items():
        every, of_others = [], set()
        queue = [(path, cls)]
        while queue:
            path, one = queue.pop()
            every.append(one)
            for base in filter(None, one.bases):
                first, dot, rest = base.partition(".")
                full = one.imports.get(first, f"{path.rpartition('.')[0]}.{first}") + dot + rest
                if full.startswith(f"{folder.name}."):
                    # By name too, because a package's `__init__` exports imported names.
                    name = full.rpartition(".")[2]
                    found = {full: by_path[full]} if full in by_path else by_path
                    queue += [(p, c) for p, c in found.items() if c.name == name]
                else:
                    of_others |= private_names_of(imported(full))
        # A mixin, whose other bases come later, or a class with a base known only at run time.
        if "" in cls.bases or (cls.calls_super and not cls.bases):
            of_others |= private_names_of_keras()
        yield Family(every, {name for one in every for name in one.defined}, of_others)


def imported(path):
    """Return the object at a path such as `keras.layers.Dense`; None if not installed."""
    parts = path.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            return functools.reduce(
                getattr, parts[depth:], importlib.import_module(".".join(parts[:depth]))
            )
    return None


@pytest.mark.slow
def test_no_private_name_outside_of_the_one_file():
    found = private_names_of_others(PACKAGE)
    lines = [
        f"{file}:{line}: {name}: {why}"
        for file, line, name, why in found
        if (file, name) not in ALLOWED
    ]
    assert not lines, (
        "Private names of other libraries belong in keras_sparse_dm/_keras.py, behind a function "
        "with a canary; rename one of our own that Keras has too:\n" + "\n".join(lines)
    )
    assert not ALLOWED.keys() - {(file, name) for file, _, name, _ in found}, "allowed, and gone"


USES = {
    "layer._flatten_layers()": "_flatten_layers",
    "layer._flatten_layers = None": "_flatten_layers",
    "converter._experimental_flag = True": "_experimental_flag",
    "getattr(layer, '_tracker', None)": "_tracker",
    "getattr(layer, f'_{kind}_dense')": "f'_{kind}_dense'",
    "for name in ('_query_dense', '_key_dense'): pass": "_key_dense",
    "vars(layer)['_tracker']": "_tracker",
    "vars(layer).setdefault('_tracker', 1)": "_tracker",
    "object.__setattr__(layer, '_losses', [])": "_losses",
    "from keras.src.layers import Dense": "keras.src.layers.Dense",
    "import tensorflow.python.eager": "tensorflow.python.eager",
    "from tensorflow import python": "tensorflow.python",
    "from numpy import _core": "numpy._core",
    "keras.src.layers": "keras.src.layers",
    "tf.__internal__.tracking": "tf.__internal__.tracking",
    "importlib.import_module('keras.src.layers')": "keras.src.layers",
    # Defined here, but also a name of Keras.
    "class A:\n  _tracker = None\nlayer._tracker": "_tracker",
    # In a class with a base in another library.
    "class A(keras.layers.Layer):\n  def call(self): self._losses = []": "_losses",
    "class A(keras.layers.Layer):\n  def call(self): return self._losses": "_losses",
    "class A(keras.layers.Layer):\n  def call(self): super()._lock": "_lock",
    "class A(keras.layers.Layer):\n  def _post_build(self): pass": "_post_build",
    # Only on PyTorch.
    "class A(keras.layers.Layer):\n  def _torch_params(self): pass": "_torch_params",
    # In a mixin, and in a class with an unknown base.
    "class A(B, keras.layers.Dense): pass\nclass B:\n  def b(self): self._kernel": "_kernel",
    "class A(B, keras.layers.Dense): pass\nclass B:\n  def b(self): self._kernel = 1": "_kernel",
    "class A:\n  def b(self): self._losses = super().b()": "_losses",
    "class A(type(layer)):\n  def call(self): self._losses = []": "_losses",
}


@pytest.mark.parametrize("code", USES)
def test_a_private_name_is_found(code, tmp_path):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "module.py").write_text(f"import keras\n\n{code}\n")
    # The only file that may use private names.
    (package / "_keras.py").write_text(code)
    assert USES[code] in {name for _, _, name, _ in private_names_of_others(package)}


OWN = """
    '''_tracker'''
    import pathlib as _pathlib
    import keras
    from some_package._keras import flatten_layers
    from some_package.other import Other, _own

    _LIMIT = 3


    def _helper(layer):
        '''_tracker'''
        vars(layer).setdefault("_kept", 1)
        object.__setattr__(layer, "_set", 1)
        return f"{layer}_tracker", layer._mark, layer._kept, layer._set, layer.__dict__


    class Mixin:
        _mark = None

        def _values(self):
            self._known = 1
            return self._mark, self._known


    class Layer(Mixin, Other):
        def call(self):
            self._lock_of_mine = self._values(), self._own_name, super()._values()
"""


def test_private_names_of_its_own_are_left_to_a_package(tmp_path):
    package = tmp_path / "some_package"
    package.mkdir()
    other = """
        import keras

        class Other(keras.layers.Layer):
            def _own_name(self):
                pass


        # No class of Keras's.
        class Lock:
            def __init__(self):
                self._lock = 1
                print(self._lock)


        _own = 3
    """
    (package / "module.py").write_text(textwrap.dedent(OWN))
    (package / "other.py").write_text(textwrap.dedent(other))
    assert private_names_of_others(package) == []


def test_every_dependency_has_an_upper_bound():
    settings = configparser.ConfigParser()
    settings.read(PACKAGE.parent / "setup.cfg")
    extras = dict(settings["options.extras_require"])
    lists = [settings["options"]["install_requires"], *map(extras.get, extras)]
    lines = [line for text in lists for line in text.splitlines()]
    named = [line for line in lines if line and not line.startswith(("#", "%"))]
    unbound = {re.split(r"[>=;]", line)[0] for line in named if "<" not in line}
    # One has dates as versions, the other has frequent new major versions.
    assert unbound == {"kanjivg", "setuptools"}
    keras_bounds = next(line for line in named if re.split(r"[>=;]", line)[0] == "keras")
    least, most = re.fullmatch(r"keras>=(\d+\.\d+),<(\d+\.\d+)", keras_bounds).groups()
    version = ".".join(keras.__version__.split(".")[:2])
    assert as_numbers(least) <= as_numbers(version) < as_numbers(most)


def as_numbers(version):
    return tuple(map(int, version.split(".")))
