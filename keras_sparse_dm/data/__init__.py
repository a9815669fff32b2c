"""Sketches: reading, preparing, batching. Everything loads when first used."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=["batching", "kanjivg", "reading", "sketch"],
    submod_attrs={
        "batching": [
            "PreparationSummary",
            "SketchArrays",
            "eval_batches",
            "padding_waste",
            "sample_lengths",
            "steps_per_epoch",
            "train_batches",
        ],
        "kanjivg": ["kanjivg_folder", "load_kanjivg", "select_characters"],
        "reading": ["read_sketches", "read_svg"],
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
