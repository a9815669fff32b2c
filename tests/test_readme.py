"""Python examples of the README and of the pages on models, run with little data."""

import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_sparse_dm as ksd

ROOT = Path(__file__).parents[1]


def test_readme_is_short_and_holds_the_two_commands_that_ci_reads():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    assert "    pip install -e '.[train]' && python train.py" in lines
    assert "    pip install -e '.[test]' && python -m pytest" in lines


def test_readme_lists_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"\]\(docs/(\w+\.md)\)", text)) == pages


def test_contributing_lists_every_folder_and_its_test_files_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    package = Path(ksd.__file__).parent
    folders = {path.name for path in package.iterdir() if path.is_dir()} - {"__pycache__"}
    assert {f for f in folders if f"| `{f}/`" not in text} == set()
    for file in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        assert (package / file).exists() or (ROOT / file).exists(), file
    for command in re.findall(r"`python -m pytest ([^`]*)`", text):
        for path in shlex.split(command):
            assert not path.startswith("tests/test_") or (ROOT / path).exists(), path


@pytest.mark.slow
def test_own_model_of_the_readme(example, empty_folder, capsys):
    names = {}
    exec(example("README.md", "own_model"), names)
    model = names["model"]
    ksd.sparsity.check_invariant(model)
    assert abs(ksd.sparsity_report(model).sparsity - 0.9) < 1e-3
    assert "total" in capsys.readouterr().out
    loaded = keras.saving.load_model("sparse.keras")
    np.testing.assert_array_equal(loaded(names["x"]), model(names["x"]))


@pytest.mark.slow
def test_diffusion_of_the_readme(example, empty_folder):
    names = {}
    shortened = (
        ("load_vmnist()", "load_vmnist(max_sketches=20)"),
        ("(train, 64", "(train, 8"),
        ('"chirodiff_vmnist")', '"chirodiff_vmnist", units=8, num_layers=1)'),
        ("update_every=50", "update_every=2"),
        ("epochs=60", "epochs=1"),
        ("steps=50", "steps=2"),
    )
    exec(example("README.md", "diffusion", *shortened), names)
    ksd.sparsity.check_invariant(names["model"])
    assert names["points"].shape == (8, 60, 3)


@pytest.mark.slow
def test_own_model_page(example, empty_folder):
    names = {"__name__": "docs"}
    exec(example("own_model.md", "own_model"), names)
    model = names["model"]
    np.testing.assert_allclose(names["plain"](names["x"]), model(names["x"]), atol=1e-6)
    loaded = keras.saving.load_model("sparse.keras")
    np.testing.assert_array_equal(loaded(names["x"]), model(names["x"]))

    exec(example("own_model.md", "own_loop"), names)
    names["model"].optimizer = names["optimizer"]
    ksd.sparsity.check_invariant(names["model"])
    assert names["optimizer"].topology_updates == 2


def two_layers():
    wide = keras.layers.Dense(256, activation="relu", name="wide")
    last = keras.layers.Dense(10, name="last")
    return keras.Sequential([keras.Input((32,)), wide, last])


def test_ways_to_sparsify(example):
    reports = []
    for line in example("own_model.md", "ways_to_sparsify").splitlines():
        reports.append(eval(line.split("  #")[0], {"ksd": ksd, "model": two_layers()}))
    density = [{k.name.split("/")[-2]: k.density for k in r.kernels} for r in reports]
    assert density[0]["last"] == 1 > density[0]["wide"]
    assert list(density[1]) == ["last"]
    assert density[2]["last"] == 0.5 and abs(density[2]["wide"] - 0.1) < 0.01
    assert set(density[3].values()) == {0.5}
    assert all(k.active % 4 == 0 for k in reports[4].kernels)
    assert abs(reports[5].sparsity - 0.9) < 0.01


@pytest.mark.slow
def test_gradual_pruning(example):
    model = two_layers()
    model.compile("adam", "mse")
    names = {"ksd": ksd, "model": model}
    shortened = ("end_step=8000", "end_step=20, frequency=4")
    exec(example("own_model.md", "gradual_pruning", shortened), names)
    x, y = keras.random.normal((40, 32)), keras.random.normal((40, 10))
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[names["gradual"]])
    assert abs(ksd.sparsity_report(model).sparsity - 0.9) < 0.01
    ksd.sparsity.check_invariant(model)


@pytest.mark.slow
def test_transfer(example, capsys):
    names = {}
    exec(example("transfer.md", "dense"), names)
    exec(example("transfer.md", "fine_tuning"), names)
    ksd.sparsity.check_invariant(names["model"])
    assert names["dense"] > 0.85
    assert names["pruned"] > 0.5
    assert names["fine_tuned"] > names["dense"] - 0.05
    assert "fine-tuned" in capsys.readouterr().out


@pytest.mark.slow
def test_latent_diffusion(example):
    names = {}
    shortened = (
        ("(64, 32, 32, 3)", "(16, 8, 8, 3)"),
        ("channels=32, num_res_blocks=1", "channels=32, num_res_blocks=1, channel_mult=(1,)"),
        ("channel_mult=(1, 2), num_res_blocks=1", "channel_mult=(1,), num_res_blocks=1"),
        ("image_size=32", "image_size=8"),
        ("batch_size=8", "batch_size=4"),
        ("steps=10", "steps=2"),
    )
    exec(example("latent_diffusion.md", "latent_diffusion", *shortened), names)
    assert names["pictures"].shape == (4, 8, 8, 3)
    assert names["model"].optimizer.topology_updates == 1
    ksd.sparsity.check_invariant(names["model"])
