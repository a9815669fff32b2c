"""Settings of one run, as the command line takes them and `config.json` keeps them.

Nothing here needs Keras, so that the command line answers at once.
"""

import dataclasses
import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from keras_sparse_dm.checks import SettingsError, at_least, check_choices, in_range
from keras_sparse_dm.datasets import IMAGE_DATASETS
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.masks.structure_text import parse_structure
from keras_sparse_dm.presets import (
    AutoencoderSettings,
    ChiroDiffSettings,
    ImageSettings,
    NoiseSettings,
    Preset,
    SamplingSettings,
    SketchSettings,
    TrainingSettings,
    UNetSettings,
    get_preset,
)
from keras_sparse_dm.runs.folder import CONFIG_FILE
from keras_sparse_dm.runs.kinds import kind_named, kind_of_model
from keras_sparse_dm.runs.setting_checks import (
    check_autoencoder_settings,
    check_image_settings,
    check_seed_and_verbose,
    check_sketch_settings,
    checked_method,
)

tyro = lazy_module("tyro")

AUTOENCODER_SUFFIXES = (".keras", ".ckpt", ".pt", ".pth", ".safetensors")

_Flat = tyro.conf.OmitArgPrefixes
_at_least = functools.partial(at_least, error=SettingsError)
_number = functools.partial(in_range, error=SettingsError)


class TrainingDiverged(RuntimeError):
    """Error if the loss is no longer finite; the message says which files are kept."""


