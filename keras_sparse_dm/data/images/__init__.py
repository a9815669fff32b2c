"""Images and their latents."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "images": [
            "ImageArrays",
            "eval_image_batches",
            "image_steps_per_epoch",
            "load_images",
            "train_image_batches",
        ],
        "latents": ["LatentArrays", "cache_latents", "load_latents"],
    },
)
