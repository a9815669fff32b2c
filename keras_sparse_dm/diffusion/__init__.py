"""Noise schedules, samplers, and the model that trains a denoiser."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "model": ["DiffusionModel"],
        "noise_schedule": ["NoiseSchedule"],
        "samplers": ["ddim", "ddim_factors", "ddim_timesteps", "ddpm"],
    },
)
