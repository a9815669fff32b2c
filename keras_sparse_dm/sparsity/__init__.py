"""Sparse models: making, training, reporting and checking them.

Loads on first use: `densities` needs only NumPy.
"""

import lazy_loader as _lazy

_own_attribute, _, _own_names = _lazy.attach(
    __name__,
    submod_attrs={
        "callback": ["DynamicSparsity"],
        "install": ["sparse_optimizer"],
        "invariant": ["check_invariant"],
        "kernels": ["masked_kernels"],
        "methods": ["GMP", "METHODS", "SET", "SNFS", "MagRan", "RigL", "SparsityMethod", "Static"],
        "optimizer": ["SparseOptimizer"],
        "options": ["SparsityOptions"],
        "report": ["SparsityReport", "sparsity_report"],
        "schedules": [
            "ConstantPruneRate",
            "ConstantSparsity",
            "CosinePruneRate",
            "PolynomialDecay",
            "UpdateSchedule",
        ],
        "sparsify": ["sparsify", "to_plain"],
    },
)
_of_masks, _, _names_of_masks = _lazy.attach(
    "keras_sparse_dm.masks",
    submod_attrs={
        "distributions": ["DISTRIBUTIONS", "densities"],
        "drop_grow": ["prune_and_grow"],
        "structures": ["NM", "Blocks"],
        "top_k": ["top_k_mask"],
    },
)
__all__ = sorted([*_own_names, *_names_of_masks])


def __getattr__(name):
    return (_of_masks if name in _names_of_masks else _own_attribute)(name)


def __dir__():
    return __all__
