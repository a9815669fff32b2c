"""TFLite files: writing them, and running them on LiteRT."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "litert": ["TFLiteDenoiser", "generate_from_tflite", "read_tflite_metadata"],
        "tflite": ["TFLiteExport", "representative_data", "to_tflite"],
        "xnnpack": ["sparse_inference_report"],
    },
)