@dataclass(frozen=True)
class RunSettings:
    """Train a sparse diffusion model and write a report."""

    preset: tyro.conf.Positional[str] = "quickstart"
    """Preset whose settings are the defaults of all others: quickstart and ldm_kanjivg (minutes
    on 2 cores), or the paper's: chirodiff_kanjivg, ldm_celebahq, ..."""
    output_dir: Path | None = None
    """Folder of the run; by default runs/PRESET-METHOD-sSPARSITY-seedSEED."""
    resume: bool = False
    """Continue the run in the output folder from its last checkpoint."""
    seed: int = 0
    """Seed of everything random in the run."""
    data_dir: Path | None = None
    """Folder of the data set's files. By default, kanjivg's are those of the PyPI package kanjivg,
    vmnist is made of scikit-learn's digits, and quickdraw's are looked for in the cache folder."""
    cache_dir: Path | None = None
    """Folder for prepared data; by default the user's cache folder."""
    samples: int = 64
    """Samples to generate for the pictures."""
    samples_every: int = 0
    """Epochs between sample pictures during training; 0 for only one at the end."""
    distance_every: int = 0
    """Epochs between distances (FD-kanji) of --sampling.evaluation samples, or of 500, from the
    training data, for metrics.csv and TensorBoard; 0 for none during training."""
    verbose: int = -1
    """0 silent, 1 progress bar, 2 one line an epoch; -1 picks 1 in a terminal and 2 elsewhere."""
    training: _Flat[TrainingSettings] = field(
        default_factory=lambda: get_preset("quickstart").training
    )
    noise: Annotated[NoiseSettings, tyro.conf.arg(name="noise")] = field(
        default_factory=lambda: get_preset("quickstart").noise
    )
    sampling: Annotated[SamplingSettings, tyro.conf.arg(name="sampling")] = field(
        default_factory=lambda: get_preset("quickstart").sampling
    )

    @property
    def kind(self):
        """`Kind` of data of the run."""
        return kind_named(kind_of_model(self.model.kind))

    @staticmethod
    def from_preset(name, **settings):
        """Return the settings of a preset: `SketchRunSettings` or `ImageRunSettings`.

        Raises:
            SettingsError: for an unknown preset.
        """
        try:
            preset = get_preset(name)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        cls = SETTINGS[kind_of_model(preset.model.kind)]
        return cls(preset=name, **cls._of_preset(preset), **settings)

    @staticmethod
    def _of_preset(preset):
        return {
            "model": preset.model,
            "data": preset.data,
            "training": preset.training,
            "noise": preset.noise,
            "sampling": preset.sampling,
        }

    def to_preset(self):
        """Return the `Preset` with these settings."""
        return Preset(self.preset, self.model, self.data, self.training, self.noise, self.sampling)

    @property
    def folder(self):
        """Folder of the run: `output_dir`, or by default a folder named after the settings."""
        if self.output_dir is not None:
            return self.output_dir
        t = self.training
        sparsity = "" if t.method == "dense" else f"-s{t.sparsity:g}"
        method = t.method.rpartition(":")[2]
        return Path("runs") / f"{self.preset}-{method}{sparsity}-seed{self.seed}"

    def to_dict(self):
        """Return the settings that shape the run as plain values, for `config.json`."""
        # Tuples become lists, as they are when read again.
        values = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        for name in ("output_dir", "cache_dir", "resume", "verbose"):
            del values[name]
        return values

    def with_stored(self, stored):
        """Return these settings with the values of a stored run."""
        try:
            preset = Preset.from_dict(
                stored | {"name": stored["preset"], "autoencoder": stored.get("first_stage")}
            )
            cls = type(self.from_preset(preset.name))
            data_dir, autoencoder = stored["data_dir"], stored.get("autoencoder")
            values = {
                "preset": preset.name,
                "seed": stored["seed"],
                "samples": stored["samples"],
                "samples_every": stored["samples_every"],
                # Runs that were begun before there was this setting have none.
                "distance_every": stored.get("distance_every", 0),
                "data_dir": None if data_dir is None else Path(data_dir),
                "autoencoder": None if autoencoder is None else Path(autoencoder),
                **cls._of_preset(preset),
            }
            names = {field.name for field in dataclasses.fields(cls)}
            own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            merged = own | values
            return cls(**{name: value for name, value in merged.items() if name in names})
        except (KeyError, TypeError, SettingsError) as error:
            raise SettingsError(
                f"{self.folder / CONFIG_FILE} is not a configuration of this version: {error!r}"
            ) from None

    def check(self):
        """Check all that can be checked without loading Keras or data.

        Raises:
            SettingsError: naming the option, what was received and what would be right.
        """
        t, n, s = self.training, self.noise, self.sampling
        facts = checked_method("--method", t.method)
        for part, prefix in ((t, ""), (n, "noise."), (s, "sampling."), (self.model, "")):
            check_choices(part, prefix)
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
        _number("--sampling.eta", s.eta, 0, 1)
        _at_least(
            ("--update-every", t.update_every, 1),
            ("--epochs", t.epochs, 1),
            ("--batch-size", t.batch_size, 1),
            ("--samples", self.samples, 1),
            ("--samples-every", self.samples_every, 0),
            ("--distance-every", self.distance_every, 0),
            ("--noise.timesteps", n.timesteps, 2),
            ("--sampling.steps", s.steps, 1),
            ("--sampling.evaluation", s.evaluation, 0),
        )
        self._check_growth(facts)
        if 0 < s.evaluation < 8:
            raise SettingsError(
                f"--sampling.evaluation must be 0, or 8 or more; received {s.evaluation}."
            )
        if s.steps > n.timesteps:
            raise SettingsError(
                f"--sampling.steps must be at most the {n.timesteps} timesteps; received {s.steps}."
            )
        if n.schedule != "cosine" and not 0 < n.beta_start <= n.beta_end < 1:
            raise SettingsError(
                "--noise.beta-start and --noise.beta-end must satisfy 0 < start <= end < 1; "
                f"received {n.beta_start} and {n.beta_end}."
            )
        check_seed_and_verbose(self)

    def _check_growth(self, facts):
        t = self.training
        _at_least(
            ("--gradient-steps", t.gradient_steps, 1),
            ("--start-step", t.start_step, 0),
            ("--stop-step", t.stop_step, -1),
        )
        if t.gradient_steps > t.update_every:
            raise SettingsError(
                "--gradient-steps must be at most --update-every, which is "
                f"{t.update_every}; received {t.gradient_steps}."
            )
        if -1 < t.stop_step < t.start_step:
            raise SettingsError(
                f"--stop-step must be -1, or --start-step ({t.start_step}) or more; received "
                f"{t.stop_step}."
            )
        if facts.prunes and (t.start_step, t.stop_step) != (0, -1):
            raise SettingsError(
                f"--start-step and --stop-step must be left out for --method {t.method}, which "
                f"prunes over the first three quarters of training; received {t.start_step} and "
                f"{t.stop_step}."
            )
        try:
            structure = parse_structure(t.structure)
        except ValueError as error:
            raise SettingsError(f"--structure {error}") from None
        if structure is not None and structure[0] == "NM":
            n, m = structure[1].values()
            wanted = 1 - n / m if m else 0.0
            if t.distribution != "uniform" or not math.isclose(t.sparsity, wanted):
                raise SettingsError(
                    f"--structure nm:{n}:{m} needs --distribution uniform and --sparsity "
                    f"{wanted:g}; received {t.structure}, {t.distribution} and {t.sparsity:g}."
                )


