"""Settings of one run, as the command line takes them and `config.json` keeps them.

Nothing here needs Keras, so that the command line answers at once.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from keras_sparse_dm.diffusion.noise_schedule import KINDS as NOISE_SCHEDULES
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.models.presets import (
    DataSettings,
    ModelSettings,
    NoiseSettings,
    Preset,
    SamplingSettings,
    TrainingSettings,
    get_preset,
)
from keras_sparse_dm.sparsity.distributions import DISTRIBUTIONS

CONFIG_FILE = "config.json"
# Those of `keras_sparse_dm.sparsity.METHODS`, which would load Keras, and none.
METHODS = ("rigl", "magran", "set", "snfs", "gmp", "static", "dense")
DATASETS = ("kanjivg",)

_Flat = tyro.conf.OmitArgPrefixes


class SettingsError(ValueError):
    """Settings that no run can be made of; the message is for the person who gave them."""


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number; the message says what is kept."""


@dataclass(frozen=True)
class RunSettings:
    """Trains a sparse diffusion model and reports on it."""

    preset: tyro.conf.Positional[str] = "quickstart"
    """Preset whose settings are the defaults of all others: quickstart (minutes on 2 cores),
    chirodiff_kanjivg (the paper's)."""
    output_dir: Path | None = None
    """Folder of the run; by default runs/PRESET-METHOD-sSPARSITY-seedSEED."""
    resume: bool = False
    """Continue the run in the output folder from its last checkpoint."""
    seed: int = 0
    """Seed of everything random in the run."""
    data_dir: Path | None = None
    """Folder of the data set's files; by default those of the PyPI package kanjivg."""
    cache_dir: Path | None = None
    """Folder for prepared data; by default the user's cache folder."""
    samples: int = 64
    """Sketches to generate for the pictures."""
    samples_every: int = 0
    """Epochs between sample pictures during training; 0 for only one at the end."""
    verbose: int = -1
    """0 silent, 1 progress bar, 2 one line an epoch; -1 picks 1 in a terminal and 2 elsewhere."""
    training: _Flat[TrainingSettings] = field(
        default_factory=lambda: get_preset("quickstart").training
    )
    model: _Flat[ModelSettings] = field(default_factory=lambda: get_preset("quickstart").model)
    data: _Flat[DataSettings] = field(default_factory=lambda: get_preset("quickstart").data)
    noise: Annotated[NoiseSettings, tyro.conf.arg(name="noise")] = field(
        default_factory=lambda: get_preset("quickstart").noise
    )
    sampling: Annotated[SamplingSettings, tyro.conf.arg(name="sampling")] = field(
        default_factory=lambda: get_preset("quickstart").sampling
    )

    @classmethod
    def from_preset(cls, name, **settings):
        """The settings of a preset.

        Raises:
            SettingsError: for an unknown preset.
        """
        try:
            preset = get_preset(name)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        return cls(
            preset=name,
            training=preset.training,
            model=preset.model,
            data=preset.data,
            noise=preset.noise,
            sampling=preset.sampling,
            **settings,
        )

    def to_preset(self):
        """The `Preset` that these settings amount to."""
        return Preset(self.preset, self.model, self.data, self.training, self.noise, self.sampling)

    @property
    def folder(self):
        """The run's folder: the one asked for, or one named after the settings."""
        if self.output_dir is not None:
            return self.output_dir
        t = self.training
        sparsity = "" if t.method == "dense" else f"-s{t.sparsity:g}"
        return Path("runs") / f"{self.preset}-{t.method}{sparsity}-seed{self.seed}"

    def to_dict(self):
        """Plain values, as written to `config.json`; what does not shape the run is left out."""
        values = dataclasses.asdict(self)
        for name in ("output_dir", "cache_dir", "resume", "verbose"):
            del values[name]
        values["data_dir"] = None if self.data_dir is None else str(self.data_dir)
        return values

    def with_stored(self, stored):
        """These settings with those of a stored run in their place."""
        try:
            preset = Preset.from_dict(stored | {"name": stored["preset"]})
            data_dir = stored["data_dir"]
            return dataclasses.replace(
                self,
                preset=preset.name,
                seed=stored["seed"],
                samples=stored["samples"],
                samples_every=stored["samples_every"],
                data_dir=None if data_dir is None else Path(data_dir),
                training=preset.training,
                model=preset.model,
                data=preset.data,
                noise=preset.noise,
                sampling=preset.sampling,
            )
        except (KeyError, TypeError) as error:
            raise SettingsError(
                f"{self.folder / CONFIG_FILE} is not a configuration of this version: {error!r}"
            ) from None

    def check(self):
        """Checks everything that can be checked without loading anything.

        Raises:
            SettingsError: naming the option, what was received and what would be right.
        """
        t, m, d, n, s = self.training, self.model, self.data, self.noise, self.sampling
        _one_of("--method", t.method, METHODS)
        _one_of("--distribution", t.distribution, DISTRIBUTIONS)
        _one_of("--characters", d.characters, ("kanji", "kanji+variants", "all"))
        _one_of("--prune-schedule", t.prune_schedule, ("constant", "cosine"))
        _one_of("--learning-rate-schedule", t.learning_rate_schedule, ("constant", "cosine"))
        _one_of("--representation", d.representation, ("absolute", "delta"))
        _one_of("--noise.schedule", n.schedule, NOISE_SCHEDULES)
        _one_of("--sampling.sampler", s.sampler, ("ddim", "ddpm"))
        _one_of("--kind", m.kind, ("chirodiff",))
        _number("--sparsity", t.sparsity, 0, 1, closed_high=False)
        if t.sparsity == 0 and t.method != "dense":
            raise SettingsError(
                f"--sparsity must be above 0 for --method {t.method}; received 0. For a dense "
                "network use --method dense."
            )
        _number("--prune-rate", t.prune_rate, 0, 1, closed_low=False)
        _number("--learning-rate", t.learning_rate, 0, math.inf, closed_low=False)
        _number("--weight-decay", t.weight_decay, 0, math.inf)
        _number("--global-clipnorm", t.global_clipnorm, 0, math.inf)
        _number("--ema-momentum", t.ema_momentum, 0, 1, closed_high=False)
        _number("--spacing", d.spacing, 0, 1, closed_low=False)
        _number("--scale", d.scale, 0, math.inf, closed_low=False)
        _number("--time-scale", m.time_scale, 0, math.inf, closed_low=False)
        _number("--sampling.eta", s.eta, 0, 1)
        for option, value, low in (
            ("--update-every", t.update_every, 1),
            ("--epochs", t.epochs, 1),
            ("--batch-size", t.batch_size, 1),
            ("--seed", self.seed, 0),
            ("--samples", self.samples, 1),
            ("--samples-every", self.samples_every, 0),
            ("--units", m.units, 1),
            ("--num-layers", m.num_layers, 1),
            ("--time-features", m.time_features, 2),
            ("--max-points", d.max_points, 3),
            ("--noise.timesteps", n.timesteps, 2),
            ("--sampling.steps", s.steps, 1),
        ):
            if value < low:
                raise SettingsError(f"{option} must be {low} or more; received {value}.")
        if self.seed >= 2**31:
            raise SettingsError(f"--seed must be below 2147483648; received {self.seed}.")
        if m.time_features % 2:
            raise SettingsError(f"--time-features must be even; received {m.time_features}.")
        if s.steps > n.timesteps:
            raise SettingsError(
                f"--sampling.steps must be at most the {n.timesteps} timesteps; received {s.steps}."
            )
        if n.schedule != "cosine" and not 0 < n.beta_start <= n.beta_end < 1:
            raise SettingsError(
                "--noise.beta-start and --noise.beta-end must satisfy 0 < start <= end < 1; "
                f"received {n.beta_start} and {n.beta_end}."
            )
        if self.verbose not in (-1, 0, 1, 2):
            raise SettingsError(f"--verbose must be -1, 0, 1 or 2; received {self.verbose}.")
        if d.dataset not in DATASETS:
            raise SettingsError(
                f"--dataset must be {' or '.join(DATASETS)}, which is what this version reads; "
                f"received {d.dataset} (preset {self.preset}). Its network can be trained "
                "from Python, with your own batches."
            )


