"""The study's grid: which runs each table and figure of the paper consists of, and their settings.

Nothing here needs Keras, so that the command line answers at once.
"""

import dataclasses
import difflib
import fnmatch
import itertools
from dataclasses import dataclass
from pathlib import Path

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.presets import AutoencoderSettings, get_preset
from keras_sparse_dm.runs.autoencoder_settings import AutoencoderRunSettings
from keras_sparse_dm.runs.folder import option_differences
from keras_sparse_dm.runs.settings import METHODS, RunSettings
from keras_sparse_dm.study.paper import PAPER_COSTS

SCALES = ("smoke", "reduced", "paper")
# Methods that exchange weights while they train, and so have a prune rate.
DYNAMIC = ("rigl", "magran", "set", "snfs")
LATENT_DIFFUSION = ("ldm_celebahq", "ldm_lsun_bedrooms", "ldm_imagenette")
CHIRODIFF = ("chirodiff_quickdraw", "chirodiff_kanjivg", "chirodiff_vmnist")
# Paper, section 3.3.2 and B.3.
SPARSITIES = (0.1, 0.25, 0.5, 0.75, 0.9)
CATEGORIES = ("cat", "crab", "mosquito")
SEEDS = (0, 1, 2)
PAPER_SAMPLES = 10_000
# Twice the 12,500 that are half of it (paper, appendix C).
FULL_CELEBAHQ = 25_000
# Where a data set lies in --data-dir, in the order in which it is looked for.
FOLDERS = {
    "quickdraw": ("quickdraw",),
    "kanjivg": ("kanjivg", "kanji*.npz"),
    "vmnist": ("mnist", "vmnist"),
    "celebahq": ("celebahq",),
    "lsun_bedrooms": ("lsun_bedrooms",),
    "imagenette": ("imagenette",),
}
WHERE_TO_GET = {
    "quickdraw": "cat.ndjson, crab.ndjson and mosquito.ndjson of "
    "https://storage.googleapis.com/quickdraw_dataset/full/raw/",
    "vmnist": "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz of "
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "celebahq": "the 30,000 images of https://github.com/tkarras/progressive_growing_of_gans",
    "lsun_bedrooms": "13,098 or more of the bedrooms of https://github.com/fyu/lsun",
    "imagenette": "train and val of https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
}


def _one_of(what, value, choices):
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise SettingsError(
            f"{what} must be one of {', '.join(choices)}; received {value!r}.{hint}"
        )


@dataclass(frozen=True)
class Cell:
    """One training run of the study.

    Attributes:
        preset: Name of the paper's preset: `ldm_celebahq` ... `chirodiff_vmnist`.
        method: One of `METHODS`.
        sparsity: S in [0, 1); 0 for dense.
        prune_rate: p in (0, 1] of methods that exchange weights; None for the others.
        seed: Seed of everything random in the run.
        category: QuickDraw's category; None for other data sets.
        full: Whether CelebA-HQ is trained on as a whole (Table 3) rather than on half of it.
        update_every: Steps between topology updates; None for the scale's own.

    Raises:
        SettingsError: for values that do not go together.
    """

    preset: str
    method: str
    sparsity: float
    prune_rate: float | None
    seed: int
    category: str | None = None
    full: bool = False
    update_every: int | None = None

    def __post_init__(self):
        _one_of("preset", self.preset, (*LATENT_DIFFUSION, *CHIRODIFF))
        _one_of("method", self.method, METHODS)
        if (self.method == "dense") != (self.sparsity == 0):
            raise SettingsError(
                "sparsity must be 0 for method dense and above 0 for all others; received "
                f"{self.sparsity!r} for {self.method}."
            )
        if not 0 <= self.sparsity < 1:
            raise SettingsError(f"sparsity must be in [0, 1); received {self.sparsity!r}.")
        if self.method in DYNAMIC and not (self.prune_rate and 0 < self.prune_rate <= 1):
            raise SettingsError(
                f"prune_rate must be in (0, 1] for method {self.method}; received "
                f"{self.prune_rate!r}."
            )
        if self.method not in DYNAMIC and self.prune_rate is not None:
            raise SettingsError(
                f"prune_rate must be None for method {self.method}, which exchanges no weights; "
                f"received {self.prune_rate!r}."
            )
        if not 0 <= self.seed < 2**31:
            raise SettingsError(f"seed must be from 0 to 2147483647; received {self.seed!r}.")
        if (self.preset == "chirodiff_quickdraw") != (self.category is not None):
            raise SettingsError(
                "category must be given for chirodiff_quickdraw and for no other preset; received "
                f"{self.category!r} for {self.preset}."
            )
        if self.full and self.preset != "ldm_celebahq":
            raise SettingsError(f"full is of ldm_celebahq only; received it for {self.preset}.")
        if self.update_every is not None and self.update_every < 1:
            raise SettingsError(f"update_every must be 1 or more; received {self.update_every!r}.")

    @property
    def name(self):
        """The run's folder: the same for the same run, whatever study it is of."""
        parts = [self.preset]
        parts += [self.category.replace(" ", "_")] if self.category else []
        parts += ["full"] if self.full else []
        parts += [self.method]
        parts += [f"s{self.sparsity:g}"] if self.method != "dense" else []
        parts += [f"p{self.prune_rate:g}"] if self.prune_rate is not None else []
        parts += [f"u{self.update_every}"] if self.update_every is not None else []
        return "-".join([*parts, f"seed{self.seed}"])


