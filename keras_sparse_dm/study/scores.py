"""Scores of a study: its runs, grouped as the paper's tables group them. Loads no Keras."""

from dataclasses import dataclass

import numpy as np

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.sparsity.registry import facts_of
from keras_sparse_dm.study.grid import option_text
from keras_sparse_dm.study.paper import DATASET_TITLES, PAPER_SETTINGS
from keras_sparse_dm.study.paper_fids import PAPER_FIDS

# Distance by the embedded feature network, which every evaluation has.
EMBEDDED = "FD-kanji"


@dataclass(frozen=True)
class Approach:
    """A row of the paper's tables: all runs that differ in seed and category only."""

    preset: str
    full: bool
    method: str
    sparsity: float
    prune_rate: float | None
    update_every: int | None
    options: tuple = ()

    @classmethod
    def of(cls, cell):
        """Return the approach of a `Cell`."""
        return cls(*(getattr(cell, name) for name in cls.__dataclass_fields__))

    @property
    def dataset(self):
        """Title of the data set."""
        return dataset_title(self.preset)

    def title(self, prune_rate=False, update_every=False):
        """Return the title for tables, such as `"RigL-DM, S = 0.5"`.

        Args:
            prune_rate, update_every: True to name this setting too, to tell approaches apart.
        """
        parts = [facts_of(self.method).title]
        parts += [f"S = {self.sparsity:g}"] if self.method != "dense" else []
        parts += [f"p = {self.prune_rate:g}"] if prune_rate and self.prune_rate else []
        parts += [f"ΔT = {self.update_every}"] if update_every and self.update_every else []
        return ", ".join([*parts, *self.option_texts])

    @property
    def option_texts(self):
        """List of its options as text, such as `"grow init = normal"`."""
        return [option_text(*option).replace("_", " ") for option in self.options]


def dataset_title(preset):
    """Return the paper's title of a preset's data set."""
    return DATASET_TITLES.get(preset, preset)


@dataclass(frozen=True)
class Score:
    """Score of an approach over its runs.

    Attributes:
        values: Distances of the runs that have one.
        wanted: Number of runs in the study.
    """

    values: tuple
    wanted: int

    @property
    def mean(self):
        """Mean over the runs; None if there are none."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def sd(self):
        """Sample standard deviation over the runs (n - 1); None for fewer than two runs."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def __str__(self):
        text = "–" if not self.values else number_text(self.mean, self.sd)
        complete = len(self.values) == self.wanted
        return text if complete else f"{text} ({len(self.values)}/{self.wanted})"

    def better_than(self, other):
        """Return True if this score is lower; False if either has no runs."""
        return bool(self.values and other.values) and self.mean < other.mean


def number_text(mean, sd):
    """Return a score as the paper prints it."""
    return f"{mean:.2f}" if sd is None else f"{mean:.2f} ± {sd:.2f}"


