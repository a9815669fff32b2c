"""Data sets of sketches, one source per file."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "digits": ["load_digits"],
        "kanjivg": ["kanjivg_folder", "load_kanjivg", "select_characters"],
        "quickdraw": ["load_quickdraw", "quickdraw_categories", "quickdraw_folder"],
        "own_files": ["load_sketches"],
        "preparation": ["prepare_source"],
        "source": ["SketchSource"],
        "tracing": ["trace"],
        "vmnist": ["load_vmnist"],
    },
)