@dataclass(frozen=True)
class Study:
    """A table or figure, or any other set of runs.

    Attributes:
        name: What the command line calls it.
        title: What it shows.
        cells: Its runs.
        sampling_steps: Numbers of DDIM steps with each of which each run is evaluated; empty for
            the run's own.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    sampling_steps: tuple[int, ...] = ()

    def with_seeds(self, number):
        """This study with so many seeds of each run, from 0."""
        first = dict.fromkeys(dataclasses.replace(cell, seed=0) for cell in self.cells)
        cells = (dataclasses.replace(cell, seed=seed) for seed in range(number) for cell in first)
        return dataclasses.replace(self, cells=tuple(cells))

    def with_cells(self, pattern):
        """This study with those of its cells whose names match a pattern, such as `*kanjivg*`.

        Raises:
            SettingsError: if there is none.
        """
        cells = tuple(cell for cell in self.cells if fnmatch.fnmatchcase(cell.name, pattern))
        if not cells:
            raise SettingsError(
                f"--cells {pattern!r} matches none of the study's {len(self.cells)} cells, which "
                f"are called like {self.cells[0].name}."
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
):
    """The product of what is given, without what makes no difference to a run: a list of `Cell`s.

    Dense runs have neither sparsity nor prune rate nor updates, static ones no prune rate and no
    updates, and only QuickDraw has categories.
    """
    cells = []
    for preset, whole, method in itertools.product(presets, full, methods):
        groups = categories if preset == "chirodiff_quickdraw" else (None,)
        moves = method in DYNAMIC or method == "gmp"
        product = itertools.product(
            (0.0,) if method == "dense" else sparsities,
            prune_rates if method in DYNAMIC else (None,),
            update_every if moves else (None,),
            groups,
            seeds,
        )
        cells += [Cell(preset, method, s, p, seed, c, whole, u) for s, p, u, c, seed in product]
    return cells


def _best(table, seeds=SEEDS, presets=None):
    """The rows of the paper's Table 1 or 2: dense, and the best of each method, with p = 0.5."""
    return [
        cell
        for row in PAPER_COSTS
        if row.table == table and (presets is None or row.preset in presets)
        for cell in grid((row.preset,), (row.method,), (row.sparsity,), (0.5,), seeds)
    ]


def _study(name, title, cells, sampling_steps=()):
    return Study(name, title, tuple(dict.fromkeys(cells)), sampling_steps)


_SPARSE = ("static", "rigl", "magran")
_ALL = ("dense", *_SPARSE)

