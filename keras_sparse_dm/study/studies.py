"""The studies by name: one for each table and figure of the paper, and a small one of sketches."""

from pathlib import Path

from keras_sparse_dm.checks import SettingsError, did_you_mean
from keras_sparse_dm.study.grid import CHIRODIFF, LATENT_DIFFUSION, SEEDS, Study, grid
from keras_sparse_dm.study.paper import PAPER_COSTS
from keras_sparse_dm.study.study_file import read_study

# Paper, sections 3.3.2 and B.3.
SPARSITIES = (0.1, 0.25, 0.5, 0.75, 0.9)
_SPARSE = ("static", "rigl", "magran")
_ALL = ("dense", *_SPARSE)


def _best(table, seeds=SEEDS, presets=None):
    """Return the cells of the paper's Table 1 or 2: dense, and the best of each method, p = 0.5."""
    return [
        cell
        for row in PAPER_COSTS
        if row.table == table and (presets is None or row.preset in presets)
        for cell in grid((row.preset,), (row.method,), (row.sparsity,), (0.5,), seeds)
    ]


STUDIES = {
    study.name: study
    for study in (
        Study.of("table1", "Latent diffusion, dense and the best of each method", _best(1)),
        Study.of("table2", "ChiroDiff, dense and the best of each method", _best(2)),
        Study.of(
            "table3",
            "Latent diffusion on all of CelebA-HQ and on half of it, S = 0.5",
            grid(("ldm_celebahq",), _ALL, (0.5,), (0.5,), (0,), full=(True, False)),
        ),
        Study.of(
            "table4",
            "Latent diffusion of Table 1 with other numbers of sampling steps",
            _best(1, (0,), ("ldm_celebahq", "ldm_lsun_bedrooms")),
            (50, 100, 200),
        ),
        Study.of(
            "table5",
            "Latent diffusion at S = 0.9 with two prune rates",
            grid(LATENT_DIFFUSION, _SPARSE, (0.9,), (0.5, 0.05)),
        ),
        Study.of(
            "table6",
            "ChiroDiff at S = 0.9 with two prune rates",
            grid(CHIRODIFF, _SPARSE, (0.9,), (0.5, 0.05)),
        ),
        Study.of(
            "figure2",
            "Latent diffusion, distance against sparsity, p = 0.5",
            grid(LATENT_DIFFUSION, _ALL, SPARSITIES, (0.5,)),
        ),
        Study.of(
            "figure3",
            "ChiroDiff, distance against sparsity, p = 0.5",
            grid(CHIRODIFF, _ALL, SPARSITIES, (0.5,)),
        ),
        Study.of(
            "figure4",
            "CelebA-HQ and KanjiVG at S = 0.75, distance against sampling steps",
            grid(("ldm_celebahq", "chirodiff_kanjivg"), _ALL, (0.75,), (0.5,)),
            (50, 100, 150, 200),
        ),
        Study.of(
            "figure5",
            "Latent diffusion on CelebA-HQ, distance against prune rate",
            [
                *grid(("ldm_celebahq",), ("dense",), seeds=(0, 1)),
                *(
                    cell
                    for method, s in (("rigl", 0.25), ("magran", 0.5))
                    for cell in grid(
                        ("ldm_celebahq",), (method,), (s,), (0.05, 0.1, 0.2, 0.3, 0.5), (0, 1)
                    )
                ),
            ],
        ),
        Study.of(
            "figure6",
            "Latent diffusion, distance against sparsity, p = 0.05",
            grid(LATENT_DIFFUSION, _ALL, SPARSITIES, (0.05,)),
        ),
        Study.of(
            "figure7",
            "ChiroDiff, distance against sparsity, p = 0.05",
            grid(CHIRODIFF, _ALL, SPARSITIES, (0.05,)),
        ),
        Study.of(
            "sketches",
            "VMNIST and KanjiVG, dense and all methods at S = 0.5 and 0.9, p = 0.05 and 0.5",
            grid(("chirodiff_vmnist", "chirodiff_kanjivg"), _ALL, (0.5, 0.9), (0.05, 0.5), (0, 1)),
        ),
    )
}


def find_study(name):
    """Return the study of a name, or the one that a YAML file describes.

    Args:
        name: A key of `STUDIES`, or the path of a `.yaml` or `.yml` file.

    Raises:
        SettingsError: for an unknown name, or a file that cannot be read or describes no study.
    """
    if name in STUDIES:
        return STUDIES[name]
    if Path(name).suffix.lower() in (".yaml", ".yml"):
        return read_study(name)
    raise SettingsError(
        f"the study must be one of {', '.join(STUDIES)}, or a .yaml file; received {name!r}."
        f"{did_you_mean(name, STUDIES, most=3)}"
    )
