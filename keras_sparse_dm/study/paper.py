"""The paper's titles, settings and costs: Tables 1 and 2 as data, and what cannot be reproduced.

`PAPER_COSTS` holds the costs that Tables 1 and 2 print. `metrics.cost`, called with
`PAPER_SETTINGS`, gives the same figures except for those that a row lists in `unexplained`. The
tables count one example per training iteration, whatever the batch size, and a forward pass as
`metrics.cost` does: kernels only, 2 FLOPs per multiply-add.

The paper does not print these settings; they follow from its figures:

- Mean points of a sketch. ChiroDiff applies every weight once per point, so the sampling FLOPs
  divided by 50 steps and by 2 FLOPs per weight give the number of points: 177.71 to 177.96 for
  KanjiVG's 7.35e9, 111.34 to 111.49 for VMNIST's 7.11e8, and 175.7 to 177.1 for QuickDraw's
  1.29e10, over all values that round to the printed digits. The training figures of KanjiVG and
  VMNIST agree with these numbers.
- Iterations. Latent diffusion: 12,500, 10,598 and 9,469 images in batches of 12, keeping the last,
  smaller batch, for 150 epochs. ChiroDiff: 85% of KanjiVG's 10,358 and of VMNIST's 10,000 sketches
  in batches of 128, dropping the last, smaller batch, for 600 epochs.
- QuickDraw. 5.12e14 and 1.29e10 together imply 658,300 to 664,700 iterations at the same number of
  points per sketch: 1,097 to 1,108 in each of 600 epochs, or about 141,000 sketches in batches of
  128. That is twice the 70,000 training sketches of a category (Ha and Eck 2018). With 70,000
  sketches, 547 iterations per epoch, 5.12e14 implies 355 points per sketch instead, twice the
  number that 1.29e10 implies. The paper states neither.
"""

from dataclasses import dataclass, field

# Titles in the paper's tables.
DATASET_TITLES = {
    "ldm_celebahq": "CelebA-HQ",
    "ldm_lsun_bedrooms": "Bedrooms",
    "ldm_imagenette": "Imagenette",
    "chirodiff_quickdraw": "QuickDraw",
    "chirodiff_kanjivg": "KanjiVG",
    "chirodiff_vmnist": "VMNIST",
}


@dataclass(frozen=True)
class PaperSetting:
    """Setting that a data set's printed figures are counted with.

    Attributes:
        iterations: Training iterations; None where no number explains the figures.
        update_every: Training steps between topology updates (section 3.3.2).
        sampling_steps: DDIM steps (section 3.3.2).
        size: Height and width of a latent; None for sketches.
        points: Mean points of a sketch that the sampling FLOPs imply; None for images.
        stated_iterations: Iterations that follow from the size of the data set, the batch size and
            the epochs, where they do not explain the figures; otherwise None.
    """

    iterations: int | None
    update_every: int
    sampling_steps: int
    size: int | None = None
    points: float | None = None
    stated_iterations: int | None = None


@dataclass(frozen=True)
class PaperCost:
    """Printed cost of one row. Costs of sparse rows are relative to the dense row.

    Attributes:
        table: Number of the table.
        preset: Name of the preset for the row's network and data set.
        method: `"dense"`, `"static"`, `"rigl"` or `"magran"`.
        sparsity: S in [0, 1); 0 for dense rows.
        parameters, training, sampling: Printed text: parameters, and FLOPs of training and of
            sampling one example. Parameters of sparse rows are the share of the kernels' weights
            that is left. Biases are not counted, which are never pruned: with them, 0.11 instead
            of 0.10 of QuickDraw's network would be left at S = 0.9.
        unexplained: `{column: reason}` for the figures that `metrics.cost` does not give.
    """

    table: int
    preset: str
    method: str
    sparsity: float
    parameters: str
    training: str
    sampling: str
    unexplained: dict = field(default_factory=dict)


PAPER_SETTINGS = {
    "ldm_celebahq": PaperSetting(150 * 1042, 1100, 100, size=64),
    "ldm_lsun_bedrooms": PaperSetting(150 * 884, 1100, 100, size=64),
    "ldm_imagenette": PaperSetting(150 * 790, 1100, 100, size=64),
    "chirodiff_quickdraw": PaperSetting(None, 800, 50, points=176.4, stated_iterations=600 * 547),
    "chirodiff_kanjivg": PaperSetting(600 * 68, 800, 50, points=177.83),
    "chirodiff_vmnist": PaperSetting(600 * 66, 800, 50, points=111.42),
}

