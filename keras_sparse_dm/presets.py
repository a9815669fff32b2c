"""Presets: the study's settings (paper, sections 3.3.2 and B.3) as frozen dataclasses.

Loads no Keras, so that the command line can list the presets at once.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from keras_sparse_dm.checks import one_of
from keras_sparse_dm.datasets import CHARACTERS, DIGITS, IMAGE_DATASETS, SKETCH_DATASETS
from keras_sparse_dm.diffusion.noise_schedule import KINDS as NOISE_SCHEDULES
from keras_sparse_dm.diffusion.noise_schedule import NoiseSchedule
from keras_sparse_dm.diffusion.registry import SAMPLERS
from keras_sparse_dm.masks.distributions import DISTRIBUTIONS
from keras_sparse_dm.sparsity.registry import METHODS


@dataclass(frozen=True)
class ChiroDiffSettings:
    """The denoiser."""

    kind: Literal["chirodiff"]
    """Denoiser of sketches."""
    units: int
    """Units of each GRU direction."""
    num_layers: int
    """Number of bidirectional GRUs."""
    time_features: int = 8
    """Width of the timestep's random Fourier features; even."""
    time_scale: float = 4.0
    """Standard deviation of the frequencies of the Fourier features."""


@dataclass(frozen=True)
class UNetSettings:
    """The denoiser."""

    kind: Literal["unet"] = "unet"
    """Denoiser of latents."""
    model_channels: int = 224
    """Channels at full resolution; a multiple of 32."""
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    """Factor on the channels at each resolution."""
    num_res_blocks: int = 2
    """Residual blocks at each resolution."""
    attention_factors: tuple[int, ...] = (2, 4, 8)
    """Downsampling factors with self-attention."""
    head_channels: int = 32
    """Channels of each attention head."""
    dropout: float = 0.0
    """Dropout rate in the residual blocks."""
    remat: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    scale_latents: bool = False
    """Divide latents by the standard deviation of the first batch."""


@dataclass(frozen=True)
class AutoencoderSettings:
    """The autoencoder between images and latents, and its own training."""

    channels: int = 128
    """Channels at full resolution; a multiple of the norm groups."""
    channel_mult: tuple[int, ...] = (1, 2, 4)
    """Factor on the channels at each resolution; each halves height and width."""
    num_res_blocks: int = 2
    """Residual blocks at each resolution."""
    codes: int = 8192
    """Codes in the code book."""
    code_channels: int = 3
    """Channels of a code."""
    norm_groups: int = 32
    """Groups of the group norms."""
    reconstruction: Literal["l1", "l2"] = "l1"
    """Loss of the reconstruction."""
    epochs: int = 100
    """Epochs to train the autoencoder for."""
    batch_size: int = 12
    """Images per training step of the autoencoder."""
    learning_rate: float = 5e-5
    """Highest learning rate of the autoencoder's Adam; it falls to zero as a cosine."""

    def arguments(self):
        """Return the arguments of `VQAutoencoder`, as a dictionary."""
        arguments = dataclasses.asdict(self) | {"latent_channels": self.code_channels}
        for name in ("epochs", "batch_size", "learning_rate"):
            del arguments[name]
        return arguments


@dataclass(frozen=True)
class NoiseSettings:
    """The forward process."""

    schedule: Literal[NOISE_SCHEDULES] = "linear"
    """Noise schedule."""
    timesteps: int = 1000
    """Number T of timesteps."""
    beta_start: float = 1e-4
    """Variance of the first timestep (linear and scaled_linear)."""
    beta_end: float = 2e-2
    """Variance of the last timestep (linear and scaled_linear)."""

    def to_schedule(self):
        """Return the `NoiseSchedule` of these settings."""
        betas = (None, None) if self.schedule == "cosine" else (self.beta_start, self.beta_end)
        return NoiseSchedule(self.schedule, self.timesteps, *betas)


