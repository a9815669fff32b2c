"""`.npz` files: sketch-rnn's, and damaged or hostile ones."""

import io
import struct
import warnings
import zipfile

import numpy as np
import pytest
from sketch_files import failure, objects, peak_of

from keras_sparse_dm.data.formats import npz
from keras_sparse_dm.data.reading import (
    read_sketch_rnn,
)

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
    (None, "is not an array of numbers"),
    ("cat", "is not an array of numbers"),
    ([[1, 2, 0]], "is not an array of numbers"),
    (objects("a", "b"), "is not an array of numbers"),
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
    assert "train: holds an array of shape (3,), which is not a list" in str(broken[0][1])
    assert "valid: holds an array of dtype <U4" in str(broken[1][1])
    np.savez(path, other=np.zeros(3))
    assert "a.npz: holds no 'train' and no 'valid' and no 'test'; it holds 'other'" in failure(
        lambda: list(read_sketch_rnn(path))
    )
    path.write_bytes(b"PK nothing")
    assert failure(lambda: list(read_sketch_rnn(path))).startswith("a.npz: is not an .npz file")


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