_CUT_OFF = (
    "The share at S = 0.5 is 0.675. The paper cuts it off here, and rounds it in Static-DM's row: "
    "0.68."
)
_NO_ITERATIONS = (
    "The data set and 600 epochs in batches of 128 give 328,200 iterations. With the points per "
    "sketch that the sampling FLOPs imply, this figure needs about 661,500."
)
_NO_DISTRIBUTION = (
    "A kernel density of 0.75 leaves 0.75 of the weights, and of the FLOPs too, because every "
    "weight of this network takes the same FLOPs. No distribution leaves this share."
)
_ONE_OFF = (
    "Every weight of this network takes the same FLOPs, so the share of FLOPs is the density of "
    "the kernels, 1 - S. The printed share is one hundredth off, and no rounding explains it."
)

PAPER_COSTS = (
    PaperCost(1, "ldm_celebahq", "dense", 0.0, "274.1M", "9.00e16", "1.92e13"),
    PaperCost(1, "ldm_celebahq", "static", 0.5, "0.50", "0.68", "0.68"),
    PaperCost(1, "ldm_celebahq", "rigl", 0.25, "0.75", "0.91", "0.91"),
    PaperCost(
        1,
        "ldm_celebahq",
        "magran",
        0.5,
        "0.50",
        "0.67",
        "0.67",
        {"training": _CUT_OFF, "sampling": _CUT_OFF},
    ),
    PaperCost(1, "ldm_lsun_bedrooms", "dense", 0.0, "274.1M", "7.64e16", "1.92e13"),
    PaperCost(1, "ldm_lsun_bedrooms", "static", 0.25, "0.75", "0.91", "0.91"),
    PaperCost(1, "ldm_lsun_bedrooms", "rigl", 0.1, "0.90", "0.97", "0.97"),
    PaperCost(1, "ldm_lsun_bedrooms", "magran", 0.25, "0.75", "0.91", "0.91"),
    PaperCost(1, "ldm_imagenette", "dense", 0.0, "274.1M", "6.83e16", "1.92e13"),
    PaperCost(1, "ldm_imagenette", "static", 0.1, "0.90", "0.97", "0.97"),
    PaperCost(1, "ldm_imagenette", "rigl", 0.1, "0.90", "0.97", "0.97"),
    PaperCost(1, "ldm_imagenette", "magran", 0.25, "0.75", "0.91", "0.91"),
    PaperCost(
        2,
        "chirodiff_quickdraw",
        "dense",
        0.0,
        "736027",
        "5.12e14",
        "1.29e10",
        {"training": _NO_ITERATIONS},
    ),
    PaperCost(2, "chirodiff_quickdraw", "static", 0.25, "0.75", "0.75", "0.75"),
    PaperCost(
        2,
        "chirodiff_quickdraw",
        "rigl",
        0.1,
        "0.89",
        "0.89",
        "0.89",
        {"parameters": _ONE_OFF, "training": _ONE_OFF, "sampling": _ONE_OFF},
    ),
    PaperCost(2, "chirodiff_quickdraw", "magran", 0.9, "0.10", "0.10", "0.10"),
    PaperCost(2, "chirodiff_kanjivg", "dense", 0.0, "416859", "1.80e13", "7.35e9"),
    PaperCost(
        2,
        "chirodiff_kanjivg",
        "static",
        0.5,
        "0.50",
        "0.51",
        "0.51",
        {"training": _ONE_OFF, "sampling": _ONE_OFF},
    ),
    PaperCost(
        2,
        "chirodiff_kanjivg",
        "rigl",
        0.25,
        "0.70",
        "0.70",
        "0.70",
        {
            "parameters": _NO_DISTRIBUTION,
            "training": _NO_DISTRIBUTION,
            "sampling": _NO_DISTRIBUTION,
        },
    ),
    PaperCost(
        2,
        "chirodiff_kanjivg",
        "magran",
        0.25,
        "0.39",
        "0.39",
        "0.39",
        {
            "parameters": _NO_DISTRIBUTION,
            "training": _NO_DISTRIBUTION,
            "sampling": _NO_DISTRIBUTION,
        },
    ),
    PaperCost(2, "chirodiff_vmnist", "dense", 0.0, "65019", "1.69e12", "7.11e8"),
    PaperCost(
        2,
        "chirodiff_vmnist",
        "static",
        0.25,
        "0.75",
        "0.74",
        "0.74",
        {"training": _ONE_OFF, "sampling": _ONE_OFF},
    ),
    PaperCost(2, "chirodiff_vmnist", "rigl", 0.1, "0.90", "0.90", "0.89", {"sampling": _ONE_OFF}),
    PaperCost(
        2,
        "chirodiff_vmnist",
        "magran",
        0.1,
        "0.90",
        "0.89",
        "0.89",
        {"training": _ONE_OFF, "sampling": _ONE_OFF},
    ),
)
