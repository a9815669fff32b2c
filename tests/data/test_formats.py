"""Reader and writer of each format: correct values, and refused input."""

import copyreg
import gzip
import io
import json
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import pytest

from keras_sparse_dm.data import Sketch, prepare_sketch, to_absolute, to_delta
from keras_sparse_dm.data.formats import bounded_files, ndjson, npz, sketch_json, strokes, svg
from keras_sparse_dm.data.formats.restricted_pickle import unpickle
from keras_sparse_dm.data.reading import (
    lines,
    parse_line,
    read_chirodiff,
    read_quickdraw,
    read_sketch_json,
    read_sketch_rnn,
    read_svg,
    write_sketch_json,
    write_svg,
)

RAW = {
    "word": "cat",
    "countrycode": "VE",
    "recognized": True,
    "key_id": "5201136883597312",
    "drawing": [[[10, 13.5], [20, 24], [0, 50]], [[7], [8], [90]]],
}


def dump(record, path, mode="wb"):
    with open(path, mode) as file:
        file.write((json.dumps(record) + "\n").encode())
    return path


def objects(*elements) -> np.ndarray:
    array = np.empty(len(elements), object)
    for i, element in enumerate(elements):
        array[i] = element
    return array


def peak_of(work):
    """Return the result of `work` and its peak memory in bytes."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def failure(work) -> str:
    with pytest.raises(ValueError) as caught:
        work()
    return str(caught.value)


# QuickDraw


def test_a_raw_line_gives_points_times_name_and_category(tmp_path):
    (sketch,) = read_quickdraw(dump(RAW, tmp_path / "cat.ndjson"))
    assert (sketch.name, sketch.label) == ("5201136883597312", "cat")
    assert [s.tolist() for s in sketch] == [[[10, 20, 0], [13.5, 24, 50]], [[7, 8, 90]]]


def test_a_simplified_line_gets_the_distance_as_time(tmp_path):
    record = {"drawing": [[[0, 3], [0, 4]], [[3], [5]], [[3, 3], [9, 9]]]}  # 5 + 1 + 4 + 0
    (sketch,) = read_quickdraw(dump(record, tmp_path / "cat.ndjson"))
    assert (sketch.name, sketch.label) == ("cat.ndjson, line 1", "")
    np.testing.assert_allclose(np.concatenate(sketch.strokes)[:, 2], [0, 0.5, 0.6, 1, 1])
    (dot,) = read_quickdraw(dump({"drawing": [[[1], [2]]]}, tmp_path / "dot.ndjson"))
    assert dot.strokes[0].tolist() == [[1, 2, 0]]


def test_only_recognized_drawings_and_first_strokes_are_taken_if_asked(tmp_path):
    path = dump(RAW, tmp_path / "cat.ndjson")
    dump(RAW | {"recognized": False, "key_id": 2}, path, "ab")
    dump({"drawing": RAW["drawing"]}, path, "ab")
    names = ["5201136883597312", "2", "cat.ndjson, line 3"]
    assert [s.name for s in read_quickdraw(path)] == names
    assert [s.name for s in read_quickdraw(path, recognized=True)] == names[:1]
    assert [len(s) for s in read_quickdraw(path, max_strokes=1)] == [1, 1, 1]
    assert [len(s) for s in read_quickdraw(path, max_strokes=9)] == [2, 2, 2]
    # The time of a simplified drawing spans the kept strokes only.
    flat = {"drawing": [[[0, 1], [0, 0]], [[1, 5], [0, 0]]]}
    (sketch,) = read_quickdraw(dump(flat, tmp_path / "flat.ndjson"), max_strokes=1)
    assert sketch.strokes[0][:, 2].tolist() == [0, 1]
    with pytest.raises(ValueError, match="max_strokes=2.5 must be 1 or more, or None"):
        read_quickdraw(path, max_strokes=2.5)


def test_gz_gives_what_the_plain_file_gives(tmp_path):
    path = dump(RAW, tmp_path / "cat.ndjson")
    dump(RAW, path, "ab")
    packed = tmp_path / "cat.ndjson.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(lines(packed)) == list(lines(path))
    assert [s.name for s in read_quickdraw(packed)] == [RAW["key_id"]] * 2


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"\xef\xbb\xbf{1}\r\n\n  \n{4}\n{5}")
    assert list(lines(path)) == [(1, b"{1}"), (4, b"{4}"), (5, b"{5}")]
    with pytest.raises(FileNotFoundError, match="path='.*none' does not exist"):
        lines(tmp_path / "none")
    with pytest.raises(ValueError, match="is a folder"):
        lines(tmp_path)


def bad(**changes) -> bytes:
    return json.dumps(RAW | changes).encode()


BAD_LINES = [
    (b"{", "Expecting property name"),
    (b"[]", "is no drawing"),
    (b"17", "is no drawing"),
    (b'{"word": "cat"}', "with the key 'drawing'"),
    (b"\xff\xfe{}", "can't decode byte 0xff"),
    (b"[" * 100_000, "recursion"),
    (b'{"a":' * 100_000, "recursion"),
    (b'{"drawing": [[[1' + b"0" * 5000 + b"],[1],[1]]]}", "4300 digits"),
    (b'{"drawing": [[[1' + b"0" * 400 + b"],[1],[1]]]}", "too large"),
    (b'{"drawing": [[[NaN],[1],[1]]]}', "infinite or NaN"),
    (b'{"drawing": [[[1],[-Infinity],[1]]]}', "infinite or NaN"),
    (b'{"drawing": [[[1],[1],[NaN]]]}', "a time that is infinite or NaN"),
    (b'{"drawing": [[[1],[1],[1e16]]]}', "a time that is infinite or NaN or beyond 1e.15"),
    (b'{"drawing": [[[1],[1e999],[1]]]}', "infinite or NaN"),
    (bad(drawing=[]), "holds no stroke"),
    (bad(drawing="cat"), "holds no stroke"),
    (bad(drawing=None), "holds no stroke"),
    (bad(drawing=[[]]), "stroke 0 is 0 lists"),
    (bad(drawing=[[[1], [1], [1]], 3]), "stroke 1 is int"),
    (bad(drawing=[[1, 2, 3]]), "stroke 0 holds no lists"),
    (bad(drawing=[[[1], [1], [1]], [[], [], []]]), "stroke 1 has no point"),
    (bad(drawing=[[[1, 2], [1, 2], [1]]]), "stroke 0 has lists of 2, 2, 1 numbers"),
    (bad(drawing=[[[1, 2], [1], [1, 2]]]), "stroke 0 has lists of 2, 1, 2 numbers"),
    (bad(drawing=[[[1], [1], [1]], [[1, 2], [1]]]), "times in some strokes"),
    (bad(drawing=[[[1], [1], [1], [1]]]), "stroke 0 is 4 lists"),
    (bad(drawing=[[["1"], [1], [1]]]), "stroke 0 holds str"),
    (bad(drawing=[[[True], [1], [1]]]), "stroke 0 holds bool"),
    (bad(drawing=[[[None], [1], [1]]]), "stroke 0 holds NoneType"),
    (bad(drawing=[[[[1]], [1], [1]]]), "stroke 0 holds list"),
    (bad(drawing=[[[1e10], [1], [1]]]), "beyond 1e.09"),
    (bad(drawing=[[[1, 1], [1, 1], [5, 4]]]), "goes back from 5 to 4 in stroke 0"),
    (bad(drawing=[[[1], [1], [5]], [[1], [1], [4]]]), "goes back from 5 to 4 in stroke 1"),
    (bad(word=3), "word of type int"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_told_with_its_number_and_skipped(tmp_path, line, reason):
    with pytest.raises(ValueError, match=rf"^cat, line 2: .*{reason}") as caught:
        parse_line(line, "cat, line 2")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    path = tmp_path / "cat.ndjson"
    path.write_bytes(json.dumps(RAW).encode() + b"\n" + line + b"\n" + json.dumps(RAW).encode())
    broken = []
    sketches = read_quickdraw(path, lambda where, error: broken.append((where, str(error))))
    assert len(list(sketches)) == 2
    ((where, text),) = broken
    assert where == "cat.ndjson, line 2" and text.startswith("cat.ndjson, line 2: ")
    with pytest.raises(ValueError, match=r"^cat\.ndjson, line 2: "):
        list(read_quickdraw(path))


def test_a_line_beyond_the_bound_is_skipped_without_being_held(tmp_path):
    path = tmp_path / "cat.ndjson"
    good = json.dumps(RAW).encode()
    with open(path, "wb") as file:
        file.write(good + b"\n")
        for _ in range(5):
            file.write(b"9" * ndjson.MAX_LINE)
        file.write(b"\n" + good)
    broken = []
    found, peak = peak_of(lambda: list(lines(path, lambda where, _: broken.append(where))))
    assert found == [(1, good), (3, good)]
    assert broken == ["cat.ndjson, line 2"]
    assert peak < 3 * ndjson.MAX_LINE
    with pytest.raises(ValueError, match=r"^cat\.ndjson, line 2: is longer than 8,388,608 bytes"):
        list(lines(path))


def test_hostile_json_takes_a_bounded_memory():
    line = b'{"drawing":[' + b"[]," * 2**18 + b"[]]}"
    text, peak = peak_of(lambda: failure(lambda: parse_line(line, "x")))
    assert text.startswith("x: stroke 0 is 0 lists")
    assert peak < 40 * len(line)


@pytest.mark.parametrize("content", [b"\n", b"9"])
def test_a_gz_bomb_ends_with_an_error(tmp_path, content, monkeypatch):
    if content == b"\n":
        monkeypatch.setattr(bounded_files, "UNPACKED_BYTES", 2**21)
    path = tmp_path / "bomb.ndjson.gz"
    packer = zlib.compressobj(wbits=31)
    with open(path, "wb") as file:
        file.write(packer.compress(json.dumps(RAW).encode() + b"\n"))
        for _ in range(10):
            file.write(packer.compress(content * 2**21))
        file.write(packer.flush())
    broken = []
    read = lambda: list(read_quickdraw(path, lambda *told: broken.append(told)))  # noqa: E731
    if content == b"9":  # lines of one byte are many; tracing each would take long
        sketches, peak = peak_of(read)
        assert peak < 3 * ndjson.MAX_LINE
    else:
        sketches = read()
    assert len(sketches) == 1
    where, error = broken[-1]
    assert where.startswith("bomb.ndjson.gz, line ")
    assert "the compressed file unpacks to more than " in str(error)


def test_a_damaged_gz_gives_what_can_be_read(tmp_path):
    rows = (json.dumps(RAW | {"key_id": i}).encode() + b"\n" for i in range(500))
    whole = gzip.compress(b"".join(rows))
    path = tmp_path / "a.ndjson.gz"
    broken = []

    def tell(*told):
        broken.append(told)

    for data in (whole[:-100], whole[:-4] + b"abcd", whole + b"rest", b"no gz"):
        path.write_bytes(data)
        sketches = list(read_quickdraw(path, tell))
        assert [s.name for s in sketches] == [str(i) for i in range(len(sketches))]
        where, error = broken.pop()
        assert where == f"a.ndjson.gz, line {len(sketches) + 1}"
        assert str(error).startswith(f"{where}: the compressed file is damaged: ")
        assert not broken


# sketch-rnn


def test_stroke3_rows_are_steps_and_lifts(tmp_path):
    rows = [[5, 6, 0], [3, 4, 1], [0, -10, 1], [1, 0, 0], [1, 0, 0]]
    for dtype in (np.int16, np.float16, np.float32, ">f8"):
        np.savez(tmp_path / "cat.npz", train=objects(np.array(rows, dtype)))
        (sketch,) = read_sketch_rnn(tmp_path / "cat.npz")
        positions = [s[:, :2].tolist() for s in sketch]
        # A lift, a dot, and a last stroke without a lift.
        assert positions == [[[5, 6], [8, 10]], [[8, 0]], [[9, 0], [10, 0]]]
        times = np.concatenate(sketch.strokes)[:, 2]
        np.testing.assert_allclose(times, np.array([0, 5, 15, 16, 17]) / 17)
        assert (sketch.name, sketch.label) == ("cat-train-0", "")


def test_sketches_of_one_length_may_be_one_array(tmp_path):
    rows = np.array([[[1, 1, 0], [1, 1, 1]], [[2, 2, 0], [0, 2, 1]]])
    for array in (
        rows,
        rows.astype(object),
        np.asfortranarray(rows),
        rows.astype(float).astype(object),
    ):
        np.savez(tmp_path / "a.npz", train=array, test=rows[:0])
        sketches = list(read_sketch_rnn(tmp_path / "a.npz"))
        assert [s.strokes[0][:, :2].tolist() for s in sketches] == [
            [[1, 1], [2, 2]],
            [[2, 2], [2, 4]],
        ]


BAD_ROWS = [
    (None, "is no array of numbers"),
    ("cat", "is no array of numbers"),
    ([[1, 2, 0]], "is no array of numbers"),
    (objects("a", "b"), "is no array of numbers"),
    (np.zeros((0, 3)), r"shape \(0, 3\)"),
    (np.zeros(3), r"shape \(3,\)"),
    (np.zeros((4, 5)), r"shape \(4, 5\); it must be \(points, 3\)"),
    (np.array([[1, np.nan, 0]]), "infinite or NaN"),
    (np.array([[1, np.inf, 0]]), "infinite or NaN"),
    (np.array([[1, 1, 2]]), "has 2 for the pen"),
    (np.array([[1, 1, 0.5]]), "has 0.5 for the pen"),
    (np.array([[9e8, 1, 0], [9e8, 1, 0]]), "beyond 1e.09"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_stroke3_sketch_is_told_with_its_number_and_skipped(tmp_path, row, reason):
    good = np.array([[1, 2, 0], [3, 4, 1]])
    np.savez(tmp_path / "cat.npz", train=objects(good, row, good))
    broken = []
    sketches = read_sketch_rnn(tmp_path / "cat.npz", lambda *told: broken.append(told))
    assert [s.name for s in sketches] == ["cat-train-0", "cat-train-2"]
    assert broken[0][0] == "cat.npz, train[1]"
    with pytest.raises(ValueError, match=rf"^cat\.npz, train\[1\]: .*{reason}"):
        list(read_sketch_rnn(tmp_path / "cat.npz"))


def test_files_that_are_none_are_told_by_name(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, train=np.zeros(3), valid=np.array(["text"]), test=np.zeros((1, 2, 3)))
    broken = []
    assert len(list(read_sketch_rnn(path, lambda *told: broken.append(told)))) == 1
    assert [where for where, _ in broken] == ["a.npz", "a.npz"]
    assert "train: holds an array of shape (3,), which is no list" in str(broken[0][1])
    assert "valid: holds an array of dtype <U4" in str(broken[1][1])
    np.savez(path, other=np.zeros(3))
    assert "a.npz: holds no 'train' and no 'valid' and no 'test'; it holds 'other'" in failure(
        lambda: list(read_sketch_rnn(path))
    )
    path.write_bytes(b"PK nothing")
    assert failure(lambda: list(read_sketch_rnn(path))).startswith("a.npz: is no .npz file")


def python2_npz(path, rows, protocol):
    """Write a file as Python 2 and its NumPy did: bytes as texts, old names, long integers."""

    def text(data: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(data)) + data

    def array(shape: bytes, dtype: bytes, content: bytes) -> bytes:
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
            b"(K\x01" + shape + b"cnumpy\ndtype\n(U" + bytes([len(dtype)]) + dtype + b"K\x00K\x01tR"
            b"(K\x03U\x01"
            + (b"|" if dtype == b"O8" else b"<")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK"
            + (b"\x3f" if dtype == b"O8" else b"\x00")
            + b"tb\x89"
            + content
            + b"tb"
        )

    inner = b"".join(
        array(b"(" + b"I%d\n" % len(r) + b"L3L\nt", b"i2", text(r.astype("<i2").tobytes()))
        for r in rows
    )
    data = array(b"(I%d\nt" % len(rows), b"O8", b"(l(" + inner + b"e") + b"."
    if protocol == 2:
        data = b"\x80\x02" + data
    header = b"{'descr': '|O8', 'fortran_order': False, 'shape': (%d,), }" % len(rows)
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "train.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data
        )


@pytest.mark.parametrize("protocol", [0, 2])
def test_pickles_of_python_2_are_read(tmp_path, protocol):
    rows = [np.array([[1, 2, 0], [200, -3, 1]]), np.array([[-1, 300, 1]])]
    python2_npz(tmp_path / "a.npz", rows, protocol)
    # NumPy itself reads it as such a file.
    with np.load(tmp_path / "a.npz", allow_pickle=True, encoding="latin1") as arrays:
        for stored, expected in zip(arrays["train"], rows, strict=True):
            np.testing.assert_array_equal(stored, expected)
    first, second = read_sketch_rnn(tmp_path / "a.npz")
    assert first.strokes[0][:, :2].tolist() == [[1, 2], [201, -1]]
    assert second.strokes[0][:, :2].tolist() == [[-1, 300]]


# Restricted pickles

PLAIN = [
    None,
    True,
    [1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**62, -(2**70), 0.1, -0.0, 1e300],
    {"a": [1, {"b": ("c", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))}], "c": b"\x00\xff"},
    "text äé\n\\ \ud83d\ude00 \U0001f600 '",
    b"",
    b"x" * 300,
    ["x" * 70_000, "y"] * 2,
    bytearray(b"abc"),
    list(range(3000)),
    {str(i): i for i in range(2000)},
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read_as_pickle_reads_them(protocol):
    for value in PLAIN:
        if isinstance(value, bytearray) and protocol < 5:
            continue
        data = pickle.dumps(value, protocol)
        assert unpickle(data) == pickle.loads(data) == value
    shared = [1]
    first, second = unpickle(pickle.dumps([shared, shared], protocol))
    assert first is second
    itself = []
    itself.append(itself)
    read = unpickle(pickle.dumps(itself, protocol))
    assert read[0] is read


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_scalars_are_read_as_numpy_reads_them(protocol):
    arrays = [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">f4"),
        np.array([True, False]),
        np.zeros((0, 3), np.float32),
        np.array(3, np.uint8),
        objects(np.arange(2), "a", None, [1, np.float32(0.5)]),
        objects(*"abcd").reshape(2, 2),
    ]
    for array in arrays:
        read = unpickle(pickle.dumps(array, protocol))
        assert type(read) is np.ndarray
        assert read.shape == array.shape
        assert read.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
        if array.dtype != object:
            np.testing.assert_array_equal(read, array)
    assert read.tolist() == [["a", "b"], ["c", "d"]]
    element = unpickle(pickle.dumps(arrays[6], protocol))
    assert element[0].tolist() == [0, 1] and element[1:3].tolist() == ["a", None]
    assert element[3] == [1, 0.5]
    assert unpickle(pickle.dumps([np.float64(0.1), np.int64(7)], protocol)) == [0.1, 7]


class Runs:
    """Hostile object whose pickle calls `function` when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker):
    write = f"touch {marker}"
    yield Runs(os.system, write), "posix.system"
    yield Runs(exec, f"open({str(marker)!r}, 'w')"), "builtins.exec|__builtin__.*exec"
    yield Runs(eval, "1"), "eval"
    yield Runs(getattr, object, "__subclasses__"), "getattr"
    yield Runs(np.load, str(marker)), r"numpy.*load"
    yield Runs(np.frompyfunc, print, 1, 1), r"numpy\.frompyfunc"
    yield Runs(bytes, 10**12), "no pickle that can be read"
    yield Runs(np.ndarray, (10**12,)), "calls ndarray"
    yield OrderedDict(a=1), "collections.OrderedDict"
    yield {1, 2}, "instruction|set"
    yield {1: 2}, "dictionary's key of type int"
    yield 1j, "complex"
    yield np.ma.zeros(3), "numpy.ma"
    yield np.zeros(2, [("a", "f8")]), "dtype 'V8'"
    yield np.array(["text"]), "dtype 'U4'"
    yield np.array(["2020-01-01"], "M8[D]"), "dtype 'M8'"
    yield copyreg._reconstructor, "copyreg|copy_reg"
    yield Sketch, "keras_sparse_dm"


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_what_would_run_is_named_and_does_not(tmp_path, protocol):
    marker = tmp_path / "marker"
    for value, name in hostile(marker):
        data = pickle.dumps([value], protocol)
        with pytest.raises(ValueError, match=name):
            unpickle(data)
    assert not marker.exists()
    # Python's own unpickler would have run it.
    pickle.loads(pickle.dumps(Runs(os.system, f"touch {marker}")))
    assert marker.exists()


