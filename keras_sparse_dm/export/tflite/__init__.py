"""TFLite files: how to write them, and run them on LiteRT."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "inference": ["TFLiteDenoiser", "generate_from_tflite", "read_tflite_metadata"],
        "representative": ["representative_data"],
        "sparse_inference": ["sparse_inference_report"],
        "write": ["TFLiteExport", "to_tflite"],
    },
)