def read_config(folder):
    """Reads a run's `config.json`; None where there is none.

    Raises:
        SettingsError: if it cannot be read or is not a run's configuration.
    """
    return read_json(Path(folder) / CONFIG_FILE, {"settings": dict})


def check_folder(settings):
    """Checks, before any work, that the folder is free or holds the run to be resumed.

    Raises:
        SettingsError: if it is not or does not, or holds a run of another configuration.
    """
    folder = settings.folder
    stored = read_config(folder)
    if stored is not None:
        if not settings.resume:
            raise SettingsError(
                f"--output-dir {folder} already holds a run; continue it with --resume, or name "
                "another folder."
            )
        different = [
            f"{name} is {here!r} but was {there!r}"
            for name, here, there in _differences(settings.to_dict(), stored["settings"])
            if name not in ("--samples", "--samples-every")
        ]
        if different:
            raise SettingsError(
                f"--resume: the run in {folder} has another configuration: {'; '.join(different)}. "
                "Leave these options out, or begin another run."
            )
        return
    if settings.resume:
        raise SettingsError(f"--resume: {folder} holds no run; leave out --resume to start one.")
    try:
        # What a start that failed has left is no reason to refuse the next one.
        if folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
            raise SettingsError(
                f"--output-dir {folder} is not empty and holds no run; name another folder."
            )
    except OSError as error:
        raise unusable_folder(folder, error) from None


