"""Pickles of plain values are read; all others are refused, and nothing in them is run."""

import copyreg
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from sketch_files import RAW, failure, objects, peak_of

from keras_sparse_dm.data import Sketch
from keras_sparse_dm.data.formats.restricted_pickle import unpickle
from keras_sparse_dm.data.reading import (
    read_chirodiff,
    read_sketch_rnn,
)

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
    yield Runs(bytes, 10**12), "not a readable pickle"
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
    (b"N(((lll.", "not a readable pickle"),
    (b"N.", None),
    (b"", "not a readable pickle"),
    (b"cnumpy\nndarray\n.", "before its value is complete"),
    (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR.", "complete"),
    (b"Nb.", "not a readable pickle|state of"),
    (b"]Nb.", "sets the state of a list"),
    (b"]}b.", "sets the state of a list"),
    (b"\x85.", "not a readable pickle"),
]  # fmt: skip


@pytest.mark.slow
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
