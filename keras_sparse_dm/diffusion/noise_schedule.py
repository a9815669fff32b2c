"""Noise schedules: the variance of the noise that each timestep adds."""

import math
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from keras_sparse_dm.checks import one_of, whole_number

KINDS = ("linear", "scaled_linear", "cosine")


@dataclass(frozen=True)
class NoiseSchedule:
    """Variances of the forward process (Ho et al. 2020), as float64 arrays.

    Make one with `linear`, `scaled_linear` or `cosine`.

    Attributes:
        kind: `"linear"`, `"scaled_linear"` or `"cosine"`.
        timesteps: Number T of timesteps; they count from 0 to T - 1.
        beta_start: First variance, in (0, 1); None for cosine.
        beta_end: Last variance, in [beta_start, 1); None for cosine.

    Example:

    >>> schedule = NoiseSchedule.linear(1000)
    >>> schedule.betas.shape, float(schedule.betas[-1])
    ((1000,), 0.02)
    """

    kind: str
    timesteps: int
    beta_start: float | None = None
    beta_end: float | None = None

    def __post_init__(self):
        one_of("`kind`", self.kind, KINDS)
        object.__setattr__(self, "timesteps", whole_number("`timesteps`", self.timesteps, 1))
        betas = (self.beta_start, self.beta_end)
        if self.kind != "cosine" and not (
            None not in betas and 0.0 < self.beta_start <= self.beta_end < 1.0
        ):
            raise ValueError(
                "`beta_start` and `beta_end` must satisfy 0 < beta_start <= beta_end < 1; "
                f"received {self.beta_start} and {self.beta_end}."
            )

    @classmethod
    def linear(cls, T, beta_start=1e-4, beta_end=2e-2):
        """Return variances that are linear in the timestep (Ho et al. 2020; ChiroDiff)."""
        return cls("linear", T, beta_start, beta_end)

    @classmethod
    def scaled_linear(cls, T, beta_start=0.0015, beta_end=0.0195):
        """Return variances whose square roots are linear in the timestep.

        Latent diffusion calls this schedule "linear".
        """
        return cls("scaled_linear", T, beta_start, beta_end)

    @classmethod
    def cosine(cls, T):
        """Return a squared cosine of cumulative alphas (Nichol and Dhariwal 2021, equation 17)."""
        return cls("cosine", T)

    @cached_property
    def betas(self):
        """Variance that each timestep adds: float64 array (T,)."""
        if self.kind == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.timesteps)
        if self.kind == "scaled_linear":
            return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.timesteps) ** 2
        offset = 0.008
        time = (np.arange(self.timesteps + 1) / self.timesteps + offset) / (1 + offset)
        cumulative = np.cos(time * math.pi / 2) ** 2
        return np.minimum(1.0 - cumulative[1:] / cumulative[:-1], 0.999)

    @cached_property
    def alphas_cumprod(self):
        """Share of the signal's variance that is left at each timestep: float64 array (T,)."""
        return np.cumprod(1.0 - self.betas)

    def get_config(self):
        return asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def check_timesteps(t, timesteps):
    """Check timesteps, unless a graph is being traced and their values are unknown.

    Args:
        t: Tensor or NumPy array of integers (batch_size,).
        timesteps: Number T of timesteps.

    Raises:
        ValueError: for timesteps outside 0..T - 1.
    """
    if isinstance(t, np.ndarray) or hasattr(t, "numpy"):
        values = np.asarray(t)
        outside = values[(values < 0) | (values >= timesteps)]
        if outside.size:
            raise ValueError(
                f"Timesteps `t` must be from 0 to {timesteps - 1}; received {outside.tolist()}."
            )
