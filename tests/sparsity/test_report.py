"""`sparsity_report`: its counts, and the printed tables."""

import html.parser
import json

import keras
import numpy as np
import pytest
from keras import layers
from keras.ops import convert_to_numpy as numpy

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseDense, SparseGRU
from keras_sparse_dm.sparsity import Blocks, masked_kernels


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
    # An active weight that happens to be zero still counts as active.
    out.assign(np.zeros((4, 10)))
    last = ksd.sparsity_report(model).kernels[-1]
    assert (last.active, last.nonzeros) == (10, 0)
    # A nonzero pruned weight shows.
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
    first, mask = dictionary["kernels"][0], numpy(masked_kernels(model)[0].mask)
    assert first == {
        "name": report.kernels[0].name,
        "shape": [6, 12],
        "size": 72,
        "active": 18,
        "nonzeros": 18,
        "density": 0.25,
        "trainable": True,
        "asked": 0.25,
        "structure": None,
        "dead_outputs": int((mask.sum(axis=0) == 0).sum()),
        "unused_inputs": int((mask.sum(axis=1) == 0).sum()),
        "exchanged": 0,
        "active_at_start": None,
        "exchanged_since_start": None,
        "ever_active": None,
    }
    assert dictionary["left_alone"] == {} and dictionary["ever_active"] is None
    assert dictionary["exchanged_since_start"] is None
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
    # The GRU's 144 of 202 parameters do not train; counts must not become negative.
    assert 0 <= report.active_parameters <= report.parameters


def without_effect(layer, shape, mask):
    """Count input features without effect, and output features that no input changes.

    Tries them out on the layer, with random active weights and no bias. The last axes of input and
    output are the features.
    """
    rng = np.random.default_rng(0)
    kernel = layer.masks[0][0]
    kernel.assign(np.where(mask, rng.uniform(1, 2, mask.shape), 0))
    x = rng.uniform(1, 2, (1, *shape)).astype("float32")
    zero = numpy(layer(np.zeros_like(x)))
    base = numpy(layer(x))
    features = shape[-1]
    unused = 0
    for i in range(features):
        changed = x.copy()
        changed[..., i] += 1
        unused += np.array_equal(numpy(layer(changed)), base)
    dead = (base == zero).all(axis=tuple(range(base.ndim - 1))).sum()
    return int(dead), int(unused)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Dense(9, use_bias=False), (8,)),
        (layers.Conv1D(8, 2, use_bias=False), (6, 6)),
        (layers.Conv2D(8, 2, groups=4, use_bias=False), (4, 4, 8)),
        (layers.DepthwiseConv1D(2, depth_multiplier=3, use_bias=False), (6, 5)),
        (layers.DepthwiseConv2D(2, use_bias=False), (4, 4, 9)),
        (layers.Conv1DTranspose(7, 2, use_bias=False), (4, 5)),
        (layers.EinsumDense("abc,dc->abd", (3, 9)), (3, 8)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_dead_outputs_and_unused_inputs_by_trial(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer])
    [k] = ksd.sparsify(model, 0.85, "uniform", seed=3).kernels
    dead, unused = without_effect(layer, shape, numpy(layer.masks[0][1]))
    assert (k.dead_outputs, k.unused_inputs) == (dead, unused)
    assert dead + unused > 0


def test_dead_outputs_and_unused_inputs_where_they_are_put():
    """Output features of a query are heads x size, those of an LSTM four gates."""
    x = inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4, name="a")(x, x)
    model = keras.Model(inputs, layers.LSTM(3, name="l")(x))
    ksd.sparsify(model, 0.0)
    kernels = {k.name: k for k in masked_kernels(model)}

    def prune(name, *places):
        mask = np.ones(kernels[name].mask.shape, "bool")
        for place in places:
            mask[place] = False
        kernels[name].mask.assign(mask)

    all_ = slice(None)
    prune("a/query/kernel", (all_, 0, 1), (all_, 1, 3), 5)
    prune("a/attention_output/kernel", (0, 2), (1, 0), (1, 1), (all_, all_, 7))
    prune("l/lstm_cell/kernel", (all_, 10), (all_, 0), 7, (3, slice(0, 11)))
    report = {k.name: (k.dead_outputs, k.unused_inputs) for k in ksd.sparsity_report(model).kernels}
    assert report == {
        "a/query/kernel": (2, 1),
        "a/key/kernel": (0, 0),
        "a/value/kernel": (0, 0),
        "a/attention_output/kernel": (1, 3),
        "l/lstm_cell/kernel": (2, 1),
        "l/lstm_cell/recurrent_kernel": (0, 0),
    }