@pytest.mark.parametrize("kind", ["sketch_rnn", "packed", "unpacked", "plain"])
def test_a_hostile_file_of_each_kind_runs_nothing(tmp_path, kind):
    marker = tmp_path / "marker"
    value = Runs(os.system, f"touch {marker}")
    if kind == "unpacked":
        path = tmp_path / "sketch_0"
        path.write_bytes(pickle.dumps(RAW | {"drawing": value}))
        read = read_chirodiff
    else:
        path = tmp_path / "a.npz"
        name = "attr0" if kind == "packed" else "train"
        if kind == "plain":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("train.npy", pickle.dumps(value))
        else:
            np.savez(path, **{name: objects(np.ones((2, 4)), value)})
        read = read_chirodiff if kind == "packed" else read_sketch_rnn
    broken = []
    assert list(read(path, lambda *told: broken.append(told))) == []
    assert broken[0][0] == path.name
    assert "header cannot be read" in str(broken[0][1]) or "nothing was run" in str(broken[0][1])
    assert not marker.exists()


def from_pickle(shape, dtype="f8", raw=b"", module=b"numpy.core.multiarray"):
    """Return a pickle of an array that claims a shape."""
    return (
        b"c"
        + module
        + b"\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01"
        + pickle.dumps(shape, 2)[2:-1]
        + b"cnumpy\ndtype\n(U"
        + bytes([len(dtype)])
        + dtype.encode()
        + b"\x89\x88tR(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + pickle.dumps(raw, 4)[2:-1].replace(b"\x94", b"")
        + b"tb."
    )


