"""The FIDs that the paper prints in Tables 1 to 6."""

from dataclasses import dataclass

from keras_sparse_dm.sparsity.registry import facts_of
from keras_sparse_dm.study.paper import DATASET_TITLES, PAPER_SETTINGS


@dataclass(frozen=True)
class PaperFID:
    """One printed FID. The paper prints all FIDs with two decimals.

    Attributes:
        table: Number of the table.
        preset: Name of the preset for the row's network and data set.
        method: `"dense"`, `"static"`, `"rigl"` or `"magran"`.
        sparsity: S in [0, 1); 0 for dense rows.
        prune_rate: p in (0, 1]; None for dense and static rows.
        sampling_steps: Number of DDIM steps.
        full: True if the network was trained on all of CelebA-HQ (Table 3), False for half of it.
        mean: Mean FID over the runs.
        sd: Standard deviation over the runs, as printed; None for a single run.
        runs: Number of runs. For Tables 5 and 6 it is that of Figures 2, 3, 6 and 7, whose
            values at S = 0.9 they list. QuickDraw has three runs for each of three categories
            (section B.3).
    """

    table: int
    preset: str
    method: str
    sparsity: float
    prune_rate: float | None
    sampling_steps: int
    full: bool
    mean: float
    sd: float | None
    runs: int

    @property
    def source(self):
        """Place in the paper: table, row and column."""
        approach = facts_of(self.method).title
        dataset = DATASET_TITLES[self.preset]
        if self.table in (5, 6):
            rate = "" if self.prune_rate is None else f", p = {self.prune_rate:g}"
            return f"Table {self.table}, row {dataset}, column {approach}{rate}"
        if self.method != "dense":
            approach += f", S = {self.sparsity:g}"
        if self.table == 3:
            column = "Full dataset" if self.full else "Reduced dataset"
            return f"Table 3, row {approach}, column {column}"
        column = f"{self.sampling_steps} steps" if self.table == 4 else "FID ± SD"
        return f"Table {self.table}, row {dataset}, {approach}, column {column}"


def _fid(table, preset, method, sparsity, printed, prune_rate=0.5, steps=None, full=False):
    """Return one `PaperFID`.

    The prune rate is that of all main experiments (section 3.3.2) unless a table says otherwise.
    """
    mean, sd = printed if isinstance(printed, tuple) else (printed, None)
    runs = 1 if sd is None else 9 if preset == "chirodiff_quickdraw" else 3
    return PaperFID(
        table=table,
        preset=preset,
        method=method,
        sparsity=sparsity,
        prune_rate=prune_rate if method in ("rigl", "magran") else None,
        sampling_steps=steps or PAPER_SETTINGS[preset].sampling_steps,
        full=full,
        mean=mean,
        sd=sd,
        runs=runs,
    )


def _best_of_each_method(table, preset, *rows):
    """Return the FIDs of Tables 1 and 2; a row is (method, sparsity, (mean, SD))."""
    return [_fid(table, preset, method, sparsity, printed) for method, sparsity, printed in rows]


def _full_and_reduced(*rows):
    """Return the FIDs of Table 3; a row is (method, sparsity, full data set, reduced data set)."""
    return [
        _fid(3, "ldm_celebahq", method, sparsity, printed, full=full)
        for method, sparsity, *both in rows
        for full, printed in zip((True, False), both, strict=True)
    ]


def _of_50_100_and_200_steps(preset, *rows):
    """Return the FIDs of Table 4; a row is (method, sparsity, 50, 100, 200 steps)."""
    return [
        _fid(4, preset, method, sparsity, printed, steps=steps)
        for method, sparsity, *all_steps in rows
        for steps, printed in zip((50, 100, 200), all_steps, strict=True)
    ]


def _of_two_prune_rates(table, preset, *row):
    """Return the FIDs of Tables 5 and 6, S = 0.9; a row has one (mean, SD) per column."""
    columns = (("static", None), ("rigl", 0.5), ("rigl", 0.05), ("magran", 0.5), ("magran", 0.05))
    return [
        _fid(table, preset, method, 0.9, printed, prune_rate)
        for (method, prune_rate), printed in zip(columns, row, strict=True)
    ]


