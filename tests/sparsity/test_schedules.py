"""Schedules of topology updates and prune rates."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_model_optimization.sparsity import keras as toolkit

import keras_sparse_dm as ksd
from keras_sparse_dm.sparsity.schedules import (
    ConstantPruneRate,
    ConstantSparsity,
    CosinePruneRate,
    PolynomialDecay,
    deserialize_schedule,
    make_schedule,
    serialize_schedule,
)


def answers(schedule, steps):
    """Return `{due step: rate}` over a range of training steps, from one compiled call."""
    due, rate = tf.map_fn(
        schedule, tf.constant(list(steps), tf.int32), fn_output_signature=(tf.bool, tf.float32)
    )
    return {s: float(r) for s, d, r in zip(steps, due, rate, strict=True) if d}


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    update_every=st.integers(1, 12),
    start=st.integers(0, 40),
    length=st.one_of(st.none(), st.integers(0, 40)),
    rate=st.floats(0.001, 1),
)
def test_constant_is_due_at_the_multiples_in_its_range(update_every, start, length, rate):
    stop = -1 if length is None else start + length
    due = answers(ConstantPruneRate(rate, update_every, start, stop), range(1, 61))
    assert list(due) == [
        s
        for s in range(1, 61)
        if s % update_every == 0 and s >= start and (stop == -1 or s <= stop)
    ]
    assert all(r == np.float32(rate) for r in due.values())


def test_no_update_comes_before_the_first_step():
    assert not ConstantPruneRate(0.3, 1)(tf.constant(0))[0]


def test_cosine_falls_to_zero_along_half_a_cosine():
    due = answers(CosinePruneRate(0.3, 5, start_step=10, stop_step=30), range(1, 60))
    assert list(due) == [10, 15, 20, 25, 30]
    for step, rate in due.items():
        expected = 0.15 * (1 + math.cos(math.pi * (step - 10) / 20))
        assert rate == pytest.approx(expected, abs=1e-7)
    assert due[10] == pytest.approx(0.3) and due[30] == pytest.approx(0, abs=1e-7)


@pytest.mark.tensorflow
def test_schedules_work_in_a_compiled_function():
    for schedule in (ConstantPruneRate(0.3, 5), CosinePruneRate(0.3, 5, 0, 20)):
        for dtype in (tf.int32, tf.int64):
            function = tf.function(schedule, jit_compile=True)
            due, rate = function(tf.constant(10, dtype))
            assert due and 0 < rate <= np.float32(0.3)
            assert not function(tf.constant(11, dtype))[0]


@pytest.mark.parametrize(
    "schedule",
    [
        toolkit.ConstantSparsity(0.25, begin_step=4, end_step=12, frequency=4),
        toolkit.ConstantSparsity(0.3, begin_step=0, frequency=7),
        toolkit.PolynomialDecay(0.4, 0.0, begin_step=4, end_step=8, power=1, frequency=2),
        toolkit.PolynomialDecay(0.1, 0.9, begin_step=3, end_step=19, frequency=4),
    ],
)
def test_schedules_of_the_toolkit_become_equal_ones_of_ours(schedule):
    ours = ksd.DynamicSparsity("rigl", schedule=schedule).schedule
    assert isinstance(ours, ksd.sparsity.UpdateSchedule)
    assert answers(ours, range(1, 40)) == answers(schedule, range(1, 40)) != {}
    # Files of the version before hold the toolkit's configuration.
    config = schedule.get_config()
    again = deserialize_schedule(config)
    assert type(again) is type(ours) and again.get_config() == config["config"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolynomialDecay(0.0, 0.5, 0, -1), "`end_step` must be given .*; received -1"),
        (lambda: PolynomialDecay(0.0, 1.0, 0, 9), r"`final_sparsity` must be in \[0, 1\).* 1.0"),
        (lambda: PolynomialDecay(-0.1, 0.5, 0, 9), r"`initial_sparsity` must be in .* -0.1"),
        (lambda: ConstantSparsity(1.5, 0), r"`target_sparsity` must be in .*; received 1.5"),
        (lambda: ConstantSparsity(0.5, -1), "`begin_step` must be 0 or more; received -1"),
        (lambda: ConstantSparsity(0.5, 9, 8), "at least `begin_step`; .* begin_step=9, end_step=8"),
        (lambda: ConstantSparsity(0.5, 0, frequency=0), "`frequency` must be 1 or more; .* 0"),
    ],
)
def test_arguments_outside_their_range_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "schedule",
    [
        ConstantPruneRate(0.3, 7, 2, 50),
        CosinePruneRate(0.2, 3, 6, 40),
        ConstantSparsity(0.25, 4, 30, 5),
        PolynomialDecay(0.5, 0.1, 3, 30, 2, 4),
    ],
)
def test_round_trip_through_json(schedule):
    again = deserialize_schedule(json.loads(json.dumps(serialize_schedule(schedule))))
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()
    assert answers(again, range(1, 60)) == answers(schedule, range(1, 60)) != {}


@keras.saving.register_keras_serializable()
class EveryStep(toolkit.PruningSchedule):
    """Custom schedule, written as the toolkit requires."""

    def __call__(self, step):
        return tf.greater(step, 0), tf.constant(0.5)

    def get_config(self):
        return {"class_name": type(self).__name__, "config": {}}


def test_a_registered_schedule_of_a_user_comes_back():
    """The error for an unknown class recommends this decorator."""
    assert isinstance(deserialize_schedule(serialize_schedule(EveryStep())), EveryStep)


def test_an_unknown_schedule_class_is_named():
    with pytest.raises(ValueError, match="Unknown schedule class 'Nobody'"):
        deserialize_schedule({"class_name": "Nobody", "config": {}})


def test_names_make_schedules():
    constant = make_schedule("constant", 0.3, 7, 2, 50)
    cosine = make_schedule("cosine", 0.3, 7, 2, 50)
    assert type(constant) is ConstantPruneRate and type(cosine) is CosinePruneRate
    assert constant.get_config() == cosine.get_config()
    default = ksd.DynamicSparsity().schedule
    assert type(default) is ConstantPruneRate
    assert (default.update_every, default.prune_rate) == (1100, 0.05)
    assert (default.start_step, default.stop_step) == (0, -1)


@pytest.mark.parametrize("rate", [0, 0.0, -0.1, 1.0001, float("nan"), float("inf"), None, "much"])
def test_prune_rate_outside_the_range_raises(rate):
    with pytest.raises(ValueError, match=r"`prune_rate` must be a number in \(0, 1\]; received"):
        ksd.DynamicSparsity("rigl", prune_rate=rate)


@pytest.mark.parametrize("every", [0, -1, 2.5, True, float("nan"), float("inf"), None, "ten"])
def test_update_interval_outside_the_range_raises(every):
    with pytest.raises(ValueError, match="`update_every` must be a whole number .*; received"):
        ksd.DynamicSparsity("rigl", update_every=every)


def test_steps_outside_the_range_raise():
    with pytest.raises(ValueError, match="`start_step` must be 0 or more; received -1"):
        ksd.DynamicSparsity("rigl", start_step=-1)
    with pytest.raises(ValueError, match="`stop_step` .* start_step=10, stop_step=9"):
        ksd.DynamicSparsity("rigl", start_step=10, stop_step=9)
    with pytest.raises(ValueError, match="`stop_step` must be given for a cosine decay"):
        ksd.DynamicSparsity("rigl", schedule="cosine")
    with pytest.raises(ValueError, match="larger than `start_step`"):
        CosinePruneRate(0.3, 5, 10, 10)


@pytest.mark.parametrize("schedule", ["linear", None, 3, ConstantSparsity])
def test_unknown_schedule_raises(schedule):
    with pytest.raises(ValueError, match="`schedule` must be one of 'constant', 'cosine' or an"):
        ksd.DynamicSparsity("rigl", schedule=schedule)


@pytest.mark.parametrize("method", ["rig", "RigL", "", None, 3, ["rigl"]])
def test_unknown_method_raises(method):
    names = "'rigl', 'magran', 'set', 'snfs', 'gmp', 'static' or a SparsityMethod"
    with pytest.raises(ValueError, match=f"`method` must be one of {names}"):
        ksd.DynamicSparsity(method)
