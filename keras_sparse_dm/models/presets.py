"""Presets: the study's settings (paper, sections 3.3.2 and B.3) as frozen dataclasses.

Nothing here needs Keras, so that the command line can list them at once.
"""

import dataclasses
import difflib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelSettings:
    """The denoiser."""

    kind: str
    """Denoiser: chirodiff."""
    units: int
    """Units of each GRU direction."""
    num_layers: int
    """Number of bidirectional GRUs."""
    time_features: int = 8
    """Width of the timestep's random Fourier features; even."""
    time_scale: float = 4.0
    """Standard deviation of their frequencies."""


@dataclass(frozen=True)
class NoiseSettings:
    """The forward process."""

    schedule: str = "linear"
    """Noise schedule: linear, scaled_linear or cosine."""
    timesteps: int = 1000
    """Number T of timesteps."""
    beta_start: float = 1e-4
    """Variance of the first timestep (linear and scaled_linear)."""
    beta_end: float = 2e-2
    """Variance of the last timestep (linear and scaled_linear)."""


@dataclass(frozen=True)
class DataSettings:
    """The training data."""

    dataset: str
    """Data set: kanjivg."""
    characters: str = "kanji"
    """KanjiVG's drawings: kanji (one of each), kanji+variants, or all."""
    representation: str = "absolute"
    """Points as positions (absolute) or as differences (delta)."""
    spacing: float = 0.05
    """Distance between neighbouring points of a stroke, for a sketch in the unit circle."""
    scale: float = 10.0
    """Factor on the coordinates after that."""
    max_points: int = 300
    """Sketches with this many points or more are dropped."""


@dataclass(frozen=True)
class TrainingSettings:
    """Optimizer and sparse training."""

    epochs: int
    """Epochs to train for."""
    method: str = "rigl"
    """Sparse training method: rigl, magran, set, snfs, static; gmp, which prunes from dense
    over the first three quarters of training; or dense."""
    sparsity: float = 0.5
    """Share of the weights in kernels that is pruned, in [0, 1)."""
    distribution: str = "erk"
    """How that share is spread over the kernels: erk, er or uniform."""
    update_every: int = 800
    """Training steps between topology updates (exploration frequency)."""
    prune_rate: float = 0.05
    """Share of the active weights that an update exchanges, in (0, 1]."""
    prune_schedule: str = "constant"
    """Prune rate over time: constant, or cosine (falls to zero at the end of training)."""
    batch_size: int = 128
    """Examples per training step."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW; the highest one with cosine."""
    learning_rate_schedule: str = "constant"
    """Learning rate over time: constant or cosine (falls to zero at the end of training)."""
    weight_decay: float = 1e-2
    """Decoupled weight decay of AdamW."""
    global_clipnorm: float = 0.1
    """Largest norm of the gradient, over all variables; 0 for no clipping."""
    ema_momentum: float = 0.9999
    """Momentum of the averaged weights that sampling uses; 0 for none."""


@dataclass(frozen=True)
class SamplingSettings:
    """Sampling."""

    sampler: str = "ddim"
    """Sampler: ddim or ddpm."""
    steps: int = 50
    """Steps of ddim, from 1 to T."""
    eta: float = 0.0
    """Noise of ddim: 0 for none, 1 for as much as ddpm."""


@dataclass(frozen=True)
class Preset:
    """Everything that a run of the study is described by."""

    name: str
    model: ModelSettings
    data: DataSettings
    training: TrainingSettings
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def denoiser_arguments(self):
        """Arguments of the denoiser's class, as a dictionary."""
        arguments = dataclasses.asdict(self.model)
        del arguments["kind"]
        return arguments | {
            "representation": self.data.representation,
            "timesteps": self.noise.timesteps,
        }

    def to_dict(self):
        """The preset as nested dictionaries of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings):
        """Rebuilds a preset from `to_dict`."""
        return cls(
            name=settings["name"],
            model=ModelSettings(**settings["model"]),
            data=DataSettings(**settings["data"]),
            training=TrainingSettings(**settings["training"]),
            noise=NoiseSettings(**settings["noise"]),
            sampling=SamplingSettings(**settings["sampling"]),
        )


def _chirodiff(name, units, num_layers, dataset, **training):
    return Preset(
        name=name,
        model=ModelSettings("chirodiff", units, num_layers),
        data=DataSettings(dataset),
        training=TrainingSettings(**({"epochs": 600} | training)),
    )


PRESETS = {
    preset.name: preset
    for preset in (
        # The KanjiVG network at a length of training that 2 processor cores do in minutes:
        # so few steps want a falling learning rate, a shorter average and earlier updates.
        _chirodiff(
            "quickstart",
            96,
            3,
            "kanjivg",
            epochs=14,
            update_every=100,
            batch_size=64,
            learning_rate=8e-3,
            learning_rate_schedule="cosine",
            ema_momentum=0.99,
        ),
        _chirodiff("chirodiff_kanjivg", 96, 3, "kanjivg"),
        _chirodiff("chirodiff_quickdraw", 128, 3, "quickdraw"),
        _chirodiff("chirodiff_vmnist", 48, 2, "vmnist"),
    )
}


def get_preset(name):
    """Returns the preset of that name.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(str(name), PRESETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}; received {name!r}.{hint}")
    return PRESETS[name]
