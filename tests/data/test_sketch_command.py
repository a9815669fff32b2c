"""`sparse-dm convert-sketches`: targets, options, refused input and leftover files."""

import json
import subprocess
import sys

import numpy as np
import pytest

from keras_sparse_dm.commands.convert_sketches import convert_sketches_command
from keras_sparse_dm.data.reading import read_sketches, write_sketch_json
from keras_sparse_dm.data.sketch import Sketch


def line(number, **changes):
    drawing = [[[0, number + 1], [0, 4], [0, 9]], [[5, 6], [7, 8], [20, 30]]]
    record = {"word": "cat", "key_id": str(number), "recognized": number % 2 == 0}
    return json.dumps(record | {"drawing": drawing} | changes)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "cat.ndjson"
    path.write_text("\n".join(map(line, range(40))))
    return path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def convert(capsys):
    def convert(*argv):
        code = convert_sketches_command([str(argument) for argument in argv])
        return code, *capsys.readouterr()

    return convert


def test_all_sketches_become_one_json(convert, source, tmp_path):
    target = tmp_path / "out.json"
    code, out, err = convert(source, target)
    assert (code, out) == (0, f"Wrote 40 sketches to {target}\n")
    assert "Converting: 40 sketches" in err
    for a, b in zip(read_sketches(target), read_sketches(source), strict=True):
        assert (a.name, a.label) == (b.name, b.label)
        assert [s.tobytes() for s in a] == [s.tobytes() for s in b]
    assert names_in(tmp_path) == ["cat.ndjson", "out.json"]


def test_sketches_become_svg_files_of_their_names(convert, source, tmp_path):
    target = tmp_path / "out"
    assert convert(source, target, "--max-sketches", 3)[0] == 0
    assert names_in(target) == ["0.svg", "1.svg", "2.svg"]
    for a, b in zip(read_sketches(target), read_sketches(source), strict=False):
        for stroke, expected in zip(a, b, strict=True):
            np.testing.assert_allclose(stroke[:, :2], expected[:, :2], rtol=1e-12)
    code, out, _ = convert(source, tmp_path / "one.svg", "--max-sketches", 1)
    assert (code, out) == (0, f"Wrote 1 sketch to {tmp_path / 'one.svg'}\n")
    assert [s.name for s in read_sketches(tmp_path / "one.svg")] == ["one"]


def test_several_sketches_do_not_fit_one_svg(convert, source, tmp_path):
    code, out, err = convert(source, tmp_path / "out.svg")
    assert (code, out) == (1, "")
    assert "holds several sketches" in err and "--max-sketches 1" in err
    assert names_in(tmp_path) == ["cat.ndjson"]


def test_names_of_files_are_safe_and_no_two_the_same(convert, tmp_path):
    names = ["../../etc/passwd", "a b", "A/b", "", "a\x00b\n", "漢字" * 200, ".", "a_b-2", "\ud800"]
    stroke = [[0, 0, 0], [1, 1, 1]]
    write_sketch_json(tmp_path / "in.json", [Sketch([stroke], name) for name in names])
    assert convert(tmp_path / "in.json", tmp_path / "out")[0] == 0
    written = names_in(tmp_path / "out")
    assert len(written) == len({name.casefold() for name in written}) == len(names)
    assert {"etc_passwd.svg", "a_b.svg", "A_b-2.svg", "sketch.svg", "a_b-3.svg"} <= set(written)
    assert max(len(name.encode()) for name in written) < 140
    assert names_in(tmp_path) == ["in.json", "out"]


def test_options_choose_the_sketches(convert, source, tmp_path):
    target = tmp_path / "out.json"
    assert convert(source, target, "--recognized", "--max-sketches", 5)[0] == 0
    assert [s.name for s in read_sketches(target)] == ["0", "2", "4", "6", "8"]
    rows = np.empty(1, object)
    rows[0] = np.array([[1, 2, 0], [3, 4, 1]])
    np.savez(tmp_path / "a.npz", train=rows, valid=rows, test=rows)
    assert convert(tmp_path / "a.npz", target, "--splits", "test", "train", "--overwrite")[0] == 0
    assert [s.name for s in read_sketches(target)] == ["a-test-0", "a-train-0"]
    pattern = f"{tmp_path}/*.n*"
    assert convert(pattern, target, "--splits", "valid", "--overwrite")[0] == 0
    assert len(list(read_sketches(target))) == 41


