"""QuickDraw's `.ndjson` files."""

import gzip
import json
import zlib

import numpy as np
import pytest
from sketch_files import RAW, dump, failure, peak_of

from keras_sparse_dm.data.formats import bounded_files, ndjson
from keras_sparse_dm.data.reading import (
    lines,
    parse_line,
    read_quickdraw,
)


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
    (b"[]", "is not a drawing"),
    (b"17", "is not a drawing"),
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


@pytest.mark.slow
def test_hostile_json_takes_a_bounded_memory():
    line = b'{"drawing":[' + b"[]," * 2**18 + b"[]]}"
    text, peak = peak_of(lambda: failure(lambda: parse_line(line, "x")))
    assert text.startswith("x: stroke 0 is 0 lists")
    assert peak < 40 * len(line)


@pytest.mark.slow
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
