import json

import numpy as np
import pytest

from keras_sparse_dm.data import (
    Sketch,
    keep_strokes,
    load_kanjivg,
    load_sketches,
    prepare_sketch,
    prepare_source,
    simplify,
    to_points,
    write_sketch_json,
    write_svg,
)
from keras_sparse_dm.data.sketches import preparation
from keras_sparse_dm.data.sketches.source import (
    Item,
    SketchSource,
    items_of,
)

pytestmark = pytest.mark.usefixtures("own_cache")


def scribble(seed, points=12, strokes=2, label=""):
    rng = np.random.default_rng(seed)
    parts = [
        np.column_stack([np.cumsum(rng.normal(size=(points, 2)), 0), np.arange(points) + 99 * i])
        for i in range(strokes)
    ]
    return Sketch(tuple(parts), f"s{seed}", label)


def whole(content):
    """Return the content of an item, a sketch or None."""
    return content


def source(contents, groups=None, **changes):
    """Return a source of sketches in memory; an exception is a broken one, None one left out."""
    groups = groups or [""] * len(contents)

    def items(complete):
        for i, (content, group) in enumerate(zip(contents, groups, strict=True)):
            if group not in complete:
                yield Item(f"drawing {i}", content, group)

    fields = {"title": "Test", "key": "test", "argument": "here", "state": len(contents)}
    return SketchSource(**(fields | {"items": items, "read": whole} | changes))


def load(contents, groups=None, **preparation):
    return prepare_source(source(contents, groups), progress=False, workers=1, **preparation)


def test_every_sketch_is_prepared_and_in_one_part():
    sketches = [scribble(i, label=str(i % 3)) for i in range(20)]
    train, validation = load(sketches)
    assert (len(train), len(validation)) == (17, 3)
    by_name = {s.name: s for s in sketches}
    for part in (train, validation):
        for name, label, points in zip(part.names, part.labels, part, strict=True):
            sketch = by_name.pop(name)
            assert label == sketch.label
            np.testing.assert_array_equal(points, to_points(prepare_sketch(sketch)))
    assert not by_name
    assert train.summary.labels == {"0": 7, "1": 7, "2": 6}
    assert "20 kept (0 7, 1 7, 2 6)" in str(train.summary)


def test_options_of_preparation_reach_every_sketch():
    sketches = [scribble(i, strokes=3) for i in range(8)]
    train, _ = load(sketches, spacing=0.1, scale=5.0, tolerance=0.2, max_strokes=2)
    by_name = {s.name: s for s in sketches}
    for name, points in zip(train.names, train, strict=True):
        expected = prepare_sketch(by_name[name], 0.1, 5.0, 0.2, 2)
        assert len(expected) == 2
        np.testing.assert_array_equal(points, to_points(expected))
    assert sum(map(len, train)) < sum(map(len, load(sketches)[0]))


def test_the_first_of_each_group_are_taken_and_no_more_is_read():
    taken = []

    def items(complete):
        for group in ("a", "b"):
            for i in range(1000):
                if group in complete:
                    break
                taken.append(group)
                # Broken sketches and those left out do not count.
                content = scribble(i) if i % 2 else (ValueError("bad") if i == 0 else None)
                yield Item(f"{group}{i}", content, group)

    whole = source([], items=items, state="groups")
    train, validation = prepare_source(whole, max_sketches=30, progress=False, workers=1)
    assert len(train) + len(validation) == 60
    assert train.summary.labels == {"a": 30, "b": 30}
    assert {*train.names, *validation.names} == {f"s{i}" for i in range(1, 60, 2)}
    # The two broken ones, and the even numbers from 2 to below the last one taken.
    assert (train.summary.left_out, len(train.summary.broken), train.summary.read) == (58, 2, 120)
    assert taken.count("a") < 150 and taken.count("b") < 150


def test_the_cache_gives_the_same_and_depends_on_what_is_read():
    sketches = [scribble(i, label="x") for i in range(10)] + [None]
    first = load(sketches)
    again = prepare_source(source([1 / 3] * 11), progress=False)  # reads nothing
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.points, b.points)
        assert (a.names, a.labels, a.summary) == (b.names, b.labels, b.summary)
    assert len(load(sketches, max_sketches=4)[0]) == 3
    assert len(load([scribble(0), scribble(1), scribble(2)])[0]) == 2