BOMBS = [
    # Lengths and numbers that exceed the file.
    (b"\x8d" + b"\xff" * 8 + b"a.", "maximum size"),
    (b"\x8e" + struct.pack("<Q", 2**40) + b"a.", "cut short"),
    (b"\x96" + struct.pack("<Q", 2**62) + b"a.", "cut short"),
    (b"\x8b\xff\xff\xff\x7f.", "whole number of 2,147,483,647 bytes"),
    (b"I" + b"9" * 5000 + b"\n.", "4300"),
    # A memo index for which a list would need billions of entries.
    (b"Nr\xff\xff\xff\xff.", None),
    # Arrays with less content than their shape claims.
    (from_pickle((10**9,)), "shape .*but 0 bytes"),
    (from_pickle((2**39, 2**39)), "shape .*but 0 bytes"),
    (from_pickle((2**62, 0)), "shape that cannot be"),
    (from_pickle((-1,)), "shape that cannot be"),
    (from_pickle((3,), "f8", b"x" * 23), "but 23 bytes"),
    (from_pickle((3,), "O8", b"x" * 24), "does not hold what its dtype says"),
    (from_pickle((3,), "f8", [1, 2, 3]), "does not hold what its dtype says"),
    # Small pickles that expand.
    (b"(" * 10_000 + b".", "nested more than 1000 deep"),
    (b"]" + b"(" + b"]" * 1_500_000 + b"e.", "more than 16 times its size"),
    (b"](" + b"}" * 1_500_000 + b"e.", "more than 16 times its size"),
    (b"N" + b"\x94" * 1_500_000 + b".", "more than 16 times its size"),
    (
        b"X" + struct.pack("<I", 2**20) + b"x" * 2**20 + b"q\x00](" +
        b"c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1tR" * 200 + b"e.",
        "more than 16 times its size",
    ),
    (b"N(((lll.", "no pickle"),
    (b"N.", None),
    (b"", "no pickle"),
    (b"cnumpy\nndarray\n.", "before its value is complete"),
    (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR.", "complete"),
    (b"Nb.", "no pickle|state of"),
    (b"]Nb.", "sets the state of a list"),
    (b"]}b.", "sets the state of a list"),
    (b"\x85.", "no pickle"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "reason"), BOMBS)
def test_pickles_of_more_than_they_hold_take_a_bounded_memory(data, reason):
    def read():
        try:
            unpickle(data)
        except ValueError as error:
            return str(error)

    found, peak = peak_of(read)
    if reason is None:
        assert found is None
    else:
        import re

        assert found is not None and re.search(reason, found), found
        assert len(found) < 300
    assert peak < 2 * (2**24 + 17 * len(data))


def test_nested_references_are_not_written_out_in_messages():
    # Each level holds the previous one ten times: its text would have 10^50 characters.
    data = b"K\x01" + b"".join(b"q%c0(" % i + b"h%c" % i * 10 + b"t" for i in range(50))
    for use in (
        b"q\x63c_codecs\nencode\nh\x63R.",
        b"q\x63cnumpy\ndtype\n(h\x63\x89\x88tR.",
        b"q\x63}h\x63h\x63s.",
        b"q\x630cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02f8\x89\x88tRh\x63tR.",
    ):
        assert len(failure(lambda use=use: unpickle(data + use))) < 300


# npz


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**7, 2, 3)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("train.npy", "w") as member:
            member.write(header.getvalue())
            for _ in range(100):
                member.write(bytes(2**20))
    assert path.stat().st_size < 2**20

    text, peak = peak_of(lambda: failure(lambda: list(read_sketch_rnn(path))))
    assert text.startswith("bomb.npz: train: unpacks to 104,857")
    assert peak < 2**21


