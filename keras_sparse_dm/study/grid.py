"""Cells, the training runs of a study, and studies as products of settings.

Loads no Keras, so that the command line answers at once.
"""

import dataclasses
import fnmatch
import itertools
from dataclasses import dataclass

from keras_sparse_dm.checks import SettingsError, at_least, one_of
from keras_sparse_dm.presets import ImageSettings, TrainingSettings
from keras_sparse_dm.runs.setting_checks import checked_method
from keras_sparse_dm.study.wording import counted

LATENT_DIFFUSION = ("ldm_celebahq", "ldm_lsun_bedrooms", "ldm_imagenette")
CHIRODIFF = ("chirodiff_quickdraw", "chirodiff_kanjivg", "chirodiff_vmnist")
# Options of `train` that a study may compare: the part of the settings that each belongs to, and
# the methods that have it.
OPTIONS = {
    "structure": ("training", lambda facts: facts.place),
    "distribution": ("training", lambda facts: facts.place),
    "competition": ("training", lambda facts: facts.exchanges),
    "grow_init": ("training", lambda facts: facts.exchanges),
    "grow_warmup": ("training", lambda facts: facts.exchanges),
    "gradient_steps": ("training", lambda facts: facts.exchanges),
    "start_step": ("training", lambda facts: facts.exchanges),
    "stop_step": ("training", lambda facts: facts.exchanges),
    "training_images": ("data", lambda facts: True),
    "validation_images": ("data", lambda facts: True),
}
DEFAULTS = {
    field.name: field.default
    for cls in (TrainingSettings, ImageSettings)
    for field in dataclasses.fields(cls)
}
# Paper, sections 3.3.2 and B.3.
CATEGORIES = ("cat", "crab", "mosquito")
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Cell:
    """One training run of the study.

    Attributes:
        preset: Name of the paper's preset: `ldm_celebahq` ... `chirodiff_vmnist`.
        method: Name of a method, or `package.module:Class` of your own.
        sparsity: S in [0, 1); 0 for dense.
        prune_rate: p in (0, 1] of methods that exchange weights; None for the others.
        seed: Seed of everything random in the run.
        category: Category of QuickDraw; None for other data sets.
        full: True to train on all of CelebA-HQ (Table 3), False to train on half of it.
        update_every: Training steps between topology updates; None for the scale's default.
        options: `((name, value), ...)` of other `OPTIONS`, in their order, without defaults.

    Raises:
        SettingsError: for values that contradict each other.
    """

    preset: str
    method: str
    sparsity: float
    prune_rate: float | None
    seed: int
    category: str | None = None
    full: bool = False
    update_every: int | None = None
    options: tuple = ()

    def __post_init__(self):
        one_of("preset", self.preset, (*LATENT_DIFFUSION, *CHIRODIFF), error=SettingsError)
        exchanges = checked_method("method", self.method).exchanges
        if (self.method == "dense") != (self.sparsity == 0):
            raise SettingsError(
                "sparsity must be 0 for method dense and above 0 for all others; received "
                f"{self.sparsity!r} for {self.method}."
            )
        if not 0 <= self.sparsity < 1:
            raise SettingsError(f"sparsity must be in [0, 1); received {self.sparsity!r}.")
        if exchanges and not (self.prune_rate and 0 < self.prune_rate <= 1):
            raise SettingsError(
                f"prune_rate must be in (0, 1] for method {self.method}; received "
                f"{self.prune_rate!r}."
            )
        if not exchanges and self.prune_rate is not None:
            raise SettingsError(
                f"prune_rate must be None for method {self.method}, which drops and grows no "
                f"weights; received {self.prune_rate!r}."
            )
        if not 0 <= self.seed < 2**31:
            raise SettingsError(f"seed must be from 0 to 2147483647; received {self.seed!r}.")
        if (self.preset == "chirodiff_quickdraw") != (self.category is not None):
            raise SettingsError(
                "category must be given for chirodiff_quickdraw and for no other preset; received "
                f"{self.category!r} for {self.preset}."
            )
        if self.full and self.preset != "ldm_celebahq":
            raise SettingsError(
                f"full can be true for ldm_celebahq only; received it for {self.preset}."
            )
        at_least(("update_every", self.update_every, 1), error=SettingsError)
        for name, _ in self.options:
            one_of("options", name, OPTIONS, error=SettingsError)
            if OPTIONS[name][0] == "data" and self.preset not in LATENT_DIFFUSION:
                raise SettingsError(
                    f"{name} must be left out for {self.preset}, which trains on sketches."
                )

    def to_dict(self):
        """Return plain values, as results store them; without options, as before there were any."""
        values = dataclasses.asdict(self)
        return values if self.options else {k: v for k, v in values.items() if k != "options"}

    @property
    def name(self):
        """Name of the run's folder. Studies that share a run have the same name for it."""
        parts = [self.preset]
        parts += [self.category.replace(" ", "_")] if self.category else []
        parts += ["full"] if self.full else []
        # A user's method is `package.module:Class`, and not all file systems allow a colon.
        parts += [self.method.replace(":", ".")]
        parts += [f"s{self.sparsity:g}"] if self.method != "dense" else []
        parts += [f"p{self.prune_rate:g}"] if self.prune_rate is not None else []
        parts += [f"u{self.update_every}"] if self.update_every is not None else []
        parts += [
            option_text(*option).replace(" = ", "_").replace(":", ".") for option in self.options
        ]
        return "-".join([*parts, f"seed{self.seed}"])


