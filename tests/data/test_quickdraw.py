import gzip
import json
import pickle

import numpy as np
import pytest

from keras_sparse_dm.data import load_quickdraw, quickdraw_categories, quickdraw_folder

pytestmark = pytest.mark.usefixtures("own_cache")


def drawing(seed, word="cat", recognized=True, times=True):
    rng = np.random.default_rng(seed)
    strokes, t = [], 0
    for _ in range(2):
        n = int(rng.integers(3, 8))
        # Short enough to be kept.
        stroke = rng.integers(0, 99, (2, n)).cumsum(axis=1).tolist()
        if times:
            stroke.append([t := t + 20 for _ in range(n)])
        strokes.append(stroke)
    return {"word": word, "key_id": str(seed), "recognized": recognized, "drawing": strokes}


def lines(seeds, word="cat", **options):
    return "".join(json.dumps(drawing(s, word, **options)) + "\n" for s in seeds).encode()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "quickdraw"
    folder.mkdir()
    (folder / "cat.ndjson").write_bytes(lines(range(30)))
    (folder / "crab.ndjson.gz").write_bytes(gzip.compress(lines(range(100, 125), "crab")))
    (folder / "mosquito.ndjson").write_bytes(
        lines(range(200, 210), "mosquito") + lines(range(210, 230), "mosquito", recognized=False)
    )
    (folder / "full_raw_The Eiffel Tower.ndjson").write_bytes(lines(range(9), "The Eiffel Tower"))
    (folder / "full%2Fsimplified%2Fowl.ndjson").write_bytes(lines(range(9), "owl", times=False))
    return folder


def load(folder, *args, **kwargs):
    return load_quickdraw(folder, *args, progress=False, workers=1, **kwargs)


def test_the_papers_categories_by_default(folder):
    train, validation = load(folder)
    assert train.summary.labels == {"cat": 30, "crab": 25, "mosquito": 30}
    assert (len(train), len(validation)) == (72, 13)
    assert {*train.labels} == {"cat", "crab", "mosquito"}
    assert sorted(map(int, train.names + validation.names)) == [
        *range(30),
        *range(100, 125),
        *range(200, 230),
    ]


def test_only_recognized_drawings_where_asked(folder):
    train, validation = load(folder, ["mosquito"], recognized=True)
    assert sorted(map(int, train.names + validation.names)) == list(range(200, 210))
    assert train.summary.left_out == 20


def test_the_first_sketches_and_strokes(folder):
    train, validation = load(folder, max_sketches=5, max_strokes=1)
    assert train.summary.labels == {"cat": 5, "crab": 5, "mosquito": 5}
    assert {*map(int, train.names + validation.names)} == {
        *range(5),
        *range(100, 105),
        *range(200, 205),
    }
    assert all((points[:, 2] > 0.5).sum() == 1 for points in train)


def test_files_by_the_names_they_are_downloaded_under(folder):
    for category in ("The Eiffel Tower", "owl"):
        train, validation = load(folder, category)
        assert len(train) + len(validation) == 9
        assert {*train.labels} == {category}


def test_pickles_and_npz_files_of_a_category(folder):
    (folder / "bus").mkdir()
    for i in range(8):
        (folder / "bus" / f"sketch_{i}").write_bytes(pickle.dumps(drawing(i, "bus")))
    rows = np.empty(8, object)
    for i in range(8):
        rows[i] = np.array([[i + 1, 2, 0], [3, 1, 0], [0, 4, 1]], np.int16)
    np.savez(folder / "sketchrnn_fish.full.npz", train=rows, valid=rows[:1], test=rows[:1])
    train, validation = load(folder, ["bus", "fish"])
    assert train.summary.labels == {"bus": 8, "fish": 10}
    with pytest.raises(ValueError, match="recognized=True requires .ndjson files.*; received bus"):
        load(folder, ["bus"], recognized=True)
    # An .ndjson file of the category is preferred.
    (folder / "bus.ndjson").write_bytes(lines(range(9), "bus"))
    assert load(folder, "bus")[0].summary.read == 9


def test_broken_lines_are_skipped_counted_and_named(folder):
    with open(folder / "cat.ndjson", "ab") as file:
        file.write(b'{"drawing": [[[1, 2], [3], [4, 5]]]}\n' + lines([77]))
    train, validation = load(folder, "cat")
    assert (train.summary.read, len(train) + len(validation)) == (32, 31)
    ((where, reason),) = train.summary.broken
    assert where == "cat.ndjson, line 31" and reason.startswith(where)
    with open(folder / "cat.ndjson", "ab") as file:
        file.write(b"junk\n" * 3)
    with pytest.raises(ValueError, match=r"folder=.*4 of 35 drawings are broken.*line 31"):
        load(folder, "cat")


def test_a_damaged_archive_gives_what_it_still_holds(folder):
    whole = (folder / "crab.ndjson.gz").read_bytes()
    (folder / "crab.ndjson.gz").write_bytes(whole[: len(whole) - 20])
    train, _ = load(folder, ["cat", "crab"])
    assert [where for where, _ in train.summary.broken][0].startswith("crab.ndjson.gz")
    assert train.summary.labels["cat"] == 30 and train.summary.labels["crab"] > 10


@pytest.mark.parametrize(
    ("categories", "error", "message"),
    [
        (["crap"], ValueError, "'crap', which is not one of QuickDraw's; did you mean 'crab'"),
        (["xyzzy"], ValueError, "'xyzzy', which is not one of QuickDraw's 345; the folder holds"),
        (["cat", "yoga"], FileNotFoundError, "no drawings of 'yoga'.*full/raw/yoga.ndjson"),
        ([], ValueError, "must hold at least one name"),
        (["cat", "cat"], ValueError, "must not hold a name twice"),
        (["a/b"], ValueError, "'a/b'"),
    ],
)
def test_bad_categories_are_named(folder, categories, error, message):
    with pytest.raises(error, match="(?s)" + message):
        load(folder, categories)


def test_without_a_folder_the_download_is_told(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_quickdraw()
    for part in (str(quickdraw_folder()), "/full/raw/cat.ndjson", "/full/raw/mosquito.ndjson"):
        assert part in str(caught.value)
    assert quickdraw_folder() == tmp_path / "own-cache" / "quickdraw"
    quickdraw_folder().mkdir(parents=True)
    (quickdraw_folder() / "cat.ndjson").write_bytes(lines(range(5)))
    assert load_quickdraw(categories="cat", progress=False)[0].summary.read == 5


def test_the_names_of_all_categories():
    names = quickdraw_categories()
    assert len(names) == len(set(names)) == 345
    assert {"cat", "crab", "mosquito", "The Eiffel Tower"} <= set(names)


def test_real_drawings(reference):
    folder = reference.folder.parent / "data" / "quickdraw"
    if not folder.is_dir():
        pytest.skip("no drawings of QuickDraw beside the repository")
    categories = ["bus", "cat", "crab", "fish", "flower", "mosquito", "yoga"]
    train, validation = load(folder, categories)
    assert train.summary.read == sum(
        len((folder / f"{c}.ndjson").read_text().splitlines()) for c in categories
    )
    assert not train.summary.broken and train.summary.kept > 160
