"""Parameters, FLOPs and memory of a model, dense and sparse."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "cost": ["Cost", "LayerCost", "cost", "kernel_flops"],
        "memory": ["FileBytes", "TrainingBytes"],
    },
)