@dataclass(frozen=True)
class SketchSettings:
    """The training data."""

    dataset: Literal[tuple(SKETCH_DATASETS)]
    """Data set; files are sketches of your own, of any known format."""
    characters: Literal[CHARACTERS] = "kanji"
    """KanjiVG's drawings; kanji is one of each."""
    categories: tuple[str, ...] = ("cat", "crab", "mosquito")
    """QuickDraw's categories, for one model of all; the paper trains a model for each."""
    recognized: bool = False
    """Only QuickDraw's drawings that the game recognized."""
    digits: Literal[DIGITS] = "test"
    """MNIST's digits; test has 10,000."""
    max_sketches: int = 0
    """Number of sketches to read, the first ones; for QuickDraw, per category. 0 for all."""
    max_strokes: int = 0
    """Number of strokes of a sketch to keep, the first ones; 0 for all."""
    simplify: float = 0.0
    """Largest distance of a simplified stroke from the original, for a sketch in the unit circle; 0
    for no simplification."""
    representation: Literal["absolute", "delta"] = "absolute"
    """Points as positions (absolute) or as differences (delta)."""
    spacing: float = 0.05
    """Distance between neighbouring points of a stroke, for a sketch in the unit circle."""
    scale: float = 10.0
    """Factor on the coordinates after resampling."""
    max_points: int = 300
    """Drop sketches with this many points or more."""
    jitter: float = 0.0
    """Standard deviation of smooth noise that bends training sketches, different in each epoch, in
    the unit of the coordinates (0.1 is a hundredth of the sketch's radius); 0 for none."""


@dataclass(frozen=True)
class ImageSettings:
    """The training data."""

    dataset: Literal[tuple(IMAGE_DATASETS)]
    """Data set; kanjivg is rendered, and folder is any folder of images."""
    image_size: int = 256
    """Height and width of the images in pixels."""
    characters: Literal[CHARACTERS] = "kanji"
    """KanjiVG's drawings; kanji is one of each."""
    training_images: int = 0
    """Images to train on; 0 for the paper's number."""
    validation_images: int = 0
    """Images to validate on; 0 for the paper's number."""
    cache_latents: bool = False
    """Encode all images once, before training, and keep the latents on disk."""


@dataclass(frozen=True)
class TrainingSettings:
    """Optimizer and sparse training."""

    epochs: int
    """Epochs to train for."""
    method: Literal[tuple(METHODS)] | str = "rigl"
    """Sparse training method, or package.module:Class of your own; gmp prunes from dense over the
    first three quarters of training."""
    sparsity: float = 0.5
    """Share of the weights in kernels that is pruned, in [0, 1)."""
    distribution: Literal[tuple(DISTRIBUTIONS)] = "erk"
    """Distribution of the sparsity over the kernels."""
    update_every: int = 800
    """Training steps between topology updates (exploration frequency)."""
    prune_rate: float = 0.05
    """Share of the active weights that an update exchanges, in (0, 1]."""
    prune_schedule: Literal["constant", "cosine"] = "constant"
    """Prune rate over time; cosine falls to zero at the end of training."""
    batch_size: int = 128
    """Examples per training step."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW; the highest one with cosine."""
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over time; cosine falls to zero at the end of training."""
    weight_decay: float = 1e-2
    """Decoupled weight decay of AdamW."""
    global_clipnorm: float = 0.1
    """Largest norm of the gradient, over all variables; 0 for no clipping."""
    ema_momentum: float = 0.9999
    """Momentum of the averaged weights that sampling uses; 0 for none. The average spans
    1 / (1 - momentum) steps; a shorter run averages over a tenth of its steps."""
    structure: str = "none"
    """Structure of the masks: none for single weights, blocks:4 for blocks of 4 inputs, nm:2:4 for
    2 active weights of every 4 inputs."""
    competition: Literal["kernel", "global"] = "kernel"
    """Competition for growth: kernel (each kernel keeps its density) or global (among all)."""
    grow_init: Literal["zeros", "normal"] = "zeros"
    """Initial value of grown weights; normal has the active weights' deviation."""
    gradient_steps: int = 1
    """Training steps over which rigl averages the gradient before an update."""
    start_step: int = 0
    """First training step that can update the topology."""
    stop_step: int = -1
    """Last training step that can update the topology; -1 for the whole run."""
    grow_warmup: bool = False
    """Count the bias correction of AdamW from each weight's growth, not from the first step."""


@dataclass(frozen=True)
class SamplingSettings:
    """Sampling."""

    sampler: Literal[tuple(SAMPLERS)] = "ddim"
    """Sampler."""
    steps: int = 50
    """Steps of ddim, from 1 to T."""
    eta: float = 0.0
    """Noise of ddim: 0 for none, 1 for as much as ddpm."""
    evaluation: int = 0
    """Number of samples to generate and evaluate at the end of training; 0 for no evaluation."""


