"""Damaged files of every format raise a ValueError, use little memory and never crash."""

import gzip
import json
import pickle
import random
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_sparse_dm.data.formats.restricted_pickle import unpickle
from keras_sparse_dm.data.reading import (
    parse_line,
    read_chirodiff,
    read_quickdraw,
    read_sketch_json,
    read_sketches,
    write_sketch_json,
    write_svg,
)
from keras_sparse_dm.data.sketch import Sketch

examples = settings(
    max_examples=50,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

RECORD = {
    "word": "cat",
    "key_id": "12",
    "recognized": True,
    "drawing": [[[0, 3, 5], [0, 4, 4], [0, 9, 30]], [[7.5, 8], [1, 2], [40, 55]]],
}
SKETCHES = [Sketch([[[0, 0, 0], [3, 4, 1], [5, 5, 2]], [[9, 9, 3], [1, 1, 4]]], "a", "b")] * 3


def objects(*elements):
    array = np.empty(len(elements), object)
    for i, element in enumerate(elements):
        array[i] = element
    return array


def valid_files(folder):
    """Write one intact file of each format."""
    line = json.dumps(RECORD).encode() + b"\n"
    (folder / "a.ndjson").write_bytes(line * 3)
    (folder / "a.ndjson.gz").write_bytes(gzip.compress(line * 3, mtime=0))
    rows = objects(*[np.array([[1, 2, 0], [3, 4, 1], [5, 6, 1]], np.int16)] * 3)
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        with archive.open("train.npy", "w") as member:
            np.lib.format.write_array(member, rows)
    np.savez_compressed(folder / "b.npz", train=rows, test=rows)
    packed = np.array([[1, 1, 0, 0.25], [2, 3, 0, 0.5], [1, 0, 1, 1]], np.float32)
    np.savez(folder / "c.npz", attr0=objects(1, 2), attr1=objects(packed, packed[1:]))
    (folder / "sketch_0").write_bytes(pickle.dumps(RECORD, 4))
    (folder / "a.pkl").write_bytes(pickle.dumps(RECORD, 0))
    write_sketch_json(folder / "a.json", SKETCHES)
    content = json.loads((folder / "a.json").read_text())
    (folder / "b.json").write_text(json.dumps(content, indent=1))
    write_svg(folder / "a.svg", SKETCHES[0])
    (folder / "b.svg").write_text(
        '<!DOCTYPE svg [<!ATTLIST g a CDATA #IMPLIED>]><svg xmlns="http://www.w3.org/2000/svg">'
        '<g transform="rotate(30 1 2) translate(3)"><rect width="3" height="4" rx="1"/>'
        '<polyline points="1,2 3,4 5.5-6"/><circle r="3"/></g>'
        '<path d="M1 2c3 4 5 6 7 8a1 2 3 0 1 4 5z"/>'
        "</svg>"
    )


NAMES = [
    "a.ndjson",
    "a.ndjson.gz",
    "a.npz",
    "b.npz",
    "c.npz",
    "sketch_0",
    "a.pkl",
    "a.json",
    "b.json",
    "a.svg",
    "b.svg",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the content of an intact file of each format, by name."""
    folder = tmp_path_factory.mktemp("whole")
    valid_files(folder)
    assert sorted(file.name for file in folder.iterdir()) == sorted(NAMES)
    assert len(list(read_sketches(folder))) == 3 + 3 + 3 + 6 + 2 + 1 + 1 + 3 + 3 + 1 + 1
    return {file.name: file.read_bytes() for file in folder.iterdir()}


TOKENS = [
    b"",
    b"\x00",
    b"\xff\xfe",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b"-1",
    b"[",
    b"]",
    b"{}",
    b'"',
    b",",
    b"<",
    b"&#0;",
    b"\n",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"(",
    b"l",
    b"R",
    b"b",
    b".",
    b"\x94",
    b"\x8e",
    b"cos\nsystem\n",
]


def damaged(content: bytes, seed: int) -> bytes:
    """Return the content after one to four random changes."""
    rng = random.Random(seed)
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        kind = rng.randrange(7)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : min(to, at + 20)]
        elif kind == 2:
            data[at : at + len(token)] = (token := rng.choice(TOKENS))
        elif kind == 3:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 4 and data:
            data[min(at, len(data) - 1)] ^= rng.randrange(1, 256)
        elif kind == 5:
            data[at:to] = bytes(reversed(data[at:to]))
        else:
            data[at:at] = data[at : at + 50] * rng.randint(1, 3)
    return bytes(data)


def read(path, **options):
    """Read a file with and without `on_broken`, and check that both agree up to the first error.

    Returns:
        The numbers of sketches and of broken ones.
    """
    told = []
    with warnings.catch_warnings():
        # NumPy warns of old headers, which does not matter here.
        warnings.simplefilter("ignore")
        sketches = list(read_sketches(path, lambda *broken: told.append(broken), **options))
        for where, error in told:
            assert type(where) is str and where.startswith(path.name)
            assert isinstance(error, ValueError)
            assert str(error).startswith(where) and "\n" not in str(error)
            assert len(str(error)) < 1000
        try:
            raised = None
            names = [sketch.name for sketch in read_sketches(path, **options)]
            assert names == [sketch.name for sketch in sketches]
        except ValueError as error:
            raised = str(error)
    assert (raised is None) == (not told)
    assert raised is None or raised == str(told[0][1])
    for sketch in sketches:
        assert sketch.num_points >= len(sketch)
    return len(sketches), len(told)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32))
@examples
def test_damage_gives_value_errors_and_takes_little_memory(whole, tmp_path, name, seed):
    path = tmp_path / name
    path.write_bytes(damaged(whole[name], seed))
    tracemalloc.start()
    try:
        read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # An SVG with the longest allowed chords takes the most memory.
    assert peak < (2**29 if name.endswith(".svg") else 2**24)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_cut_short_anywhere_is_told(whole, tmp_path, name):
    content = whole[name]
    path = tmp_path / name
    good = read(path) if path.write_bytes(content) else None
    step = max(1, len(content) // 25)
    for end in range(0, len(content), step):
        path.write_bytes(content[:end])
        count, broken = read(path)
        assert count <= good[0]
        # Files of lines may end after any line.
        if not name.endswith(".ndjson"):
            assert broken or count == good[0] or (name.endswith(".gz") and end == 0), end


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, -(10**400), 1e308, float("nan")]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)
# Near drawings: lists of lists of lists of values.
drawings = st.lists(
    st.lists(st.lists(st.floats(width=32) | st.integers(-5, 5) | values, max_size=3), max_size=4)
    | values,
    max_size=3,
)


@pytest.mark.slow
@given(
    record=st.fixed_dictionaries(
        {"drawing": drawings | values},
        optional={"word": values, "key_id": values, "recognized": values},
    )
    | values
)
@settings(examples, max_examples=100)
def test_json_of_any_kind_is_a_drawing_or_a_value_error(tmp_path, record):
    line = json.dumps(record).encode()
    try:
        drawing = parse_line(line, "a, line 1")
    except ValueError as error:
        assert str(error).startswith("a, line 1: ")
    else:
        assert drawing.sketch.num_points >= 1
        assert len(drawing.sketch) == len(record["drawing"])
    (tmp_path / "sketch_0").write_bytes(pickle.dumps(record))
    read(tmp_path / "sketch_0")
    own = {"format": "keras_sparse_dm sketches", "version": 1, "sketches": [record]}
    if isinstance(record, dict):
        own["sketches"] += [{"strokes": record.get("drawing"), "name": record.get("word", "")}]
    (tmp_path / "a.json").write_text(json.dumps(own))
    read(tmp_path / "a.json")


@given(
    elements=st.lists(
        values
        | st.builds(
            lambda shape, dtype, value: np.full(shape, value).astype(dtype),
            st.lists(st.integers(0, 4), max_size=3).map(tuple),
            st.sampled_from(["i1", "u8", "f2", ">f8", "?", "O"]),
            st.integers(0, 1) | st.sampled_from([0.0, 0.5]),
        ),
        max_size=4,
    )
)
@examples
def test_arrays_of_any_kind_are_sketches_or_value_errors(tmp_path, elements):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key in ("train", "attr0"):
            path = tmp_path / f"{key}.npz"
            np.savez(path, **{key: objects(*elements)})
            count, broken = read(path)
            assert count + broken == len(elements) or broken == 1
        for representation in ("absolute", "delta"):
            sketches = read_chirodiff(path, lambda *_: None, representation)
            assert len(list(sketches)) <= len(elements)


@given(data=st.binary(max_size=60))
@settings(examples, max_examples=200)
def test_bytes_of_any_kind_are_a_value_or_a_value_error(data):
    for beginning in (b"", b"\x80\x04", b"](K\x01K\x02", b"cnumpy\ndtype\n("):
        try:
            unpickle(beginning + data)
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\x00" * 100, b"\xff" * 100, b"PK\x03\x04", b"\x1f\x8b\x08"]
)
def test_files_of_nothing_and_of_rubbish(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    count, broken = read(path)
    assert count == 0
    # A file without lines, compressed or not, holds no drawing, and nothing in it is broken.
    blank = not content.strip() and ".ndjson" in name
    assert broken == 0 if blank and not (name.endswith("gz") and content) else broken >= 1


def test_readers_of_streams_stop_where_they_are_left(whole, tmp_path):
    (tmp_path / "a.ndjson").write_bytes(whole["a.ndjson"] + b"{")
    (tmp_path / "a.json").write_bytes(whole["a.json"][:-5])
    for name, reader in (("a.ndjson", read_quickdraw), ("a.json", read_sketch_json)):
        sketches = reader(tmp_path / name)
        assert next(sketches).num_points == 5
        sketches.close()