class Scores:
    """All scores of a study.

    Args:
        study: The `Study`.
        results: The `Results` of its folder; runs of other studies in it are ignored.
        score: Name of the distance. None for the FID if all evaluations have the same one, and
            for FD-kanji otherwise.

    Attributes:
        name: Name of the distance.
        cells: `{Approach: [Cell]}`, in the order of the study.
        runs: `{name of the cell: RunResult}` of the finished runs.
        failed: `{name of the cell: RunResult}` of the failed runs.
        missing: Names of the cells without a run.

    Raises:
        SettingsError: if no evaluation has the distance `score`.
    """

    def __init__(self, study, results, score=None):
        self.study = study
        names = {cell.name for cell in study.cells}
        own = {run.cell: run for run in results.runs if run.cell in names}
        self.runs = {name: run for name, run in own.items() if run.status == "finished"}
        self.failed = {name: run for name, run in own.items() if run.status == "failed"}
        self.missing = [cell.name for cell in study.cells if cell.name not in own]
        self.cells = {}
        for cell in study.cells:
            self.cells.setdefault(Approach.of(cell), []).append(cell)
        self.evaluations = [e for e in results.evaluations if e.cell in self.runs]
        self._by_place = {(e.cell, e.sampling_steps): e for e in self.evaluations}
        self.name = self._choose(score)

    def _choose(self, score):
        found = [set(evaluation.distances) for evaluation in self.evaluations]
        everywhere = set.intersection(*found) if found else {EMBEDDED}
        if score is not None:
            anywhere = sorted(set().union(*found))
            if score not in anywhere:
                measured = ", ".join(anywhere) or "nothing"
                raise SettingsError(
                    f"--score must be a distance that the runs were evaluated with: {measured}; "
                    f"received {score}."
                )
            return score
        by_inception = sorted(everywhere - {EMBEDDED}, key=lambda name: ("FID" not in name, name))
        return by_inception[0] if by_inception else EMBEDDED

    def is_papers(self, preset):
        """Return True if the paper's FIDs of a preset use the same feature network."""
        return self.name == ("FID-quickdraw" if preset.startswith("chirodiff") else "FID")

    @property
    def presets(self):
        """Presets of the study, in its order."""
        return list(dict.fromkeys(approach.preset for approach in self.cells))

    @property
    def sparsities(self):
        """Sparsities of the sparse approaches, sorted."""
        return sorted({a.sparsity for a in self.cells if a.method != "dense"})

    @property
    def prune_rates(self):
        """Prune rates of the dynamic approaches, sorted."""
        return sorted({a.prune_rate for a in self.cells if a.prune_rate is not None})

    def approaches(self, **wanted):
        """Return the approaches with the given attributes, in the order of the study."""
        return [
            approach
            for approach in self.cells
            if all(getattr(approach, name) == value for name, value in wanted.items())
        ]

    def dense(self, approach):
        """Return the dense approach to compare an approach with, or None."""
        found = self.approaches(preset=approach.preset, full=approach.full, method="dense")
        # Options of the data are those that a dense approach has too.
        found = [dense for dense in found if set(dense.options) <= set(approach.options)]
        return max(found, key=lambda dense: len(dense.options), default=None)

    def score(self, approach, steps=None):
        """Return the `Score` of an approach, by default with each run's own sampling steps."""
        cells = self.cells.get(approach, [])
        found = [self.evaluation(cell.name, steps) for cell in cells]
        values = [
            evaluation.distances[self.name]["generated"]["frechet"][0]
            for evaluation in found
            if evaluation is not None and self.name in evaluation.distances
        ]
        return Score(tuple(values), len(cells))

    def evaluation(self, cell, steps=None):
        """Return the `EvaluationResult` of a cell or None, by default with its own steps."""
        run = self.runs.get(cell)
        if run is None:
            return None
        own = run.settings["sampling"]["steps"]
        return self._by_place.get((cell, own if steps is None else steps))

    def held_out(self, preset):
        """Return the mean distance of held-out real data over a preset's runs, or None."""
        values = [
            evaluation.distances[self.name]["held out"]["frechet"][0]
            for evaluation in self.evaluations
            if self.runs[evaluation.cell].preset == preset and self.name in evaluation.distances
        ]
        return float(np.mean(values)) if values else None

    def best_sparse(self, approaches, steps=None):
        """Return the sparse approach with the lowest score, or None if no score is known."""
        scored = [(self.score(a, steps).mean, a) for a in approaches if a.method != "dense"]
        scored = [pair for pair in scored if pair[0] is not None]
        return min(scored, key=lambda pair: pair[0])[1] if scored else None

    def paper_fid(self, approach, steps=None):
        """Return the paper's `PaperFID` of an approach or None, preferably of the study's table."""
        setting = PAPER_SETTINGS.get(approach.preset)
        own = approach.update_every in (None, setting and setting.update_every)
        if setting is None or not own or approach.options:
            return None
        wanted = (approach.preset, approach.full, approach.method, approach.sparsity)
        found = [
            row
            for row in PAPER_FIDS
            if (row.preset, row.full, row.method, row.sparsity) == wanted
            and row.prune_rate == approach.prune_rate
            and row.sampling_steps == (setting.sampling_steps if steps is None else steps)
        ]
        found.sort(key=lambda row: (f"table{row.table}" != self.study.name, -row.runs))
        return found[0] if found else None