@dataclass(frozen=True)
class SketchRunSettings(RunSettings):
    """Train a sparse diffusion model of sketches and write a report."""

    model: _Flat[ChiroDiffSettings] = field(default_factory=lambda: get_preset("quickstart").model)
    data: _Flat[SketchSettings] = field(default_factory=lambda: get_preset("quickstart").data)

    def check(self):
        super().check()
        m, d = self.model, self.data
        check_sketch_settings(d, self.data_dir)
        _number("--time-scale", m.time_scale, 0, math.inf, closed_low=False)
        _at_least(
            ("--units", m.units, 1),
            ("--num-layers", m.num_layers, 1),
            ("--time-features", m.time_features, 2),
        )
        if m.time_features % 2:
            raise SettingsError(f"--time-features must be even; received {m.time_features}.")


@dataclass(frozen=True)
class ImageRunSettings(RunSettings):
    """Train a sparse latent diffusion model of images and write a report."""

    autoencoder: Path | None = None
    """Trained autoencoder: a .keras file of train-autoencoder or convert, or the published
    vq-f4 (.ckpt, .safetensors, diffusers folder). For kanjivg one is trained first where none is
    given, and kept in the cache folder."""
    model: _Flat[UNetSettings] = field(default_factory=lambda: get_preset("ldm_kanjivg").model)
    data: _Flat[ImageSettings] = field(default_factory=lambda: get_preset("ldm_kanjivg").data)
    first_stage: Annotated[AutoencoderSettings, tyro.conf.arg(name="first-stage")] = field(
        default_factory=lambda: get_preset("ldm_kanjivg").autoencoder
    )

    @staticmethod
    def _of_preset(preset):
        return RunSettings._of_preset(preset) | {"first_stage": preset.autoencoder}

    def to_preset(self):
        return dataclasses.replace(super().to_preset(), autoencoder=self.first_stage)

    def check(self):
        super().check()
        check_image_settings(self.data, self.data_dir)
        check_autoencoder_settings(self.first_stage, "--first-stage.")
        m = self.model
        _number("--dropout", m.dropout, 0, 1, closed_high=False)
        _at_least(
            ("--model-channels", m.model_channels, 1),
            ("--num-res-blocks", m.num_res_blocks, 1),
            ("--head-channels", m.head_channels, 1),
            ("--channel-mult", min(m.channel_mult, default=0), 1),
        )
        if self.autoencoder is None and not IMAGE_DATASETS[self.data.dataset].packaged:
            raise SettingsError(
                "--autoencoder must be given: a .keras file (sparse-dm train-autoencoder makes one "
                "from your images), or the published first stage, model.ckpt in "
                "https://ommer-lab.com/files/latent-diffusion/vq-f4.zip."
            )
        if self.autoencoder is not None and not self.autoencoder.exists():
            raise SettingsError(f"--autoencoder {self.autoencoder} does not exist.")
        file = self.autoencoder is not None and self.autoencoder.is_file()
        if file and self.autoencoder.suffix not in AUTOENCODER_SUFFIXES:
            raise SettingsError(
                f"--autoencoder must end in {', '.join(AUTOENCODER_SUFFIXES)} or be a diffusers "
                f"folder; received {self.autoencoder}."
            )


# Settings class of each kind in `kinds.KINDS`.
SETTINGS = {"sketches": SketchRunSettings, "images": ImageRunSettings}