def test_what_exists_is_replaced_only_if_asked(convert, source, tmp_path):
    for target in (tmp_path / "out.json", tmp_path / "out.svg", tmp_path / "out"):
        if target.suffix:
            target.write_text("before")
        else:
            target.mkdir()
            (target / "0.svg").write_text("before")
            (target / "mine.txt").write_text("mine")
        code, _, err = convert(source, target, "--max-sketches", 1)
        assert code == 2 and "--overwrite" in err
        kept = target / "0.svg" if target.is_dir() else target
        assert kept.read_text() == "before"
        assert convert(source, target, "--max-sketches", 1, "--overwrite")[0] == 0
        assert kept.read_text() != "before"
    assert names_in(tmp_path / "out") == ["0.svg", "mine.txt"]
    (tmp_path / "empty").mkdir()
    assert convert(source, tmp_path / "empty", "--max-sketches", 1)[0] == 0


def test_broken_sketches_are_listed_and_skipped(convert, source, tmp_path):
    rows = source.read_text().split("\n")
    rows[3] = "{"
    rows[7] = line(7, drawing=[])
    source.write_text("\n".join(rows))
    code, out, err = convert(source, tmp_path / "out.json")
    assert (code, out) == (0, f"Wrote 38 sketches to {tmp_path / 'out.json'}\n")
    assert "2 of 40 sketches cannot be read and are skipped:" in err
    assert "  cat.ndjson, line 4: " in err and "  cat.ndjson, line 8: holds no stroke" in err


@pytest.mark.parametrize("target", ["out.json", "out"])
def test_many_broken_sketches_leave_nothing(convert, source, tmp_path, target):
    rows = source.read_text().split("\n")
    for i in range(0, 9, 3):
        rows[i] = "{"
    source.write_text("\n".join(rows))
    code, out, err = convert(source, tmp_path / target)
    assert (code, out) == (1, "")
    assert "3 of 40 sketches" in err and "more than 5%; nothing was written" in err
    assert "cat.ndjson, line 1: " in err and "cat.ndjson, line 7: " in err
    assert names_in(tmp_path) == ["cat.ndjson"]
    # The previous file stays.
    (tmp_path / "old.json").write_text("before")
    assert convert(source, tmp_path / "old.json", "--overwrite")[0] == 1
    assert (tmp_path / "old.json").read_text() == "before"


def test_failures_leave_nothing(convert, source, tmp_path, monkeypatch):
    import keras_sparse_dm.data.formats.sketch_json as sketch_json
    import keras_sparse_dm.data.formats.svg as svg

    class Full:
        @staticmethod
        def dumps(*_):
            raise OSError(28, "No space left on device", "out.json")

        @staticmethod
        def interrupt(*_):
            raise KeyboardInterrupt

    monkeypatch.setattr(sketch_json, "json", Full)
    code, _, err = convert(source, tmp_path / "out.json")
    assert code == 1 and "No space left on device (out.json)." in err
    monkeypatch.setattr(svg, "_line_path", Full.interrupt)
    code, _, err = convert(source, tmp_path / "out")
    assert code == 130 and f"interrupted; nothing was written to {tmp_path / 'out'}." in err
    assert names_in(tmp_path) == ["cat.ndjson"]


def test_wrong_options_and_paths_are_usage_errors(convert, source, tmp_path):
    cases = [
        ((tmp_path / "none", "a.json"), "SOURCE .*none' does not exist"),
        ((f"{tmp_path}/*.svg", tmp_path / "a.json"), "no sketch file"),
        ((source, tmp_path / "a.png"), "must be a .json file, an .svg file or a folder"),
        ((source, tmp_path / "no" / "a.json"), "folder of TARGET must exist"),
        ((source, tmp_path / "a.json", "--max-sketches", 0), "--max-sketches must be 1 or more"),
        ((source, tmp_path / "a.json", "--splits", "all"), "splits"),
        ((source, tmp_path / "a.json", "--splits", "test", "test"), "--splits.* must be some of"),
        ((source, source.parent / "cat"), None),
        ((), "see sparse-dm convert-sketches --help"),
    ]
    import re

    for argv, reason in cases:
        code, out, err = convert(*argv)
        if reason is None:
            assert code == 0
            continue
        assert (code, out) == (2, ""), argv
        assert err.startswith("sparse-dm convert-sketches: error: ") and re.search(reason, err)
    (tmp_path / "empty.ndjson").write_text("")
    code, _, err = convert(tmp_path / "empty.ndjson", tmp_path / "a.json")
    assert code == 1 and "holds none of the requested sketches" in err
    assert not (tmp_path / "a.json").exists()


def test_help_and_conversion_need_no_keras(source, tmp_path):
    script = (
        "import sys\n"
        "from keras_sparse_dm.commands.convert_sketches import convert_sketches_command\n"
        "try:\n    convert_sketches_command(['--help'])\n"
        "except SystemExit as exit_:\n    assert not exit_.code\n"
        "assert 'numpy' not in sys.modules\n"
        f"assert convert_sketches_command([{str(source)!r}, {str(tmp_path / 'o.json')!r}]) == 0\n"
        "loaded = {'keras', 'tensorflow', 'matplotlib'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "SOURCE" in done.stdout and "--max-sketches" in done.stdout
