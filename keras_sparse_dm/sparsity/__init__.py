"""Who gets how many weights, which ones, when they change, and what to check.

Loads on first use: `distributions` needs only NumPy.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules={"schedules", "topology"},
    submod_attrs={
        "callback": ["DynamicSparsity"],
        "distributions": ["DISTRIBUTIONS", "densities"],
        "invariant": ["check_invariant"],
        "masking": ["masked_kernels", "sparsify"],
        "methods": ["METHODS", "MagRan", "RigL", "Static", "SparsityMethod"],
        "optimizer": ["SparseOptimizer"],
        "report": ["SparsityReport", "sparsity_report"],
        "schedules": ["ConstantPruneRate", "CosinePruneRate"],
        "topology": ["prune_and_grow", "top_k_mask"],
    },
)
