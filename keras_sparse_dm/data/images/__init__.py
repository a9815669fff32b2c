"""Images and their latents."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "arrays": ["ImageArrays"],
        "batches": ["eval_image_batches", "image_steps_per_epoch", "train_image_batches"],
        "latents": ["LatentArrays", "cache_latents", "load_latents"],
        "loading": ["load_images"],
    },
)
