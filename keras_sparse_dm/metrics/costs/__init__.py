"""Parameters, FLOPs and memory of a model, dense and sparse."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "cost": ["cost"],
        "flops": ["kernel_flops"],
        "memory": ["FileBytes", "TrainingBytes"],
        "table": ["Cost", "LayerCost"],
    },
)
