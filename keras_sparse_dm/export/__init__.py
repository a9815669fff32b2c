"""Trained models as files for elsewhere: compact sparse ones and SavedModels."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "container": ["load_sparse", "read_header", "save_sparse"],
        "dead_units": ["DeadUnits", "remove_dead_units"],
        "saved_model": ["read_metadata", "to_saved_model"],
        "sizes": ["file_sizes"],
    },
)
