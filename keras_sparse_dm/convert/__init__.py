"""Conversion of original PyTorch checkpoints to this package's models, and back."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__, submod_attrs={"pytorch": ["load_pytorch", "save_pytorch"]}
)
