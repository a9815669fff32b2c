"""Export of models to small sparse files; most of them are readable without this package."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "sparse_file": ["load_sparse", "read_header", "save_sparse"],
        "dead_units": ["DeadUnits", "remove_dead_units"],
        "saved_model": ["read_metadata", "to_saved_model"],
        "sizes": ["file_sizes"],
        "tflite": [
            "TFLiteDenoiser",
            "TFLiteExport",
            "generate_from_tflite",
            "read_tflite_metadata",
            "representative_data",
            "sparse_inference_report",
            "to_tflite",
        ],
    },
)
