"""Train on two logical CPU devices and on one; `test_replicas.py` checks the results."""

import contextlib
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import keras_sparse_dm as ksd  # noqa: E402
from keras_sparse_dm.layers import SparseDense  # noqa: E402
from keras_sparse_dm.sparsity import (  # noqa: E402
    Blocks,
    check_invariant,
    masked_kernels,
    sparse_optimizer,
)

FOLDER = Path(sys.argv[1])
STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(48, n)).astype("float32") for n in (8, 4))
RESULTS = {}


def scope(strategy):
    return strategy.scope() if strategy else contextlib.nullcontext()


def adam():
    return keras.optimizers.AdamW(0.01, global_clipnorm=0.3, use_ema=True)


def make(
    strategy,
    optimizer=adam,
    eager=True,
    layer=keras.layers.Dense,
    sparsify_inside=False,
    **options,
):
    keras.utils.set_random_seed(0)
    options = {"sparsity": 0.5, "distribution": "uniform", "seed": 1} | options
    with scope(strategy):
        model = keras.Sequential([keras.Input((8,)), layer(16, "tanh"), layer(4)])
        if sparsify_inside:
            ksd.sparsify(model, **options)
        model.compile(optimizer(), "mse", run_eagerly=eager)
    if not sparsify_inside:
        ksd.sparsify(model, **options)
    return model


def fit(model, method="rigl", first=0, steps=4, **options):
    options = {"update_every": 2, "prune_rate": 0.4, "seed": 0} | options
    callback = ksd.DynamicSparsity(method, **options)
    part = slice(8 * first, 8 * (first + steps))
    model.fit(X[part], Y[part], batch_size=8, verbose=0, shuffle=False, callbacks=[callback])
    check_invariant(model)
    return model


def copies(variable):
    strategy = getattr(variable.value, "distribute_strategy", None)
    if strategy is None:
        return np.asarray(variable)[None]
    return np.stack([np.asarray(v) for v in strategy.experimental_local_results(variable.value)])


def record(case, model, single, start):
    for i, v in enumerate(model.trainable_variables):
        RESULTS[f"{case}/weight/{i}"] = copies(v)
    for i, v in enumerate(single.trainable_variables):
        RESULTS[f"{case}/single_weight/{i}"] = np.asarray(v)
    for i, k in enumerate(masked_kernels(model)):
        RESULTS[f"{case}/mask/{i}"] = copies(k.mask)
    for i, k in enumerate(masked_kernels(single)):
        RESULTS[f"{case}/single_mask/{i}"] = np.asarray(k.mask)
    for i, mask in enumerate(start):
        RESULTS[f"{case}/start/{i}"] = mask


def masks(model):
    return [np.asarray(k.mask) for k in masked_kernels(model)]


def compare(case, method="rigl", policy="float32", eager=True, training=None, **options):
    keras.config.set_dtype_policy(policy)
    pair = [make(s, eager=eager, **options) for s in (STRATEGY, None)]
    start = masks(pair[0])
    for model in pair:
        fit(model, method, **(training or {}))
    keras.config.set_dtype_policy("float32")
    record(case, *pair, start)


# In a compiled function; then saved, loaded inside and outside of the scope, and resumed.
two, one = make(STRATEGY, eager=False), make(None, eager=False)
first = masks(two)
for model in (two, one):
    fit(model)
record("rigl", two, one, first)
two.save(FOLDER / "two.keras")
fit(one, first=4, steps=2)
RESULTS["updates"] = np.array(one.optimizer.topology_updates)
for case, strategy in (("loaded_inside", STRATEGY), ("loaded_outside", None)):
    with scope(strategy):
        model = keras.models.load_model(FOLDER / "two.keras")
        check_invariant(model)
    model.run_eagerly = True
    fit(model, first=4, steps=2)
    record(case, model, one, first)

compare("averaged", training={"gradient_steps": 2}, sparsify_inside=True)
compare(
    "global",
    training={"competition": "global", "grow_init": "normal"},
    optimizer=lambda: keras.optimizers.SGD(0.05, momentum=0.9, clipnorm=0.1),
)
compare("magran", "magran", layer=SparseDense)
compare("set", "set", optimizer=lambda: keras.optimizers.RMSprop(0.01, clipvalue=0.01))
compare("snfs", "snfs", structure=Blocks(4))
compare(
    "gmp",
    "gmp",
    training={"schedule": PolynomialDecay(0.2, 0.5, 0, 4, frequency=2)},
    dense_start=True,
)
compare("static", "static")
compare("muon", optimizer=lambda: keras.optimizers.Muon(0.01, use_ema=True), layer=SparseDense)
compare("mixed_float16", policy="mixed_float16", eager=False)

# A custom loop on two replicas, compared with `fit` on one.
model = make(STRATEGY)
with STRATEGY.scope():
    optimizer = sparse_optimizer(model, adam(), update_every=2, prune_rate=0.4, seed=0)
different = []


@tf.function
def step(x, y):
    def of_replica(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2) / 2
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return gradients[0]

    return STRATEGY.run(of_replica, args=(x, y))


def split(batch):
    halves = np.split(batch, 2)
    return STRATEGY.experimental_distribute_values_from_function(
        lambda context: tf.constant(halves[context.replica_id_in_sync_group])
    )


for i in range(4):
    part = slice(8 * i, 8 * i + 8)
    halves = STRATEGY.experimental_local_results(step(split(X[part]), split(Y[part])))
    different.append(bool(np.any(halves[0].numpy() != halves[1].numpy())))
with STRATEGY.scope():  # as `fit` does at its end: averages become the weights
    optimizer.finalize_variable_values(model.trainable_variables)
RESULTS["gradients_differ"] = np.array(all(different))
record("loop", model, fit(make(None)), first)

# One replica under a strategy.
record("one_device", fit(make(tf.distribute.OneDeviceStrategy("CPU:0"))), fit(make(None)), first)


def accumulating():
    return keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)


with STRATEGY.scope():
    plain = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    plain.compile(accumulating(), "mse")
try:
    plain.fit(X[:8], Y[:8], verbose=0)
    RESULTS["accumulation_of_keras"] = np.array("works")
except RuntimeError as error:
    RESULTS["accumulation_of_keras"] = np.array(str(error))
model = make(STRATEGY, accumulating)
before = [np.array(v) for v in model.trainable_variables]
try:
    fit(model)
    RESULTS["accumulation"] = np.array("works")
except ValueError as error:
    RESULTS["accumulation"] = np.array(str(error))
RESULTS["accumulation_changed_nothing"] = np.array(
    all(np.array_equal(v, b) for v, b in zip(model.trainable_variables, before, strict=True))
    and type(model.optimizer) is keras.optimizers.SGD
)
np.savez(FOLDER / "results.npz", **RESULTS)