def test_a_zip_that_lies_about_its_size_is_read_no_further(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.npy", bytes(2**26))
    data = bytearray(path.read_bytes())
    for i in range(len(data) - 4):
        if data[i : i + 4] == struct.pack("<I", 2**26):
            data[i : i + 4] = struct.pack("<I", 1000)
    path.write_bytes(data)
    text, peak = peak_of(lambda: failure(lambda: list(read_sketch_rnn(path))))
    assert "bomb.npz: train: " in text
    assert peak < 2**23


def test_bounds_on_arrays_and_files(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez(path, train=np.ones((100, 2, 3)), test=np.ones((100, 2, 3)))
    monkeypatch.setattr(npz, "MAX_ARRAY_BYTES", 1000)
    assert "it has 4,928 bytes; 1,000 is the maximum" in failure(
        lambda: list(read_sketch_rnn(path))
    )
    monkeypatch.setattr(npz, "MAX_FILE_BYTES", 9000)
    assert "to 9,856 bytes; the maximum is 9,000" in failure(lambda: list(read_sketch_rnn(path)))


def npy(header: bytes, data=b"", version=b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "header cannot be read"),
        (b"\x93NUMPY\x09\x00", "header cannot be read"),
        (npy(b"["), "header cannot be read"),
        (npy(b"(" * 5000), "header cannot be read"),
        (npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (10,)}"), "but 0 bytes"),
        (npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}", b"8" * 8), "shape"),
        (npy(b"{'descr': '|V8', 'fortran_order': False, 'shape': (1,)}", b"8" * 8), "dtype"),
        (npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"]."), "something else"),
        (npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"x"), "instruction"),
        (npy(b"{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}"), "dtype"),
    ],
)
def test_damaged_arrays_are_refused(tmp_path, content, reason):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("train.npy", content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = failure(lambda: list(read_sketch_rnn(tmp_path / "a.npz")))
    assert text.startswith("a.npz: train: ") and reason in text


# ChiroDiff


@pytest.fixture
def drawing():
    strokes = [[[0, 0, 0], [30, 40, 100]], [[30, 0, 150], [0, 50, 200], [10, 10, 260]]]
    return prepare_sketch(Sketch(strokes))


def times_of(sketch) -> np.ndarray:
    return np.concatenate(sketch.strokes)[:, 2:].astype(np.float32)


def as_packed(sketch, representation):
    """Return an array as ChiroDiff's data/qd.py packs it."""
    if representation == "absolute":
        return np.hstack([to_absolute(sketch), times_of(sketch)[1:]])
    return np.hstack([to_delta(sketch), times_of(sketch)[:-1]])


@pytest.mark.parametrize("representation", ["absolute", "delta"])
def test_packed_sketches_come_back_with_their_times(tmp_path, drawing, representation):
    other = prepare_sketch(Sketch([[[0, 0, 0], [5, 1, 1], [3, 3, 2]]]))
    rows = [as_packed(sketch, representation) for sketch in (drawing, other)]
    # Like the program: arrays of equal length become an array of three dimensions.
    for packed in (
        np.array(rows, dtype=np.ndarray) if len(rows[0]) != len(rows[1]) else objects(*rows),
        np.array(rows[:1] * 2, dtype=np.ndarray),
    ):
        np.savez(tmp_path / "cat.npz", attr0=packed)
        for chosen in (None, representation):
            sketches = list(read_chirodiff(tmp_path / "cat.npz", representation=chosen))
            assert [s.name for s in sketches] == ["cat-0", "cat-1"]
            for a, b in zip(sketches[0], drawing, strict=True):
                np.testing.assert_allclose(a, b, atol=2e-6)
            assert len(sketches[1]) == (1 if packed.ndim == 1 else 2)


def test_classes_are_labels_and_conditions_are_left_out(tmp_path, drawing):
    row = as_packed(drawing, "delta")
    path = tmp_path / "a.npz"
    # The program packs tensors without dimensions.
    classes = np.array([np.array(3), np.array(0)], dtype=np.ndarray)
    np.savez(path, attr0=classes, attr1=objects(row, row))
    assert [s.label for s in read_chirodiff(path)] == ["3", "0"]
    np.savez(path, attr0=classes[:1], attr1=objects(row, row))
    assert [s.label for s in read_chirodiff(path)] == ["", ""]
    cloud = np.zeros((7, 2), np.float32)
    np.savez(path, attr0=objects(cloud, cloud[:5]), attr1=objects(row, row))
    assert [(s.label, len(s)) for s in read_chirodiff(path)] == [("", 2), ("", 2)]


def test_a_packed_file_that_does_not_tell_what_it_is(tmp_path):
    row = np.array([[1, 0, 0, 0.2], [2, 0, 1, 0.8]], np.float32)
    path = tmp_path / "a.npz"
    np.savez(path, attr0=objects(row))
    text = failure(lambda: list(read_chirodiff(path)))
    assert text.startswith("a.npz: may hold positions or differences") and "representation=" in text
    (sketch,) = read_chirodiff(path, representation="absolute")
    np.testing.assert_allclose(sketch.strokes[0], [[0, 0, 0], [1, 0, 0.2], [2, 0, 0.8]], atol=1e-7)
    (sketch,) = read_chirodiff(path, representation="delta")
    np.testing.assert_allclose(sketch.strokes[0], [[0, 0, 0.2], [1, 0, 0.8], [3, 0, 1]], atol=1e-7)
    with pytest.raises(ValueError, match="representation='points' must be"):
        read_chirodiff(path, representation="points")
    np.savez(path, train=objects(row))
    assert "a.npz: holds no 'attr0'; it holds 'train'" in failure(
        lambda: list(read_chirodiff(path))
    )


def test_broken_packed_sketches_are_told_and_skipped(tmp_path, drawing):
    good = as_packed(drawing, "absolute")
    back, pen = good.copy(), good.copy()
    back[3, 3] = 0
    pen[1, 2] = 7
    np.savez(
        tmp_path / "a.npz", attr0=objects(good, good[:, :3], back, None, pen, good * np.nan, good)
    )
    broken = []
    sketches = read_chirodiff(tmp_path / "a.npz", lambda *told: broken.append(told))
    assert [s.name for s in sketches] == ["a-0", "a-6"]
    assert [where for where, _ in broken] == [f"a.npz, attr0[{i}]" for i in range(1, 6)]
    texts = [str(error) for _, error in broken]
    for text, reason in zip(
        texts, ("(points, 4)", "go back", "no array", "pen", "NaN"), strict=True
    ):
        assert reason in text


def test_unpacked_folders_of_one_and_of_several_categories(tmp_path):
    nameless = {"drawing": RAW["drawing"]}
    folder = tmp_path / "unpacked"
    for category in ("dog", "cat"):
        (folder / category).mkdir(parents=True)
        for i, record in enumerate((nameless, RAW)):
            (folder / category / f"sketch_{i}").write_bytes(pickle.dumps(record))
    (folder / "cat" / ".hidden").write_text("")
    named = RAW["key_id"]
    found = [(s.name, s.label) for s in read_chirodiff(folder)]
    assert found == [("sketch_0", "cat"), (named, "cat"), ("sketch_0", "dog"), (named, "cat")]
    found = [(s.name, s.label) for s in read_chirodiff(folder / "dog")]
    assert found == [("sketch_0", ""), (named, "cat")]
    (sketch,) = read_chirodiff(folder / "dog" / "sketch_1", max_strokes=1)
    assert [s.tolist() for s in sketch] == [[[10, 20, 0], [13.5, 24, 50]]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty' holds no file"):
        read_chirodiff(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="none' does not exist"):
        read_chirodiff(tmp_path / "none")


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_unpacked_drawings_of_arrays_are_read_too(tmp_path, protocol):
    strokes = [
        tuple(np.array(column, np.float32) for column in stroke) for stroke in RAW["drawing"]
    ]
    (tmp_path / "sketch_0").write_bytes(pickle.dumps({"drawing": strokes}, protocol))
    (sketch,) = read_chirodiff(tmp_path / "sketch_0")
    assert [s.tolist() for s in sketch] == [[[10, 20, 0], [13.5, 24, 50]], [[7, 8, 90]]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no pickle"),
        (b"text", "no pickle"),
        (pickle.dumps([]), "no drawing"),
        (pickle.dumps({"drawing": {}}), "holds no stroke"),
        (pickle.dumps({"drawing": [[[1], [2], [1j]]]}), "complex"),
        (pickle.dumps({"drawing": [[[1], [2], ["x"]]]}), "stroke 0 holds str"),
        (pickle.dumps({"drawing": np.array(3.0)}), "holds no stroke"),
        (pickle.dumps({"drawing": [[[1, 2], [2, 3], [4, 3]]]}), "goes back"),
        (b"\x80\x04]" + b"N" * 2**24, "more than 16,777,216; no drawing has"),
    ],
)
def test_broken_unpacked_drawings_are_told_by_their_file(tmp_path, content, reason):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "sketch_3").write_bytes(content)
    text = failure(lambda: list(read_chirodiff(tmp_path)))
    assert text.startswith("cat/sketch_3: ") and reason in text


