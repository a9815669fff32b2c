"""The README's Python runs as written, the training data cut short."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_sparse_dm as ksd

BLOCKS = re.findall(
    r"```python\n(.*?)```",
    (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8"),
    flags=re.DOTALL,
)


def block_with(*words):
    (block,) = [b for b in BLOCKS if all(word in b for word in words)]
    return block


def test_own_model_example(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block_with("sparse.keras"), names)
    model = names["model"]
    assert abs(ksd.sparsity_report(model).sparsity - 0.9) < 1e-3
    assert "total" in capsys.readouterr().out
    loaded = keras.saving.load_model("sparse.keras")
    np.testing.assert_array_equal(loaded(names["x"]), model(names["x"]))


def attention_model():
    inputs = keras.Input((6, 8))
    x = keras.layers.Dense(16, name="stem")(inputs)
    x = keras.layers.MultiHeadAttention(2, 4)(x, x)
    x = keras.layers.Dense(128, name="middle")(x)
    return keras.Model(inputs, keras.layers.Dense(8, name="decoder_1")(x))


def test_ways_to_call_sparsify():
    lines = [line for line in block_with("exclude=[").splitlines() if line]
    assert len(lines) == 6
    reports = []
    for line in lines:
        model = attention_model()
        reports.append(eval(line.split("  #")[0], {"ksd": ksd, "model": model, "trained": model}))
    density = [{k.name.split("/")[-2]: k.density for k in r.kernels} for r in reports]
    assert density[0]["stem"] == density[0]["attention_output"] == 1 > density[0]["query"]
    assert list(density[1]) == ["decoder_1"]
    assert density[2]["stem"] == 0.5 and abs(density[2]["decoder_1"] - 0.1) < 0.01
    assert set(density[3].values()) == {0.5}
    assert all(k.active % 4 == 0 for k in reports[4].kernels)


def test_gradual_magnitude_pruning_example():
    model = attention_model()
    model.compile("adam", "mse")
    block = block_with("PolynomialDecay(").replace("end_step=8000", "end_step=20, frequency=4")
    lines = block.splitlines()
    names = {"ksd": ksd, "model": model}
    exec("\n".join(lines[:-1]), names)
    callback = eval(lines[-1], names)
    x = keras.random.normal((40, 6, 8))
    model.fit(x, x, batch_size=4, epochs=2, verbose=0, callbacks=[callback])
    assert abs(ksd.sparsity_report(model).sparsity - 0.9) < 0.01
    ksd.sparsity.check_invariant(model)


def test_own_method_example():
    names = {}
    exec(block_with("RigLWithNoise"), names)
    model = attention_model()
    ksd.sparsify(model, 0.5, seed=0)
    model.compile("adam", "mse")
    callback = ksd.DynamicSparsity(names["RigLWithNoise"](), update_every=2, prune_rate=0.3)
    x = keras.random.normal((16, 6, 8))
    model.fit(x, x, batch_size=4, verbose=0, callbacks=[callback])
    ksd.sparsity.check_invariant(model)
    assert any(k.exchanged_since_start > 0 for k in ksd.sparsity_report(model).kernels)


def test_own_loop_example():
    names = {"__name__": "readme"}
    exec(compile(block_with("GradientTape"), "readme.py", "exec"), names)
    names["model"].optimizer = names["optimizer"]
    ksd.sparsity.check_invariant(names["model"])
    assert names["optimizer"].topology_updates == 2


@pytest.mark.slow
def test_chirodiff_example(monkeypatch, tmp_path):
    import shutil

    from keras_sparse_dm.data.sketches import kanjivg

    for path in sorted(ksd.data.kanjivg_folder().glob("04e*.svg"))[:160]:
        shutil.copy(path, tmp_path)
    load = kanjivg.load_kanjivg
    monkeypatch.setattr(
        ksd.data, "load_kanjivg", lambda: load(tmp_path, cache_dir=tmp_path / "cache")
    )
    block = block_with("ChiroDiff")
    shortened = block.replace("epochs=5", "epochs=1").replace("batch_size=64", "batch_size=8")
    shortened = shortened.replace("(train, 64)", "(train, 8)").replace("units=96", "units=8")
    assert shortened.count("8") > block.count("8") and "epochs=1" in shortened
    names = {}
    exec(shortened, names)
    ksd.sparsity.check_invariant(names["model"])
    assert names["points"].shape == (8, 80, 3)


@pytest.mark.slow
def test_latent_diffusion_example():
    names = {}
    block = shortened = block_with("LatentDiffusion(")
    for long, short in (
        ("(64, 32, 32, 3)", "(16, 8, 8, 3)"),
        ("channels=32, num_res_blocks=1", "channels=32, num_res_blocks=1, channel_mult=(1,)"),
        ("channel_mult=(1, 2), num_res_blocks=1", "channel_mult=(1,), num_res_blocks=1"),
        ("image_size=32", "image_size=8"),
        ("batch_size=8", "batch_size=4"),
        ("steps=10", "steps=2"),
    ):
        assert long in block
        shortened = shortened.replace(long, short)
    exec(shortened, names)
    assert names["pictures"].shape == (4, 8, 8, 3)
    assert names["model"].optimizer.topology_updates == 1
    ksd.sparsity.check_invariant(names["model"])


def test_evaluation_example(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", str(tmp_path))
    block = block_with("EmbeddedFeatures")
    for long, short in (
        ("load_vmnist()", "load_vmnist(max_sketches=300)"),
        ("model_channels=32, channel_mult=(1, 2)", "model_channels=32, channel_mult=(1,)"),
        ("(1, 16, 16, 3)", "(1, 4, 4, 3)"),
        ("subset_size=100", "subset_size=20"),
    ):
        assert long in block
        block = block.replace(long, short)
    names = {}
    with pytest.warns(ksd.metrics.FewSamplesWarning):
        exec(block, names)
    distance, interval, kernel, near, *cost = capsys.readouterr().out.splitlines()
    assert 0 < float(distance) < 100
    assert interval.startswith(f"{float(distance):.1f}"[:2]) and "[" in interval
    assert "±" in kernel and near.startswith("PrecisionRecall(precision=0.")
    assert "FLOPs, sampling" in "\n".join(cost)


def test_export_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block_with("save_sparse"), names)
    size, *removed = capsys.readouterr().out.splitlines()
    assert int(size) == (tmp_path / "model.tflite").stat().st_size
    x = keras.random.normal((4, 32))
    np.testing.assert_allclose(names["smaller"](x), names["model"](x), atol=1e-6)
    assert names["smaller"].count_params() < names["model"].count_params()
    assert "wide" in "\n".join(removed)
    assert names["loaded"].layers[0].masks


def test_sketches_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", str(tmp_path / "cache"))
    names = {}
    block = block_with("load_vmnist", "animate").replace(
        "load_vmnist()", "load_vmnist(max_sketches=40)"
    )
    exec(block, names)
    assert names["train"].summary.read == 40
    assert (tmp_path / "digits.gif").stat().st_size > 5000
    out = capsys.readouterr().out
    assert out.count("[(") == 16
    read = list(ksd.data.read_sketches(tmp_path / "digits.json"))
    for a, b in zip(read, names["sketches"], strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
