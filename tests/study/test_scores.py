"""Scores of studies with made-up results."""

import dataclasses
import statistics

import numpy as np
import pytest
from made_up_results import SKETCHES, made_up, scores_of

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.study.grid import Study, grid
from keras_sparse_dm.study.scores import Approach, Scores
from keras_sparse_dm.study.studies import STUDIES


def test_mean_and_sd_over_seeds_and_categories():
    study = STUDIES["table2"]
    rng = np.random.default_rng(0)
    values = {cell.name: float(rng.uniform(5, 50)) for cell in study.cells}
    scores = scores_of(study, lambda cell, steps: values[cell.name])
    sizes = set()
    for approach, cells in scores.cells.items():
        score = scores.score(approach)
        own = [values[cell.name] for cell in cells]
        sizes.add((approach.preset, len(own)))
        assert score.mean == pytest.approx(statistics.mean(own))
        assert score.sd == pytest.approx(statistics.stdev(own))
        assert str(score) == f"{statistics.mean(own):.2f} ± {statistics.stdev(own):.2f}"
    assert sizes == {
        ("chirodiff_quickdraw", 9),
        ("chirodiff_kanjivg", 3),
        ("chirodiff_vmnist", 3),
    }


def test_one_run_has_no_sd_and_missing_runs_are_counted():
    study = Study("mine", "Mine", tuple(grid(SKETCHES[:1], ("dense", "static"), (0.5,))))
    missing = [f"chirodiff_vmnist-dense-seed{seed}" for seed in (0, 2)]
    failed = [f"chirodiff_vmnist-static-s0.5-seed{seed}" for seed in (0, 1, 2)]
    scores = scores_of(study, missing=missing, failed=failed)
    dense, static = scores.cells
    assert str(scores.score(dense)) == "11.00 (1/3)"
    assert scores.score(static).mean is None and str(scores.score(static)) == "– (0/3)"
    assert scores.missing == missing and list(scores.failed) == failed
    assert scores.best_sparse(scores.cells) is None


def test_which_distance_is_reported():
    study = Study("mine", "Mine", tuple(grid(SKETCHES[:1], ("dense",))))
    results = made_up(study, lambda *_: 1.0, networks=("FD-kanji", "FID-quickdraw"))
    scores = Scores(study, results)
    assert scores.name == "FID-quickdraw" and scores.is_papers("chirodiff_vmnist")
    assert not scores.is_papers("ldm_celebahq")
    assert Scores(study, results, "FD-kanji").name == "FD-kanji"
    with pytest.raises(SettingsError, match="FD-kanji, FID-quickdraw; received FID"):
        Scores(study, results, "FID")
    # The default is a distance that all runs have.
    del results.evaluations[0].distances["FID-quickdraw"]
    assert Scores(study, results).name == "FD-kanji"


def test_approaches_are_told_apart_by_what_differs():
    cells = grid(SKETCHES[:1], ("rigl",), (0.5,), (0.05, 0.5), (0,), update_every=(100, 800))
    scores = scores_of(Study("mine", "Mine", tuple(cells)))
    titles = [approach.title(True, True) for approach in scores.cells]
    assert titles[0] == "RigL-DM, S = 0.5, p = 0.05, ΔT = 100" and len(set(titles)) == 4
    same = dataclasses.replace(cells[0], seed=5)
    assert Approach.of(same) == Approach.of(cells[0])
    normal = dataclasses.replace(cells[0], options=(("grow_init", "normal"),))
    assert Approach.of(normal).title() == "RigL-DM, S = 0.5, grow init = normal"
    # The paper's numbers belong to its own update interval and options.
    papers = Approach("chirodiff_vmnist", False, "rigl", 0.9, 0.05, None)
    assert scores.paper_fid(papers).mean == 52.25
    assert scores.paper_fid(dataclasses.replace(papers, update_every=800)).mean == 52.25
    assert scores.paper_fid(dataclasses.replace(papers, update_every=100)) is None
    assert scores.paper_fid(dataclasses.replace(papers, options=normal.options)) is None


def test_dense_runs_on_the_same_data_are_compared():
    cells = [
        *grid(("ldm_celebahq",), ("dense", "static"), (0.5,), seeds=(0,), training_images=(0, 99)),
        *grid(("ldm_celebahq",), ("static",), (0.5,), seeds=(0,), structure=("blocks:4",)),
    ]
    scores = scores_of(Study("mine", "Mine", tuple(cells)))
    found = {a.options: scores.dense(a).options for a in scores.approaches(method="static")}
    fewer, blocks = (("training_images", 99),), (("structure", "blocks:4"),)
    assert found == {(): (), fewer: fewer, blocks: ()}