@pytest.mark.parametrize("column", [[0] * 1000, np.zeros(1000)])
def test_a_stroke_that_is_repeated_for_ever_takes_a_bounded_memory(tmp_path, column):
    (tmp_path / "sketch_0").write_bytes(pickle.dumps({"drawing": [[column] * 3] * 100_000}))
    text, peak = peak_of(lambda: failure(lambda: list(read_chirodiff(tmp_path))))
    assert text == "sketch_0: has 100,000,000 points; 1,048,576 is the maximum"
    assert peak < 2**25


# SVG


def draw(path, inside, attributes=""):
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{inside}</svg>')
    return path


def bounds(stroke):
    return [*stroke[:, :2].min(axis=0), *stroke[:, :2].max(axis=0)]


def test_shapes_are_strokes_of_their_outline(tmp_path):
    path = draw(
        tmp_path / "a.svg",
        '<line x1="1" y1="2" x2="4px" y2="6"/>'
        '<polyline points="0,0 10,0,10 10"/>'
        '<polygon points="0 0 3-0 3 4"/>'
        '<rect x="1" y="2" width="3" height="4"/>'
        '<circle cx="10" cy="20" r="5"/>'
        '<ellipse cx="10" cy="20" rx="5" ry="2"/>'
        '<rect x="1" y="2" width="30" height="40" rx="5"/>'
        '<rect width="0" height="4"/><circle/><polyline points=""/><text>t</text>',
    )
    line, polyline, polygon, rect, circle, ellipse, rounded = read_svg(path)
    assert line[:, :2].tolist() == [[1, 2], [4, 6]]
    assert polyline[:, :2].tolist() == [[0, 0], [10, 0], [10, 10]]
    assert polygon[:, :2].tolist() == [[0, 0], [3, 0], [3, 4], [0, 0]]
    assert rect[:, :2].tolist() == [[1, 2], [4, 2], [4, 6], [1, 6], [1, 2]]
    np.testing.assert_allclose(np.hypot(*(circle[:, :2] - [10, 20]).T), 5)
    np.testing.assert_allclose(circle[[0, -1], :2], [[15, 20], [15, 20]], atol=1e-12)
    # SVG's direction is clockwise on the screen, so downwards first.
    assert circle[1, 1] > 20
    np.testing.assert_allclose(bounds(ellipse), [5, 18, 15, 22])
    np.testing.assert_allclose(bounds(rounded), [1, 2, 31, 42], atol=1e-9)
    # Four sides and four quarters of a circle.
    length = np.hypot(*np.diff(rounded[:, :2], axis=0).T).sum()
    assert length == pytest.approx(2 * 20 + 2 * 30 + 10 * np.pi, rel=1e-4)


