"""Training on two replicas: equal masks on both, and the same as on one.

TensorFlow must be told to use two logical CPU devices before it starts. So a separate process does
all the training (`replicas_script.py`), and the tests check the files that it wrote.
"""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sparse_dm as ksd
from keras_sparse_dm.sparsity import check_invariant, install, sparse_optimizer

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("replicas_script.py")
CASES = {  # runs of replicas_script.py, with the largest difference of a weight to one replica
    "rigl": 1e-6,
    "averaged": 1e-6,
    "global": 1e-6,
    "magran": 1e-6,
    "set": 1e-6,
    "snfs": 1e-6,
    "gmp": 1e-6,
    "static": 1e-6,
    "muon": 1e-5,
    "mixed_float16": 1e-4,
    "loop": 1e-6,
    "loaded_inside": 1e-6,
    "loaded_outside": 1e-6,
    "one_device": 0.0,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(folder / "results.npz") as archive:
        return {key: archive[key] for key in archive.files}


def arrays(results, case, kind):
    found = [v for k, v in results.items() if k.startswith(f"{case}/{kind}/")]
    assert found, (case, kind)
    return found


@pytest.mark.parametrize("case", CASES)
def test_both_replicas_have_the_masks_and_weights_of_a_run_on_one(results, case):
    masks, weights = arrays(results, case, "mask"), arrays(results, case, "weight")
    replicas = 1 if case in ("one_device", "loaded_outside") else 2
    for copies in masks + weights:
        assert len(copies) == replicas
        np.testing.assert_array_equal(copies[0], copies[-1])
    for copies, one in zip(masks, arrays(results, case, "single_mask"), strict=True):
        np.testing.assert_array_equal(copies[0], one)
    for copies, one in zip(weights, arrays(results, case, "single_weight"), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(copies[0], one, rtol=1e-4, atol=CASES[case])
    start = arrays(results, case, "start")
    changed = [np.any(copies[0] != s) for copies, s in zip(masks, start, strict=True)]
    assert all(changed) if case != "static" else not any(changed)


def test_the_run_on_two_was_one(results):
    """Replicas see different halves of a batch, so without a sum their masks would differ."""
    assert results["gradients_differ"]
    assert results["updates"] == 3


def test_gradient_accumulation_is_refused_before_the_first_step(results):
    """Keras does not support it either; allow it once the plain model works."""
    assert "merge_call" in str(results["accumulation_of_keras"])
    message = str(results["accumulation"])
    assert "Keras cannot accumulate gradients on several replicas: SGD" in message
    assert "gradient_accumulation_steps=2" in message
    assert results["accumulation_changed_nothing"]


class Strategy:
    def __init__(self, replicas):
        self.num_replicas_in_sync = replicas


def test_other_strategies_of_several_replicas_are_refused():
    with pytest.raises(ValueError, match="needs tf.distribute.MirroredStrategy.* under Strategy"):
        install._check_strategy(Strategy(2), keras.optimizers.SGD())
    install._check_strategy(Strategy(1), keras.optimizers.SGD(gradient_accumulation_steps=2))
    install._check_strategy(None, keras.optimizers.SGD())


def test_the_refusal_comes_from_fit_and_from_sparse_optimizer(monkeypatch):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    ksd.sparsify(model, 0.5, seed=0)
    model.compile("sgd", "mse")
    strategy = type("TPUStrategy", (Strategy,), {"scope": tf.distribute.get_strategy().scope})(8)
    monkeypatch.setattr(type(model), "distribute_strategy", strategy)
    with pytest.raises(ValueError, match="under TPUStrategy"):
        ksd.DynamicSparsity("static").set_model(model)
    with pytest.raises(ValueError, match="under TPUStrategy"):
        sparse_optimizer(model, keras.optimizers.SGD(), "static")
    assert type(model.optimizer) is keras.optimizers.SGD
    check_invariant(model)
