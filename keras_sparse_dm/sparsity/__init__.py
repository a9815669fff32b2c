"""Who gets how many weights, which ones, when they change, and what to check.

Loads on first use: `distributions` needs only NumPy.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules={"schedules", "topology"},
    submod_attrs={
        "callback": ["DynamicSparsity", "sparse_optimizer"],
        "distributions": ["DISTRIBUTIONS", "densities"],
        "invariant": ["check_invariant"],
        "masking": ["masked_kernels", "sparsify"],
        "methods": ["GMP", "METHODS", "SET", "SNFS", "MagRan", "RigL", "SparsityMethod", "Static"],
        "optimizer": ["SparseOptimizer"],
        "report": ["SparsityReport", "sparsity_report"],
        "schedules": ["ConstantPruneRate", "CosinePruneRate"],
        "structures": ["NM", "Blocks"],
        "topology": ["prune_and_grow", "top_k_mask"],
    },
)