# Images of (x, y) = (3, 4) by the definitions of the SVG specification.
TRANSFORMS = [
    ("translate(10)", (13, 4)),
    ("translate(10, 20)", (13, 24)),
    ("translate(10-20)", (13, -16)),
    ("scale(2)", (6, 8)),
    ("scale(2 .5)", (6, 2)),
    ("rotate(90)", (-4, 3)),
    ("rotate(90, 3, 4)", (3, 4)),
    ("rotate(180 1 1)", (-1, -2)),
    ("skewX(45)", (7, 4)),
    ("skewY(45)", (3, 7)),
    ("matrix(1 2 3 4 5 6)", (1 * 3 + 3 * 4 + 5, 2 * 3 + 4 * 4 + 6)),
    ("translate(10) scale(2)", (16, 8)),
    ("scale(2),translate(1e1)", (26, 8)),
    ("", (3, 4)),
]


@pytest.mark.parametrize(("transform", "expected"), TRANSFORMS)
def test_transforms_move_points_as_the_specification_says(tmp_path, transform, expected):
    path = draw(tmp_path / "a.svg", f'<path transform="{transform}" d="M3 4 L3 4"/>')
    np.testing.assert_allclose(read_svg(path).strokes[0][0, :2], expected, atol=1e-12)


def test_transforms_of_groups_apply_to_what_is_in_them(tmp_path):
    path = draw(
        tmp_path / "a.svg",
        '<g transform="translate(100)"><g transform="scale(2)"><path d="M3 4 L5 4"/></g>'
        '<path d="M3 4 L5 4"/></g><path d="M3 4 L5 4"/>',
    )
    starts = [s[0, :2].tolist() for s in read_svg(path)]
    assert starts == [[106, 8], [103, 4], [3, 4]]
    # A rotated and stretched circle equals the resulting ellipse.
    circle = '<g transform="rotate(90) scale(2,1)"><circle r="3"/></g>'
    np.testing.assert_allclose(
        bounds(read_svg(draw(tmp_path / "b.svg", circle)).strokes[0]), [-3, -6, 3, 6], rtol=1e-3
    )