@dataclass(frozen=True)
class Preset:
    """All settings of a run of the study."""

    name: str
    model: ChiroDiffSettings | UNetSettings
    data: SketchSettings | ImageSettings
    training: TrainingSettings
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    autoencoder: AutoencoderSettings | None = None

    def denoiser_arguments(self):
        """Return the arguments of the denoiser's class, as a dictionary."""
        arguments = dataclasses.asdict(self.model) | {"timesteps": self.noise.timesteps}
        if arguments.pop("kind") == "chirodiff":
            return arguments | {"representation": self.data.representation}
        del arguments["scale_latents"]
        channels = self.autoencoder.code_channels
        return arguments | {"in_channels": channels, "out_channels": channels}

    def to_dict(self):
        """Return the preset as nested dictionaries of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings):
        """Rebuild a preset from the dictionary that `to_dict` returned."""
        sketches = settings["model"]["kind"] == "chirodiff"
        model, data = (
            (ChiroDiffSettings, SketchSettings) if sketches else (UNetSettings, ImageSettings)
        )
        autoencoder = settings.get("autoencoder")
        return cls(
            name=settings["name"],
            model=from_plain(model, settings["model"]),
            data=from_plain(data, settings["data"]),
            training=TrainingSettings(**settings["training"]),
            noise=NoiseSettings(**settings["noise"]),
            sampling=SamplingSettings(**settings["sampling"]),
            autoencoder=autoencoder and from_plain(AutoencoderSettings, autoencoder),
        )


def from_plain(cls, values):
    """Return a dataclass of values from JSON, with tuples for lists."""
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _chirodiff(name, units, num_layers, dataset, **training):
    return Preset(
        name=name,
        model=ChiroDiffSettings("chirodiff", units, num_layers),
        data=SketchSettings(dataset),
        training=TrainingSettings(**({"epochs": 600} | training)),
        sampling=SamplingSettings(evaluation=1000),
    )


def _latent_diffusion(name, dataset, learning_rate):
    return Preset(
        name=name,
        model=UNetSettings(),
        data=ImageSettings(dataset),
        training=TrainingSettings(
            epochs=150,
            update_every=1100,
            batch_size=12,
            learning_rate=learning_rate,
            global_clipnorm=0.0,
        ),
        noise=NoiseSettings("scaled_linear", 1000, 0.0015, 0.0195),
        sampling=SamplingSettings(steps=100),
        autoencoder=AutoencoderSettings(),
    )


PRESETS = {
    preset.name: preset
    for preset in (
        # The KanjiVG network, trained for minutes on 2 processor cores. So few steps need a
        # falling learning rate, a shorter average and earlier updates.
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
        _latent_diffusion("ldm_celebahq", "celebahq", 2e-6),
        _latent_diffusion("ldm_lsun_bedrooms", "lsun_bedrooms", 2.4e-5),
        _latent_diffusion("ldm_imagenette", "imagenette", 2.4e-5),
        # Small enough to train in minutes on 2 processor cores, including the autoencoder.
        Preset(
            name="ldm_kanjivg",
            model=UNetSettings(
                model_channels=32,
                channel_mult=(2, 3),
                num_res_blocks=1,
                attention_factors=(2,),
                scale_latents=True,
            ),
            data=ImageSettings("kanjivg", image_size=64, cache_latents=True),
            training=TrainingSettings(
                epochs=8,
                update_every=100,
                batch_size=16,
                learning_rate=1e-3,
                learning_rate_schedule="cosine",
                global_clipnorm=1.0,
                ema_momentum=0.99,
            ),
            noise=NoiseSettings("scaled_linear", 1000, 0.0015, 0.0195),
            # The noise of eta = 1 corrects errors of a network that was trained for minutes only.
            sampling=SamplingSettings(steps=50, eta=1.0),
            autoencoder=AutoencoderSettings(
                channels=16,
                num_res_blocks=1,
                codes=512,
                norm_groups=8,
                reconstruction="l2",
                epochs=1,
                batch_size=16,
                learning_rate=2e-3,
            ),
        ),
    )
}


def get_preset(name):
    """Return the preset of that name.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.

    Example:

    >>> get_preset("chirodiff_vmnist").model.units
    48
    """
    one_of("`preset`", name, PRESETS)
    return PRESETS[name]