PAPER_FIDS = (
    *_best_of_each_method(
        1,
        "ldm_celebahq",
        ("dense", 0.0, (32.74, 3.68)),
        ("static", 0.5, (33.19, 2.39)),
        ("rigl", 0.25, (32.12, 3.10)),
        ("magran", 0.5, (32.83, 1.68)),
    ),
    *_best_of_each_method(
        1,
        "ldm_lsun_bedrooms",
        ("dense", 0.0, (31.09, 12.42)),
        ("static", 0.25, (28.79, 12.65)),
        ("rigl", 0.1, (37.80, 13.55)),
        ("magran", 0.25, (28.20, 7.64)),
    ),
    *_best_of_each_method(
        1,
        "ldm_imagenette",
        ("dense", 0.0, (123.42, 4.25)),
        ("static", 0.1, (119.92, 5.94)),
        ("rigl", 0.1, (121.59, 6.91)),
        ("magran", 0.25, (117.32, 8.52)),
    ),
    *_best_of_each_method(
        2,
        "chirodiff_quickdraw",
        ("dense", 0.0, (29.78, 0.59)),
        ("static", 0.25, (29.39, 0.24)),
        ("rigl", 0.1, (29.38, 0.27)),
        ("magran", 0.9, (29.45, 0.39)),
    ),
    *_best_of_each_method(
        2,
        "chirodiff_kanjivg",
        ("dense", 0.0, (21.10, 0.25)),
        ("static", 0.5, (22.36, 0.87)),
        ("rigl", 0.25, (21.14, 0.71)),
        ("magran", 0.25, (21.73, 1.18)),
    ),
    *_best_of_each_method(
        2,
        "chirodiff_vmnist",
        ("dense", 0.0, (44.21, 0.62)),
        ("static", 0.25, (47.29, 1.96)),
        ("rigl", 0.1, (46.81, 1.98)),
        ("magran", 0.1, (46.00, 1.71)),
    ),
    *_full_and_reduced(
        ("dense", 0.0, 32.20, 29.68),
        ("static", 0.5, 29.71, 29.91),
        ("rigl", 0.5, 30.98, 30.82),
        ("magran", 0.5, 26.70, 30.71),
    ),
    *_of_50_100_and_200_steps(
        "ldm_celebahq",
        ("dense", 0.0, 38.14, 29.68, 26.47),
        ("static", 0.5, 38.16, 29.91, 26.44),
        ("rigl", 0.25, 36.55, 28.00, 25.25),
        ("magran", 0.5, 39.31, 30.71, 28.02),
    ),
    *_of_50_100_and_200_steps(
        "ldm_lsun_bedrooms",
        ("dense", 0.0, 20.42, 20.14, 20.58),
        ("static", 0.25, 20.01, 18.96, 19.26),
        ("rigl", 0.1, 19.01, 17.96, 20.49),
        ("magran", 0.25, 20.69, 18.23, 17.87),
    ),
    *_of_two_prune_rates(
        5,
        "ldm_celebahq",
        (52.48, 4.88),
        (65.65, 4.32),
        (46.07, 11.08),
        (60.77, 6.58),
        (48.39, 14.05),
    ),
    *_of_two_prune_rates(
        5,
        "ldm_lsun_bedrooms",
        (46.18, 13.42),
        (71.45, 18.84),
        (58.64, 22.88),
        (46.22, 10.11),
        (33.80, 3.98),
    ),
    *_of_two_prune_rates(
        5,
        "ldm_imagenette",
        (147.47, 7.74),
        (168.48, 15.15),
        (148.93, 12.03),
        (167.19, 8.20),
        (159.08, 14.68),
    ),
    *_of_two_prune_rates(
        6,
        "chirodiff_quickdraw",
        (30.25, 0.43),
        (30.26, 0.63),
        (28.84, 0.37),
        (29.45, 0.39),
        (28.60, 0.37),
    ),
    *_of_two_prune_rates(
        6,
        "chirodiff_kanjivg",
        (30.75, 2.16),
        (28.54, 0.74),
        (29.12, 0.57),
        (33.02, 3.28),
        (29.01, 1.48),
    ),
    *_of_two_prune_rates(
        6,
        "chirodiff_vmnist",
        (52.35, 0.84),
        (54.08, 1.57),
        (52.25, 0.20),
        (53.65, 0.69),
        (51.94, 1.12),
    ),
)