@pytest.mark.parametrize(
    ("d", "ends"),
    [
        ("m1e1-2.5l.5-.5,3 3z", [[10, -2.5], [10, -2.5]]),
        ("M0,0H10V10h-5 v-5 , ", [[0, 0], [5, 5]]),
        (" M 0 0\nC1 1 2 2 3 3S5 5 6 6Q7 7 8 8T10 10 ", [[0, 0], [10, 10]]),
        ("M10 10a5 5 0 0110 0 5 5 0 1 0 1 1", [[10, 10], [21, 11]]),
        ("M+1.-1.L2.,2.", [[1, -1], [2, 2]]),
    ],
)
def test_paths_may_be_written_tersely(tmp_path, d, ends):
    (stroke,) = read_svg(draw(tmp_path / "a.svg", f'<path d="{d}"/>'))
    np.testing.assert_allclose(stroke[[0, -1], :2], ends, atol=1e-12)


def test_what_is_not_drawn_is_left_out(tmp_path):
    path = draw(
        tmp_path / "a.svg",
        '<defs><line x2="1"/></defs><g display="none"><line x2="2"/></g><line x2="3"/>'
        '<clipPath><rect width="4" height="4"/></clipPath>'
        '<g style="fill:none; display : none"><path d="M0 0H5"/></g>',
    )
    assert [s[-1, 0] for s in read_svg(path)] == [3]


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        ('<path transform="turn(3)" d="M0 0 L1 1"/>', "transform turn with 1 numbers"),
        ('<path transform="rotate(1 2)" d="M0 0 L1 1"/>', "transform rotate with 2 numbers"),
        ('<path transform="scale(a)" d="M0 0 L1 1"/>', "'a' for the transform scale"),
        ('<path transform="scale" d="M0 0 L1 1"/>', "the invalid transform 'scale'"),
        ('<path transform="scale(1e400)" d="M0 0 L1 1"/>', "infinite or too large|NaN"),
        ('<path d="M0 0 L1 1 2"/>', "the path 'M0 0 L1 1 2', which is invalid"),
        ('<path d="M0 0 L1 1 X 3 3 L5 5"/>', "path .* which is invalid"),
        ('<path d="M0 0 L1..5 1 L5 5"/>', "path .* which is invalid"),
        ('<path d="M0 0 A1 1 0 2 0 3 3"/>', "path .* which is invalid"),
        ('<path d="L3 3"/>', "path .* which is invalid"),
        ('<line x1="50%"/>', "'50%' for x1 of a <line>"),
        ('<line x1="1 2"/>', "'1 2' for x1 of a <line>"),
        ('<polyline points="1 2 3"/>', "<polyline> with 3 numbers"),
        ('<polyline points="1 2 x"/>', "must be numbers"),
        ('<rect width="-1" height="2"/>', "negative size"),
        ('<circle r="-1"/>', "negative radius"),
        ('<path id="a" d="M0 0 L1 1"/><use href="#a"/>', "<use>"),
        ("<g>" * 1001, "nested more than 1000 deep"),
    ],
)
def test_shapes_and_transforms_that_are_none_are_refused(tmp_path, inside, reason):
    with pytest.raises(ValueError, match=rf"^a\.svg: .*({reason})"):
        read_svg(draw(tmp_path / "a.svg", inside))


def test_entities_are_refused_before_they_swell(tmp_path):
    entities = "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(20))
    path = tmp_path / "bomb.svg"
    path.write_text(f'<!DOCTYPE svg [<!ENTITY a "ha">{entities}]><svg><path d="&u;"/></svg>')
    text, peak = peak_of(lambda: failure(lambda: read_svg(path)))
    assert text.startswith("bomb.svg: declares the entity 'a'")
    assert peak < 2**20
    path.write_text('<!DOCTYPE svg [<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;]><svg/>')
    assert "declares the entity 'a'" in failure(lambda: read_svg(path))


def test_a_document_type_without_entities_is_no_harm(tmp_path):
    path = tmp_path / "a.svg"
    path.write_text(
        '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "http://nowhere.invalid/svg10.dtd" '
        '[<!ATTLIST path d CDATA "M0 0 L1 2">]><svg><path/></svg>'
    )
    assert read_svg(path).strokes[0][:, :2].tolist() == [[0, 0], [1, 2]]


def test_large_drawings_are_bounded(tmp_path, monkeypatch):
    path = draw(tmp_path / "a.svg", f'<path d="M0 0 {"h1" * 600_000}"/>')
    assert "path of 1,200,005 characters" in failure(lambda: read_svg(path))
    draw(path, f'<path d="M0 0 {"a1 1 0 001 1" * 5000}"/>')
    assert "more than 1,000,000 line segments" in failure(lambda: read_svg(path))
    monkeypatch.setattr(svg, "MAX_BYTES", 100)
    assert "has more than 100 bytes" in failure(lambda: read_svg(path))


