"""What models cost, and how far what they generate is from real data."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "cost": ["Cost", "cost", "kernel_flops"],
        "frechet": ["frechet_distance"],
    },
)