def test_more_than_a_twentieth_broken_stops_with_the_counts(tmp_path):
    sketches = [scribble(i) for i in range(38)]
    good = load([*sketches, ValueError("torn"), ValueError("burnt")])[0]
    assert [reason for _, reason in good.summary.broken] == [
        "drawing 38: torn",
        "drawing 39: burnt",
    ]
    with pytest.raises(ValueError, match=r"here: 3 of 41 drawings are broken, more than 5%.*torn"):
        load([*sketches, *[ValueError("torn")] * 3])
    still = Sketch(([[0, 0, 0], [0, 0, 1]],), "still")
    with pytest.raises(ValueError, match="all points lie at one place"):
        load([*sketches, still, still, still, still])


def test_nothing_left_is_told():
    with pytest.raises(ValueError, match="here holds no sketch .*of 3 drawings 0 are broken and 3"):
        load([None] * 3)
    with pytest.raises(ValueError, match="leaves 0 for training and 1 for validation"):
        load([scribble(0)])
    sketches = [scribble(0), scribble(1)]
    shortest = min(len(to_points(prepare_sketch(sketch))) for sketch in sketches) + 1
    message = f"max_points=5 leaves no sketch: the shortest has {shortest} points"
    with pytest.raises(ValueError, match=f"{message}.*2 too long"):
        load(sketches, max_points=5)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("tolerance", -0.1, "tolerance=-0.1"),
        ("max_strokes", 0, "max_strokes=0"),
        ("max_sketches", 1.5, "max_sketches=1.5"),
        ("max_points", 2, "max_points=2"),
        ("representation", "polar", "representation='polar'"),
    ],
)
def test_bad_settings_are_named_before_anything_is_read(option, value, message):
    def items(complete):
        raise AssertionError("was read")

    with pytest.raises(ValueError, match=message):
        prepare_source(source([], items=items), **{option: value})


def test_a_reader_that_gives_up_on_a_file_still_gives_what_it_read():
    def read(on_broken):
        yield scribble(0)
        on_broken("file, line 2", ValueError("torn"))
        yield scribble(1)
        on_broken("file, line 4", ValueError("ends here"))

    items = list(items_of(read, set()))
    assert [item.where for item in items] == [
        "sketch 0",
        "file, line 2",
        "sketch 2",
        "file, line 4",
    ]
    assert [isinstance(item.content, ValueError) for item in items] == [False, True, False, True]


def test_workers_give_what_one_process_gives(monkeypatch, tmp_path):
    monkeypatch.setattr(preparation, "_CHUNK", 5)
    sketches = [scribble(i) for i in range(40)]
    alone = load(sketches)
    pooled = prepare_source(
        source(sketches), workers=2, progress=False, cache_dir=tmp_path / "other"
    )
    for a, b in zip(alone, pooled, strict=True):
        assert a.points.tobytes() == b.points.tobytes() and a.names == b.names


# The user's own files