STUDIES = {
    study.name: study
    for study in (
        _study("table1", "Latent diffusion, dense and the best of each method", _best(1)),
        _study("table2", "ChiroDiff, dense and the best of each method", _best(2)),
        _study(
            "table3",
            "Latent diffusion on all of CelebA-HQ and on half of it, S = 0.5",
            grid(("ldm_celebahq",), _ALL, (0.5,), (0.5,), (0,), full=(True, False)),
        ),
        _study(
            "table4",
            "Latent diffusion of Table 1 with other numbers of sampling steps",
            _best(1, (0,), ("ldm_celebahq", "ldm_lsun_bedrooms")),
            (50, 100, 200),
        ),
        _study(
            "table5",
            "Latent diffusion at S = 0.9 with two prune rates",
            grid(LATENT_DIFFUSION, _SPARSE, (0.9,), (0.5, 0.05)),
        ),
        _study(
            "table6",
            "ChiroDiff at S = 0.9 with two prune rates",
            grid(CHIRODIFF, _SPARSE, (0.9,), (0.5, 0.05)),
        ),
        _study(
            "figure2",
            "Latent diffusion, distance against sparsity, p = 0.5",
            grid(LATENT_DIFFUSION, _ALL, SPARSITIES, (0.5,)),
        ),
        _study(
            "figure3",
            "ChiroDiff, distance against sparsity, p = 0.5",
            grid(CHIRODIFF, _ALL, SPARSITIES, (0.5,)),
        ),
        _study(
            "figure4",
            "CelebA-HQ and KanjiVG at S = 0.75, distance against sampling steps",
            grid(("ldm_celebahq", "chirodiff_kanjivg"), _ALL, (0.75,), (0.5,)),
            (50, 100, 150, 200),
        ),
        _study(
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
        _study(
            "figure6",
            "Latent diffusion, distance against sparsity, p = 0.05",
            grid(LATENT_DIFFUSION, _ALL, SPARSITIES, (0.05,)),
        ),
        _study(
            "figure7",
            "ChiroDiff, distance against sparsity, p = 0.05",
            grid(CHIRODIFF, _ALL, SPARSITIES, (0.05,)),
        ),
        _study(
            "sketches",
            "VMNIST and KanjiVG, dense and all methods at S = 0.5 and 0.9, p = 0.05 and 0.5",
            grid(("chirodiff_vmnist", "chirodiff_kanjivg"), _ALL, (0.5, 0.9), (0.05, 0.5), (0, 1)),
        ),
    )
}

# What a study's file may hold besides its name, and what `grid` calls it.
_FILE_KEYS = {
    "title": str,
    "presets": list,
    "methods": list,
    "sparsities": list,
    "prune_rates": list,
    "update_intervals": list,
    "categories": list,
    "seeds": list,
    "full": list,
    "sampling_steps": list,
}


def find_study(name):
    """The study of that name, or the one that a YAML file of that path describes.

    Raises:
        SettingsError: for an unknown name, or a file that cannot be read or describes none.
    """
    if name in STUDIES:
        return STUDIES[name]
    if Path(name).suffix.lower() in (".yaml", ".yml"):
        return read_study(name)
    close = difflib.get_close_matches(str(name), STUDIES, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise SettingsError(
        f"the study must be one of {', '.join(STUDIES)}, or a .yaml file; received {name!r}.{hint}"
    )


def read_study(path):
    """Reads a study from a YAML file: lists whose product are its runs.

    Example:

        presets: [chirodiff_kanjivg]
        methods: [dense, rigl]
        sparsities: [0.5, 0.9]
        prune_rates: [0.05]
        seeds: [0, 1]

    Further keys: `title`, `update_intervals`, `categories` (QuickDraw's), `full` (CelebA-HQ's),
    `sampling_steps`. The study is called as the file.

    Raises:
        SettingsError: for a file that cannot be read, unknown keys, or values that no run can have.
    """
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"there is no study {path}.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path} cannot be read: {reason}.") from None
    if not isinstance(values, dict):
        raise SettingsError(
            f"{path} must hold lists of presets, methods and so on; received "
            f"{type(values).__name__}."
        )
    for key, value in values.items():
        if key not in _FILE_KEYS:
            close = difflib.get_close_matches(str(key), _FILE_KEYS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise SettingsError(
                f"{path}: {key!r} is unknown; known are {', '.join(_FILE_KEYS)}.{hint}"
            )
        if not isinstance(value, _FILE_KEYS[key]):
            wanted = "a text" if _FILE_KEYS[key] is str else "a list"
            raise SettingsError(f"{path}: {key} must be {wanted}; received {value!r}.")
    for key in ("presets", "methods"):
        if not values.get(key):
            raise SettingsError(f"{path}: {key} must name at least one.")
    title = values.pop("title", path.stem)
    steps = tuple(_whole(path, "sampling_steps", values.pop("sampling_steps", ())))
    renamed = {"update_intervals": "update_every"}
    values = {renamed.get(key, key): tuple(value) for key, value in values.items()}
    for key in ("sparsities", "prune_rates"):
        values[key] = tuple(_numbers(path, key, values.get(key, ())))
    for key in ("seeds", "update_every"):
        if key in values:
            values[key] = _whole(path, key, values[key])
    _check_lists(path, values)
    try:
        cells = grid(**values)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return _study(path.stem, title, cells, steps)


def _check_lists(path, values):
    """Refuses a list that is missing where a method or preset needs it."""
    needed = {"sparsities": set(METHODS) - {"dense"}, "prune_rates": set(DYNAMIC)}
    for key, methods in needed.items():
        those = [method for method in values["methods"] if method in methods]
        if those and not values[key]:
            raise SettingsError(f"{path}: {key} must be given for method {those[0]}.")
    for key, value in values.items():
        if not value and key not in needed:
            raise SettingsError(f"{path}: {key} must hold at least one value; received [].")


def _numbers(path, key, values):
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SettingsError(f"{path}: {key} must hold numbers; received {value!r}.")
    return [float(value) for value in values]


def _whole(path, key, values):
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise SettingsError(f"{path}: {key} must hold whole numbers; received {value!r}.")
    return tuple(values)


def settings_of(
    cell,
    scale,
    data_dir=None,
    *,
    folder=None,
    cache_dir=None,
    epochs=None,
    samples=None,
    autoencoder=None,
):
    """What a cell means at a scale.

    Args:
        cell: The `Cell`.
        scale: `"smoke"` (seconds a run, on what comes with the packages), `"reduced"` (minutes a
            run), or `"paper"`.
        data_dir: Folder that holds a folder of each data set, named as in `FOLDERS`.
        folder: The study's folder; the run's is `runs/NAME` in it.
        cache_dir: Folder for prepared data.
        epochs: `{preset: epochs}` in place of the scale's.
        samples: Samples to evaluate, in place of the scale's.
        autoencoder: Trained autoencoder for latent diffusion.

    Returns:
        `RunSettings`, whose `sampling.evaluation` is the number of samples to evaluate.

    Raises:
        SettingsError: for data that are not there; the message says where to get them.
    """
    _one_of("--scale", scale, SCALES)
    settings = RunSettings.from_preset(cell.preset)
    of_images = cell.preset in LATENT_DIFFUSION
    place = data_place(settings.data.dataset, data_dir)
    training = {"method": cell.method, "sparsity": cell.sparsity}
    if cell.prune_rate is not None:
        training["prune_rate"] = cell.prune_rate
    if cell.category is not None:
        settings = _with(settings, data={"categories": (cell.category,)})
    if cell.full:
        settings = _with(settings, data={"training_images": FULL_CELEBAHQ})
    settings = _with(settings, sampling={"evaluation": PAPER_SAMPLES})
    if scale != "smoke" and place is None and settings.data.dataset != "kanjivg":
        raise SettingsError(_missing(settings.data.dataset, data_dir))
    if scale == "reduced":
        settings = _reduced_images(settings, cell) if of_images else _reduced_sketches(settings)
    elif scale == "smoke":
        settings = _smoke_images(settings) if of_images else _smoke_sketches(settings, place)
        place = place if settings.data.dataset == get_preset(cell.preset).data.dataset else None
    if cell.update_every is not None:
        training["update_every"] = cell.update_every
    if epochs and cell.preset in epochs:
        training["epochs"] = epochs[cell.preset]
    settings = _with(settings, training=training)
    if samples is not None:
        settings = _with(settings, sampling={"evaluation": samples})
    folder = None if folder is None else Path(folder)
    if of_images:
        if autoencoder is None and scale == "reduced" and folder is not None:
            autoencoder = folder / "autoencoders" / settings.data.dataset / "autoencoder.keras"
        settings = dataclasses.replace(settings, autoencoder=autoencoder)
    return dataclasses.replace(
        settings,
        output_dir=None if folder is None else folder / "runs" / cell.name,
        data_dir=place,
        cache_dir=cache_dir,
        seed=cell.seed,
        verbose=2,
    )


def data_place(dataset, data_dir):
    """Where a data set lies in the folder of all, or None."""
    if data_dir is None:
        return None
    for pattern in FOLDERS[dataset]:
        found = sorted(Path(data_dir).glob(pattern))
        if found:
            return found[0].absolute()
    return None


def _missing(dataset, data_dir):
    name = FOLDERS[dataset][0]
    where = f"{Path(data_dir) / name} does not exist" if data_dir else "it is not given"
    return (
        f"--data-dir must be a folder in which {name} holds the data set; {where}. Put there "
        f"{WHERE_TO_GET[dataset]}."
    )


def _with(settings, **parts):
    """Settings with some values of their parts replaced."""
    return dataclasses.replace(
        settings,
        **{
            name: dataclasses.replace(getattr(settings, name), **values)
            for name, values in parts.items()
        },
    )


def _reduced_sketches(settings):
    """The paper's network, trained for minutes as `quickstart` is."""
    quick = get_preset("quickstart").training
    # VMNIST's network is so small that a larger batch takes hardly longer.
    epochs, batch_size = {
        "chirodiff_kanjivg": (8, 64),
        "chirodiff_vmnist": (15, 128),
        "chirodiff_quickdraw": (1, 128),
    }[settings.preset]
    training = dataclasses.replace(quick, epochs=epochs, batch_size=batch_size)
    settings = dataclasses.replace(settings, training=training)
    return _with(settings, sampling={"evaluation": 1000})


def _reduced_images(settings, cell):
    """The network and training of `ldm_kanjivg` on small images."""
    small = get_preset("ldm_kanjivg")
    settings = dataclasses.replace(
        settings,
        model=small.model,
        training=small.training,
        sampling=small.sampling,
        first_stage=small.autoencoder,
    )
    data = {
        "image_size": 64,
        "cache_latents": True,
        "training_images": 10_000 if cell.full else 5_000,
        "validation_images": 500,
    }
    return _with(settings, data=data, sampling={"evaluation": 1000})


def _smoke_sketches(settings, place):
    """The paper's network on a few sketches, which come with a package where need be."""
    if place is None and settings.data.dataset == "quickdraw":
        settings = _with(settings, data={"dataset": "kanjivg"})
    settings = _with(
        settings,
        data={"max_sketches": 64},
        training={
            "epochs": 2,
            "batch_size": 16,
            "update_every": 2,
            "learning_rate": 8e-3,
            "ema_momentum": 0.9,
        },
        sampling={"steps": 5, "evaluation": 64},
    )
    # As many for the picture as for the evaluation: sampling is then traced once.
    return dataclasses.replace(settings, samples=64)


def _smoke_images(settings):
    """A tiny network, autoencoder and all, on a few rendered kanji."""
    small = get_preset("ldm_kanjivg")
    settings = dataclasses.replace(
        settings,
        model=dataclasses.replace(small.model, channel_mult=(1,), attention_factors=(1,)),
        data=dataclasses.replace(
            small.data, image_size=32, training_images=64, validation_images=16
        ),
        training=dataclasses.replace(
            small.training, epochs=2, update_every=2, learning_rate=1e-3, ema_momentum=0.9
        ),
        first_stage=AutoencoderSettings(
            channels=8,
            num_res_blocks=1,
            codes=64,
            norm_groups=4,
            reconstruction="l2",
            epochs=1,
            batch_size=16,
            learning_rate=2e-3,
        ),
        samples=16,
    )
    return _with(settings, sampling={"steps": 5, "evaluation": 64})


def autoencoder_settings(settings):
    """The `AutoencoderRunSettings` that train the autoencoder which a reduced run names."""
    return AutoencoderRunSettings(
        preset=settings.preset,
        output_dir=settings.autoencoder.parent,
        data_dir=settings.data_dir,
        cache_dir=settings.cache_dir,
        model=settings.first_stage,
        data=settings.data,
        verbose=2,
    )


def sampling_steps_of(study, settings):
    """Numbers of sampling steps that a run of a study is evaluated with, the run's own last."""
    own = settings.sampling.steps
    steps = study.sampling_steps or (own,)
    return tuple(sorted(set(steps), key=lambda n: (n == own, n)))


# What stands in a `PresetSettings` but is the cell's own.
_OF_THE_CELL = ("method", "sparsity", "prune_rate", "categories")


def differences_from_paper(cell, scale, settings, weights=()):
    """One line for each setting in which a run differs from the paper's.

    Args:
        cell: The `Cell`.
        scale: Its scale.
        settings: What `settings_of` gave for both.
        weights: Paths of the Inception weights that it was evaluated with.
    """
    paper = RunSettings.from_preset(cell.preset)
    paper = _with(paper, sampling={"evaluation": PAPER_SAMPLES})
    if cell.full:
        paper = _with(paper, data={"training_images": FULL_CELEBAHQ})
    lines = []
    if settings.data.dataset != paper.data.dataset or scale == "smoke":
        lines.append(f"data set: {_stand_in(settings)} instead of {paper.data.dataset}")
    elif settings.data.dataset == "kanjivg" and (
        settings.data_dir is None or settings.data_dir.suffix != ".npz"
    ):
        lines.append(
            "data set: one drawing of each of KanjiVG's 6,422 kanji instead of sketch-rnn's 10,358"
        )
    elif settings.data.dataset == "vmnist":
        lines.append("data set: strokes traced from MNIST's test digits instead of Vector MNIST")
    ours, theirs = settings.to_dict(), paper.to_dict()
    for part in ("model", "data", "training", "noise", "sampling", "first_stage"):
        for name, value in ours.get(part, {}).items():
            there = theirs[part].get(name)
            if name not in (*_OF_THE_CELL, "dataset", "kind", "evaluation") and value != there:
                if name == "update_every" and cell.method not in (*DYNAMIC, "gmp"):
                    continue
                what = name.replace("_", " ")
                what = f"autoencoder's {what}" if part == "first_stage" else what
                lines.append(f"{what}: {_text(value)} instead of {_text(there)}")
    samples = settings.sampling.evaluation
    if samples != PAPER_SAMPLES:
        lines.append(f"samples evaluated: {samples:,} instead of {PAPER_SAMPLES:,}")
    if not weights:
        lines.append("distance: FD-kanji instead of the FID")
    return lines


def _stand_in(settings):
    d = settings.data
    if d.dataset == "kanjivg" and settings.preset in LATENT_DIFFUSION:
        return "rendered kanji"
    where = "" if settings.data_dir is not None else " that come with a package"
    kinds = {"kanjivg": "kanji", "vmnist": "digits", "quickdraw": "drawings"}
    return f"{d.max_sketches} {kinds[d.dataset]}{where}"


def _text(value):
    if isinstance(value, list):
        return "(" + ", ".join(map(str, value)) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting_clashes(mine, stored):
    """Lines for what differs between a run's settings and those stored with a run.

    Where data and autoencoder lie may differ, and what leaves the training as it is.

    Args:
        mine: `RunSettings`.
        stored: Dictionary, as `config.json` holds it under `settings`.
    """
    free = ("--samples", "--samples-every", "--data-dir", "--autoencoder", "--sampling.evaluation")
    return [
        f"{name} is {here!r} but was {there!r}"
        for name, here, there in option_differences(mine.to_dict(), stored)
        if name not in free
    ]