def unusable_folder(folder, error):
    """The error for a folder that cannot be made or read."""
    return SettingsError(
        f"--output-dir {folder} cannot be used: {error.strerror}; name a folder that can be "
        "written."
    )


def _differences(mine, theirs, prefix=""):
    """Yields `(option, value here, value there)` for what differs."""
    for name, value in mine.items():
        other = theirs.get(name) if isinstance(theirs, dict) else None
        if isinstance(value, dict):
            flat = name in ("training", "model", "data")
            yield from _differences(value, other, prefix if flat else f"{prefix}{name}.")
        elif value != other:
            option = f"--{prefix}{name}".replace("_", "-")
            yield "preset" if name == "preset" else option, value, other


def read_json(path, keys):
    """Reads a JSON file that a run wrote; None where there is none.

    Args:
        path: The file.
        keys: `{key: type}` of what it must hold.

    Raises:
        SettingsError: if it cannot be read or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise SettingsError(
            f"--output-dir {path.parent} cannot be used: it is a file or lies below one; name "
            "another folder."
        ) from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} is damaged and cannot be read: {error}.") from None
    for key, kind in keys.items():
        if not isinstance(values, dict) or not isinstance(values.get(key), kind):
            raise SettingsError(f"{path} is damaged: it holds no {key!r}.")
    return values


def write_json(path, values):
    """Writes a JSON file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _one_of(option, value, choices):
    if value not in choices:
        raise SettingsError(f"{option} must be one of {', '.join(choices)}; received {value!r}.")


def _number(option, value, low, high, closed_low=True, closed_high=True):
    inside = (value >= low if closed_low else value > low) and (
        value <= high if closed_high else value < high
    )
    if not inside or not math.isfinite(value):
        if high == math.inf:
            wanted = f"{low} or more" if closed_low else f"above {low}"
        else:
            wanted = f"in {'[' if closed_low else '('}{low}, {high}{']' if closed_high else ')'}"
        raise SettingsError(f"{option} must be a number {wanted}; received {value:g}.")
