"""The README's Python runs as written, the training data cut short."""

import re
from pathlib import Path

import keras_sparse_dm as ksd

BLOCKS = re.findall(
    r"```python\n(.*?)```",
    (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8"),
    flags=re.DOTALL,
)


def test_own_model_example(capsys):
    (block,) = [b for b in BLOCKS if "model.compile" in b and "ChiroDiff" not in b]
    names = {}
    exec(block, names)
    assert abs(ksd.sparsity_report(names["model"]).sparsity - 0.9) < 1e-3
    assert "total" in capsys.readouterr().out


def test_own_loop_example():
    (block,) = [b for b in BLOCKS if "SparseOptimizer" in b]
    names = {"__name__": "readme"}
    exec(compile(block, "readme.py", "exec"), names)
    names["model"].optimizer = names["optimizer"]
    ksd.sparsity.check_invariant(names["model"])
    assert names["optimizer"].topology_updates == 2


def test_chirodiff_example(monkeypatch, tmp_path):
    import shutil

    from keras_sparse_dm.data import kanjivg

    for path in sorted(ksd.data.kanjivg_folder().glob("04e*.svg"))[:160]:
        shutil.copy(path, tmp_path)
    load = kanjivg.load_kanjivg
    monkeypatch.setattr(
        ksd.data, "load_kanjivg", lambda: load(tmp_path, cache_dir=tmp_path / "cache")
    )
    (block,) = [b for b in BLOCKS if "ChiroDiff" in b]
    shortened = block.replace("epochs=5", "epochs=1").replace("batch_size=64", "batch_size=8")
    shortened = shortened.replace("(train, 64)", "(train, 8)").replace("units=96", "units=8")
    assert shortened.count("8") > block.count("8") and "epochs=1" in shortened
    names = {}
    exec(shortened, names)
    ksd.sparsity.check_invariant(names["model"])
    assert names["points"].shape == (8, 80, 3)
