"""Denoisers and their presets."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "autoencoder": ["VQAutoencoder"],
        "chirodiff": ["ChiroDiff"],
        "latent_diffusion": ["LatentDiffusion"],
        "presets": ["PRESETS", "Preset", "get_preset"],
        "unet": ["UNet"],
    },
)