class Recorder(keras.callbacks.Callback):
    """Callback that records all masks after each step."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def on_train_batch_end(self, batch, logs=None):
        self.masks.append([numpy(k.mask).copy() for k in masked_kernels(self.model)])


@pytest.mark.slow
def test_what_was_exchanged_against_recorded_masks(tmp_path):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(12), layers.Dense(4)], name="m")
    ksd.sparsify(model, 0.7, seed=0)
    start = [numpy(k.mask).copy() for k in masked_kernels(model)]
    model.compile(keras.optimizers.Adam(0.02), "mse", run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(2, 12, 8)).astype("float32")
    recorder = Recorder()
    callbacks = [ksd.DynamicSparsity("set", update_every=2, prune_rate=0.4, seed=0), recorder]
    fit = dict(x=x[0], y=x[1][:, :4], batch_size=2, verbose=0, callbacks=callbacks)

    def check(report):
        steps = [start, *recorder.masks]
        for i, k in enumerate(report.kernels):
            masks = [step[i] for step in steps]
            now, ever = masks[-1], np.any(masks, axis=0)
            assert np.any(masks[-1] != masks[-3])
            assert k.exchanged == np.sum(masks[-1] & ~masks[-3])
            assert k.exchanged_since_start == np.sum(start[i] & ~now) / np.sum(start[i])
            assert k.ever_active == ever.mean() > now.mean()
        assert report.exchanged == sum(k.exchanged for k in report.kernels) / report.active
        ever = [np.any([step[i] for step in steps], axis=0) for i in range(2)]
        assert report.ever_active == pytest.approx(sum(e.sum() for e in ever) / (96 + 48))
        gone = sum(np.sum(start[i] & ~steps[-1][i]) for i in range(2))
        of = sum(np.sum(m) for m in start)
        assert report.exchanged_since_start == pytest.approx(gone / of)
        assert f"{gone / of:.2%}" in str(report).splitlines()[-2]

    model.fit(**fit)
    assert len(recorder.masks) == 6
    check(ksd.sparsity_report(model))
    # The history belongs to the model: it is saved, and it continues.
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    check(ksd.sparsity_report(model))
    model.fit(**fit)
    assert len(recorder.masks) == 12
    report = ksd.sparsity_report(model)
    check(report)
    text = str(report)
    assert "last update" in text and "since start" in text and f"{report.ever_active:.2%}" in text
    # New masks start a new history.
    report = ksd.sparsify(model, 0.5, seed=1)
    assert [k.exchanged_since_start for k in report.kernels] == [0.0, 0.0]
    assert [k.ever_active for k in report.kernels] == [k.density for k in report.kernels]
    json.dumps(report.to_dict())


class Reader(html.parser.HTMLParser):
    """HTML parser that collects table cells and list items, and checks that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.items = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "li":
            self.items.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open[-1] == "li":
            self.items[-1] += data


def test_html_has_the_same_cells_and_escapes_names():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(6, name="<b>&amp;"),
            layers.Dense(4, name="<script>"),
            layers.Dense(4, name="d"),
        ],
        name="m",
    )
    model.layers[1].trainable = False
    with pytest.warns(UserWarning, match="does not fit"):
        report = ksd.sparsify(model, 0.5, "uniform", seed=0, structure=Blocks(8))
    page = Reader(report._repr_html_())
    header, row, total = page.rows
    assert {"kernel", "shape", "density", "active", "nonzero", "structure"} <= set(header)
    cells = dict(zip(header, row, strict=True))
    assert cells["kernel"] == "m/<b>&amp;/kernel" and cells["shape"] == "8 x 6"
    assert (cells["density"], cells["active"]) == ("0.5000", "24 of 48")
    assert cells["structure"] == "blocks of 8"
    assert len(total) == len(header) and total[0] == "total"
    assert page.items == [
        "m/<script>/kernel (frozen)",
        "m/d/kernel (input axis of 4 is not a multiple of blocks of 8)",
    ]
    # The same in a terminal, where brackets in names are not markup.
    text = str(report)
    assert "m/<b>&amp;/kernel" in text and "left alone: m/<script>/kernel (frozen)" in text
    assert json.loads(json.dumps(report.to_dict()))["left_alone"] == report.left_alone


def test_brackets_in_names_are_shown():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(6, name="[bold]x")], name="m")
    assert "m/[bold]x/kernel" in str(ksd.sparsify(model, 0.5))


def test_asked_is_shown_where_it_was_not_got():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="d")], name="m")
    report = ksd.sparsify(model, 0.5, "uniform", seed=0)
    [k] = report.kernels
    assert (k.asked, k.active) == (0.5, 4)
    [line] = [line for line in str(report).splitlines() if k.name in line]
    assert "0.4444" in line and "0.5000" in line and "4 of 9" in line