@pytest.mark.slow
def test_own_files_of_several_formats(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(6):
        write_svg(folder / f"drawing{i}.svg", scribble(i))
    write_sketch_json(folder / "more.json", [scribble(i, label="x") for i in range(6, 12)])
    (folder / "notes.txt").write_text("not a sketch")
    train, validation = load_sketches(folder, progress=False)
    assert (len(train), len(validation)) == (10, 2)
    assert train.summary.read == 12
    part, rest = load_sketches(str(folder / "*.svg"), progress=False)
    assert len(part) + len(rest) == 6
    file = folder / "more.json"
    few, _ = load_sketches(file, progress=False, max_sketches=3)
    assert few.summary.read == 3
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_sketches(tmp_path / "nowhere")


@pytest.mark.slow
def test_what_cannot_be_prepared_is_told_by_file_and_place(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    dot = Sketch(([[1, 2, 3]],), "dot")
    back = Sketch(([[1, 2, 3], [5, 5, 1], [6, 5, 9]],), "back")
    write_sketch_json(folder / "a.json", [scribble(0), dot, *map(scribble, range(1, 80)), back])
    write_svg(folder / "b.svg", dot)
    line = {"drawing": [[[0, 9], [0, 9], [0, 5]]], "key_id": "1"}
    text = json.dumps(line) + "\n\n" + json.dumps(line | {"drawing": [[[0], [0], [0]]]})
    (folder / "c.ndjson").write_text(text)
    train, _ = load_sketches(folder, progress=False)
    assert [reason for _, reason in train.summary.broken] == [
        "a.json, sketch 1: sketch 'dot': no stroke has two points or more",
        "a.json, sketch 81: sketch 'back': time goes back from 3 to 1; points must stand in the "
        "order of drawing",
        "b.svg: sketch 'b': all points lie at one place, so it has no size",
        "c.ndjson, line 3: sketch '1': no stroke has two points or more",
    ]
    assert train.summary.read == 85


@pytest.mark.slow
def test_a_changed_file_of_ones_own_is_read_anew(tmp_path):
    file = tmp_path / "mine.json"
    write_sketch_json(file, [scribble(i) for i in range(4)])
    assert load_sketches(file, progress=False)[0].summary.read == 4
    write_sketch_json(file, [scribble(i) for i in range(5)])
    assert load_sketches(file, progress=False)[0].summary.read == 5


# sketch-rnn's KanjiVG


def write_sketch_rnn(path, seeds, **others):
    rows = [
        np.array([[1, 2, 0], [3, 1, 0], [0, 4, 1], [2, 2, 0], [s + 1, 1, 1]], np.int16)
        for s in seeds
    ]
    train = np.empty(len(rows), object)
    train[:] = rows
    np.savez(path, train=train, valid=train[:1], test=train[:1], **others)
    return path


@pytest.mark.slow
def test_kanjivg_reads_the_training_part_of_a_sketch_rnn_file(tmp_path):
    file = write_sketch_rnn(tmp_path / "kanji.npz", range(20))
    for folder in (file, tmp_path):
        train, validation = load_kanjivg(folder, progress=False)
        assert (len(train), len(validation), train.summary.read) == (17, 3, 20)
        # Two strokes each.
        assert all((points[:, 2] > 0.5).sum() == 2 for points in train)
    write_sketch_rnn(tmp_path / "other.npz", range(20))
    with pytest.raises(ValueError, match="several .npz files; give one: kanji.npz, other.npz"):
        load_kanjivg(tmp_path)


@pytest.mark.slow
def test_the_papers_kanji_make_its_68_batches(reference):
    file = reference.folder.parent / "data" / "kanji.rdp100.npz"
    if not file.exists():
        pytest.skip(f"no {file.name} beside the repository")
    train, validation = load_kanjivg(file, progress=False, max_sketches=None)
    assert train.summary.read == 10358
    assert (len(train), len(train) // 128) == (8804, 68)
    assert not train.summary.broken


# Steps


def test_simplified_strokes_stay_within_the_tolerance():
    import shapely

    for seed in range(10):
        sketch = scribble(seed, points=60)
        for tolerance in (0.0, 0.3, 2.0):
            simple = simplify(sketch, tolerance)
            assert len(simple) == len(sketch)
            for before, after in zip(sketch, simple, strict=True):
                np.testing.assert_array_equal(after[[0, -1]], before[[0, -1]])
                rows = {tuple(row) for row in before.tolist()}
                assert all(tuple(row) in rows for row in after.tolist())
                assert (np.diff(after[:, 2]) > 0).all()
                line = shapely.LineString(after[:, :2])
                distances = shapely.distance(line, shapely.points(before[:, :2]))
                assert distances.max() <= tolerance + 1e-9
    assert simple.num_points < sketch.num_points / 2


def test_simplification_knows_edges():
    line = Sketch(([[0, 0, 0], [1, 1, 1], [2, 2, 2]],))
    np.testing.assert_array_equal(simplify(line, 0.0).strokes[0], [[0, 0, 0], [2, 2, 2]])
    ring = Sketch(([[0, 0, 0], [1, 0, 1], [1, 1, 2], [0, 0, 3]], [[5, 5, 4], [5, 5, 5]]))
    np.testing.assert_array_equal(simplify(ring, 0.1).strokes[0], ring.strokes[0])
    np.testing.assert_array_equal(simplify(ring, 10.0).strokes[0], [[0, 0, 0], [0, 0, 3]])
    np.testing.assert_array_equal(simplify(ring, 0.1).strokes[1], ring.strokes[1])
    assert len(simplify(Sketch(()), 0.1)) == 0
    with pytest.raises(ValueError, match="tolerance=-1"):
        simplify(line, -1)
    with pytest.raises(ValueError, match="one point"):
        simplify(Sketch(([[0, 0, 0]],)), 0.1)


def test_the_first_strokes_are_kept():
    sketch = scribble(0, strokes=3)
    assert [len(keep_strokes(sketch, n)) for n in (1, 2, 3, 9)] == [1, 2, 3, 3]
    assert keep_strokes(sketch, 1).strokes[0] is not None
    with pytest.raises(ValueError, match="n=0"):
        keep_strokes(sketch, 0)


def test_a_stroke_that_would_fill_the_memory_is_refused():
    rng = np.random.default_rng(0)
    wild = Sketch((np.column_stack([rng.normal(size=(3000, 2)), np.arange(3000)]),), "wild")
    with pytest.raises(ValueError, match="'wild'.* points; 1,000,000 is the maximum"):
        prepare_sketch(wild, spacing=1e-4)


def test_summaries_are_plain_values(tmp_path):
    train, _ = load([scribble(i, label="a") for i in range(4)])
    json.dumps(train.summary.labels)
    assert isinstance(train.summary.read, int)