@pytest.mark.parametrize("scale", [1e-12, 1, 123.456, 1e12])
def test_a_written_svg_reads_back_to_the_same_points(tmp_path, scale):
    rng = np.random.default_rng(1)
    sketch = Sketch(
        [np.column_stack([rng.normal(3, scale, (n, 2)), np.arange(n)]) for n in (2, 9, 40)]
    )
    write_svg(tmp_path / "a.svg", sketch)
    back = read_svg(tmp_path / "a.svg")
    assert [len(s) for s in back] == [2, 9, 40]
    for a, b in zip(back, sketch, strict=True):
        np.testing.assert_allclose(a[:, :2], b[:, :2], rtol=1e-12)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.svg"]


def test_a_written_svg_shows_the_whole_sketch(tmp_path):
    write_svg(tmp_path / "a.svg", Sketch([[[10, 20, 0], [110, 70, 1]], [[30, 30, 2]]], "<&\ud800"))
    text = (tmp_path / "a.svg").read_text()
    assert 'viewBox="5.0 15.0 110.0 60.0"' in text
    line, dot = read_svg(tmp_path / "a.svg")
    assert dot[:, :2].tolist() == [[30, 30]] * 2
    write_svg(tmp_path / "dot.svg", Sketch([[[1, 1, 0]]]))
    assert 'viewBox="0.95 0.95 0.1 0.1"' in (tmp_path / "dot.svg").read_text()
    with pytest.raises(ValueError, match="sketch 'none' has no stroke"):
        write_svg(tmp_path / "b.svg", Sketch([], "none"))
    with pytest.raises(ValueError, match="sketch 'huge' is too large"):
        write_svg(tmp_path / "b.svg", Sketch([[[-1e308, 0, 0], [1e308, 0, 0]]], "huge"))
    assert not (tmp_path / "b.svg").exists()


# JSON

EXTREME = [
    Sketch(
        [[[0.1, -0.0, 5e-324], [1.7976931348623157e308, -1e-300, -3]], [[1 / 3, 2 / 3, 0]]],
        "a",
        "b",
    ),
    Sketch([], "nothing"),
    Sketch([[[1, 2, 3]]], 'quotes " \\ \n \u2028 漢字 \ud800', "é"),
]


def assert_same(sketches, expected):
    for a, b in zip(sketches, expected, strict=True):
        assert (a.name, a.label) == (b.name, b.label)
        assert [s.tobytes() for s in a] == [s.tobytes() for s in b]


def test_json_loses_nothing(tmp_path):
    path = tmp_path / "a.json"
    assert write_sketch_json(path, iter(EXTREME)) == 3
    assert_same(read_sketch_json(path), EXTREME)
    # It is JSON of the documented form, and is read in any layout.
    content = json.loads(path.read_text())
    assert content["format"] == "keras_sparse_dm sketches" and content["version"] == 1
    assert [s["name"] for s in content["sketches"]] == [s.name for s in EXTREME]
    for indent in (None, 2):
        path.write_text(json.dumps(content, indent=indent))
        assert_same(read_sketch_json(path), EXTREME)
    assert write_sketch_json(path, []) == 0
    assert list(read_sketch_json(path)) == []
    assert json.loads(path.read_text())["sketches"] == []


def test_json_is_read_sketch_by_sketch(tmp_path):
    path = tmp_path / "a.json"
    points = np.random.default_rng(0).normal(size=(1000, 3))
    write_sketch_json(path, (Sketch([points], str(i)) for i in range(100)))
    assert path.stat().st_size > 5e6
    count, peak = peak_of(lambda: sum(1 for _ in read_sketch_json(path)))
    assert count == 100
    assert peak < 1.5e6
    # The carriage returns of some systems change nothing.
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert peak_of(lambda: sum(1 for _ in read_sketch_json(path)))[0] == 100


def test_json_that_fails_leaves_what_there_was(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("before")

    def fails():
        yield EXTREME[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_sketch_json(path, fails())
    monkeypatch.setattr(sketch_json, "MAX_POINTS", 2)
    with pytest.raises(ValueError, match="sketch 'a' has 3 points; 2 is the maximum"):
        write_sketch_json(path, EXTREME)
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "before"


def test_broken_sketches_in_json_are_told_by_line(tmp_path):
    path = tmp_path / "a.json"
    write_sketch_json(path, [Sketch([[[1, 2, 3]]], str(i)) for i in range(6)])
    rows = path.read_text().split("\n")
    rows[2] = rows[2].replace("1.0", "NaN")
    rows[3] = rows[3].replace("[[1.0], [2.0], [3.0]]", "[[1.0], [2.0]]")
    rows[4] = '{"name": 3, "strokes": []},'
    rows[5] = "[" * 100_000
    path.write_text("\n".join(rows + ["more"]))
    broken = []
    sketches = read_sketch_json(path, lambda *told: broken.append(told))
    assert [s.name for s in sketches] == ["0", "5"]
    assert [where for where, _ in broken] == [f"a.json, line {n}" for n in (3, 4, 5, 6, 10)]
    for (where, error), reason in zip(
        broken, ("NaN", "without times", "not a text", "recursion", "follows the end"), strict=True
    ):
        assert str(error).startswith(f"{where}: ") and reason in str(error)
    path.write_text("\n".join(rows[:2]))
    text = failure(lambda: list(read_sketch_json(path)))
    assert text == "a.json: is cut short: it lacks the line ']}'"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "is no file of sketches"),
        ("{}", "is no file of sketches"),
        ('{"format": "keras_sparse_dm sketches", "version": 2}', '"version": 1'),
        ('{"format": "keras_sparse_dm sketches", "version": 1}', 'a list of "sketches"'),
        ('{"format": "keras_sparse_dm sketches", "version": 1, "sketches": [3]}', "no sketch"),
        ("[" * 100_000, "recursion"),
        ("9" * 2**24 + "9", "more than 16,777,216; only files that begin with the line"),
    ],
)
def test_files_that_are_no_sketch_json_are_refused(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_text(content)
    text = failure(lambda: list(read_sketch_json(path)))
    assert text.startswith("a.json") and reason in text


def test_every_reader_tells_of_a_missing_file_at_once(tmp_path):
    for read in (read_quickdraw, read_sketch_rnn, read_chirodiff, read_sketch_json, read_svg):
        with pytest.raises(FileNotFoundError, match="none"):
            read(tmp_path / "none")


def test_travel_times_of_what_overflows_are_refused_by_the_sketch():
    points = np.array([[-1e308, 0], [1e308, 0]])
    with pytest.raises(ValueError, match="NaN or infinite"):
        Sketch(tuple(strokes.with_travel_times(points, [2])))
