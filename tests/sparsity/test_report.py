"""`sparsity_report`: what it counts and how it reads."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseDense, SparseGRU


@pytest.fixture
def model():
    model = keras.Sequential(
        [
            keras.Input((5, 6)),
            SparseGRU(4, name="gru"),
            layers.LayerNormalization(),
            SparseDense(10, name="out"),
        ],
        name="m",
    )
    return model


def test_counts(model):
    # GRU (6, 12), (4, 12) and bias (2, 12); normalization 8; dense (4, 10) and bias 10.
    gru, recurrent, out = [v for v in model.trainable_variables if "kernel" in v.name]
    report = ksd.sparsify(model, 0.75, "uniform", seed=0)
    assert [k.shape for k in report.kernels] == [(6, 12), (4, 12), (4, 10)]
    assert [k.name for k in report.kernels] == [v.path for v in (gru, recurrent, out)]
    assert [k.size for k in report.kernels] == [72, 48, 40]
    assert [k.active for k in report.kernels] == [k.nonzeros for k in report.kernels]
    assert [k.active for k in report.kernels] == [18, 12, 10]
    assert [k.density for k in report.kernels] == [0.25] * 3
    assert (report.size, report.active, report.sparsity) == (160, 40, 0.75)
    assert report.parameters == 160 + 24 + 8 + 10
    assert report.active_parameters == 40 + 24 + 8 + 10
    # An active weight that happens to be zero is active all the same.
    out.assign(np.zeros((4, 10)))
    last = ksd.sparsity_report(model).kernels[-1]
    assert (last.active, last.nonzeros) == (10, 0)
    # And what a mask does not cover shows.
    out.assign(np.ones((4, 10)))
    assert ksd.sparsity_report(model).kernels[-1].nonzeros == 40


def test_dense_model_has_sparsity_0(model):
    report = ksd.sparsity_report(model)
    assert report.sparsity == 0.0 and report.active == report.size == 160
    assert report.active_parameters == report.parameters


def test_dictionary_is_json(model):
    report = ksd.sparsify(model, 0.75, "uniform", seed=0)
    dictionary = json.loads(json.dumps(report.to_dict()))
    assert dictionary["sparsity"] == 0.75
    assert (dictionary["parameters"], dictionary["active_parameters"]) == (202, 82)
    assert dictionary["kernels"][0] == {
        "name": report.kernels[0].name,
        "shape": [6, 12],
        "size": 72,
        "active": 18,
        "nonzeros": 18,
        "density": 0.25,
        "trainable": True,
    }
    assert len(dictionary["kernels"]) == 3


def test_prints_as_a_table(model, capsys):
    report = ksd.sparsify(model, 0.75, "uniform", seed=0)
    print(report)
    text = capsys.readouterr().out
    for k in report.kernels:
        [line] = [line for line in text.splitlines() if k.name in line]
        assert " x ".join(map(str, k.shape)) in line
        assert "0.2500" in line and f"{k.active} of {k.size}" in line
    [total] = [line for line in text.splitlines() if "total" in line]
    assert "40 of 160" in total and "3 kernels" in total and "0.2500" in total
    assert max(map(len, text.splitlines())) <= 200


def test_model_without_sparse_kernels_raises():
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="plain")
    with pytest.raises(ValueError, match="'plain' has no sparse kernel"):
        ksd.sparsity_report(plain)
    with pytest.raises(ValueError, match="no sparse kernel"):
        ksd.sparsity_report(keras.Sequential([SparseDense(3)]))


def test_frozen_layer_is_reported_and_parameters_count_what_trains(model):
    ksd.sparsify(model, 0.75, "uniform", seed=0)
    model.get_layer("gru").trainable = False
    report = ksd.sparsity_report(model)
    assert (report.size, report.active) == (160, 40)
    # 202 parameters, of which the GRU's 144 do not train: nothing can be less than none.
    assert 0 <= report.active_parameters <= report.parameters
