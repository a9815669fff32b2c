"""Sketches, images, latents: reading, preparing, batching. Everything loads when first used."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=[
        "batching",
        "images",
        "kanjivg",
        "latents",
        "preparation",
        "reading",
        "rendering",
        "sketch",
    ],
    submod_attrs={
        "batching": [
            "SketchArrays",
            "eval_batches",
            "padding_waste",
            "sample_lengths",
            "steps_per_epoch",
            "train_batches",
        ],
        "images": [
            "ImageArrays",
            "eval_image_batches",
            "image_steps_per_epoch",
            "load_images",
            "train_image_batches",
        ],
        "kanjivg": ["kanjivg_folder", "load_kanjivg", "select_characters"],
        "latents": ["LatentArrays", "cache_latents", "load_latents"],
        "preparation": ["PreparationSummary"],
        "reading": ["read_sketches", "read_svg"],
        "rendering": ["render"],
        "sketch": [
            "Sketch",
            "drop_short_strokes",
            "from_absolute",
            "from_delta",
            "from_points",
            "move_to_origin",
            "normalize_time",
            "prepare",
            "resample",
            "scale_to_circle",
            "to_absolute",
            "to_delta",
            "to_points",
        ],
    },
)
