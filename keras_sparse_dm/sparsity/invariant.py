"""Check of the invariant that sparse training keeps."""

import numpy as np
from keras import ops

from keras_sparse_dm.sparsity.install import innermost_sparse_optimizer
from keras_sparse_dm.sparsity.kernels import masked_kernels


def check_invariant(model, mask_ones=None):
    """Check that a model is exactly as sparse as its masks.

    Every pruned weight must be zero, and so must its optimizer moments and its averaged (EMA)
    copy. Each mask must have the number of ones that it was given.

    Args:
        model: A built `keras.Model` with sparse layers, compiled or not.
        mask_ones: `{kernel name: number of ones}` that the masks must have; by default the
            numbers that the model's `SparseOptimizer` remembers, if it has one.

    Raises:
        AssertionError: if the invariant is broken; names every kernel and problem.
        ValueError: if the model has no sparse kernel.
    """
    kernels = masked_kernels(model)
    if not kernels:
        raise ValueError(f"`model` {model.name!r} has no sparse kernel to check.")
    optimizer = innermost_sparse_optimizer(model)
    if mask_ones is None:
        mask_ones = optimizer.mask_ones(kernels) if optimizer is not None else {}
    problems = []
    for k in kernels:
        mask = ops.convert_to_numpy(k.mask)
        state = {"weight": k.kernel}
        if optimizer is not None:
            state |= {v.name: v for v in optimizer.state_of(k.kernel)}
        for name, variable in state.items():
            nonzero = int(np.count_nonzero(ops.convert_to_numpy(variable)[~mask]))
            if nonzero:
                problems.append(f"{k.name}: {nonzero} pruned entries of {name} are not zero")
        ones = int(mask.sum())
        if mask_ones.get(k.name, ones) != ones:
            problems.append(f"{k.name}: mask has {ones} ones instead of {mask_ones[k.name]}")
    if problems:
        raise AssertionError("The sparsity invariant is broken:\n" + "\n".join(problems))
