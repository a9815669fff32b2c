"""Denoisers, the autoencoder of latent diffusion, and their presets."""

import lazy_loader as _lazy

_own_attribute, _, _own_names = _lazy.attach(
    __name__,
    submod_attrs={
        "autoencoder": ["VQAutoencoder"],
        "chirodiff": ["ChiroDiff"],
        "latent_diffusion": ["LatentDiffusion"],
        "unet": ["UNet"],
    },
)
_of_presets, _, _names_of_presets = _lazy.attach(
    "keras_sparse_dm", submod_attrs={"presets": ["PRESETS", "Preset", "get_preset"]}
)
__all__ = sorted([*_own_names, *_names_of_presets])


def __getattr__(name):
    return (_of_presets if name in _names_of_presets else _own_attribute)(name)


def __dir__():
    return __all__