def option_text(name, value):
    """Return an option as text, such as `"grow_init = normal"`; a flag is its name alone."""
    return name if value is True else f"{name} = {value}"


@dataclass(frozen=True)
class Study:
    """A set of runs, such as those behind a table or a figure of the paper.

    Attributes:
        name: Name on the command line.
        title: One line for tables and reports.
        cells: The runs, a tuple of `Cell`.
        sampling_steps: Numbers of DDIM steps; every run is evaluated with each of them. Empty to
            evaluate each run with its own number only.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    sampling_steps: tuple[int, ...] = ()

    @classmethod
    def of(cls, name, title, cells, sampling_steps=()):
        """Return a study of any iterable of cells, each of them once."""
        return cls(name, title, tuple(dict.fromkeys(cells)), sampling_steps)

    def with_seeds(self, number):
        """Return the study with the seeds 0 to `number` - 1 for each run."""
        first = dict.fromkeys(dataclasses.replace(cell, seed=0) for cell in self.cells)
        cells = (dataclasses.replace(cell, seed=seed) for seed in range(number) for cell in first)
        return dataclasses.replace(self, cells=tuple(cells))

    def with_cells(self, pattern):
        """Return the study with only the cells whose names match a pattern such as `*kanjivg*`.

        Raises:
            SettingsError: if no name matches.
        """
        cells = tuple(cell for cell in self.cells if fnmatch.fnmatchcase(cell.name, pattern))
        if not cells:
            raise SettingsError(
                f"--cells {pattern!r} matches none of the study's "
                f"{counted(len(self.cells), 'cell')}; a cell's name looks like "
                f"{self.cells[0].name}."
            )
        return dataclasses.replace(self, cells=cells)


def grid(
    presets,
    methods,
    sparsities=(),
    prune_rates=(),
    seeds=SEEDS,
    update_every=(None,),
    categories=CATEGORIES,
    full=(False,),
    **options,
):
    """Return all combinations of the given settings, a list of `Cell`s.

    Settings that a run does not have are left out: dense runs have no sparsity, prune rate or
    topology updates, static runs have no prune rate or topology updates, and only QuickDraw has
    categories. `options` are tuples of values of `OPTIONS`, by name; the default is one of each.
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        one_of("options", unknown[0], OPTIONS, error=SettingsError)
    cells = []
    for preset, whole, method in itertools.product(presets, full, methods):
        groups = categories if preset == "chirodiff_quickdraw" else (None,)
        facts = checked_method("method", method)
        product = itertools.product(
            (0.0,) if method == "dense" else sparsities,
            prune_rates if facts.exchanges else (None,),
            update_every if facts.changes_masks else (None,),
            groups,
            itertools.product(*(_choices(facts, name, options.get(name)) for name in OPTIONS)),
            seeds,
        )
        cells += [
            Cell(preset, method, s, p, seed, c, whole, u, tuple(o for o in chosen if o))
            for s, p, u, c, chosen, seed in product
        ]
    return cells


def _choices(facts, name, values):
    """Return `(name, value)` of an option for each of its values, None for the default."""
    if values is None or not OPTIONS[name][1](facts):
        return (None,)
    default = DEFAULTS[name]
    return [None if value == default else (name, value) for value in values]
