"""FLOPs of a training iteration under each method (Evci et al. 2021, appendix H)."""

import numpy as np
from keras import ops


def training_flops(method, dense, sparse, asked, iterations, update_every, schedule):
    """Return `(formula, FLOPs)` of a training iteration with one example (Evci et al. 2021, H)."""
    if method != "dense" and method.dense_to_sparse:
        pruned = _mean_share_pruned(schedule, iterations)
        rule = "3 f_S at the sparsity of each step, mean over all steps"
        return rule, 3 * (dense - pruned * (dense - asked))
    return step_flops(method, dense, sparse, update_every)


def step_flops(method, dense, sparse, update_every=None):
    """FLOPs of a training iteration with one example at constant sparsity (Evci et al. 2021).

    Args:
        method: A `SparsityMethod` that is not dense-to-sparse, or `"dense"`.
        dense, sparse: FLOPs of a forward pass with all weights, and with the active weights.
        update_every: Steps between topology updates; needed if the method grows by the gradient.

    Returns:
        `(formula, FLOPs)`.
    """
    if method == "dense":
        return "3 f_D", 3 * dense
    if method.gradient == "momentum":
        return "2 f_S + f_D", 2 * sparse + dense
    if method.gradient == "step":
        rule = f"(3 f_S dT + 2 f_S + f_D) / (dT + 1) with dT = {update_every:,}"
        return rule, (3 * sparse * update_every + 2 * sparse + dense) / (update_every + 1)
    return "3 f_S", 3 * sparse


def _mean_share_pruned(schedule, iterations):
    """Return the mean sparsity over the iterations, relative to the final sparsity."""
    if not iterations:
        return 1.0
    final = getattr(schedule, "final_sparsity", None)
    final = getattr(schedule, "target_sparsity", final)
    due, sparsity = schedule(ops.arange(1, iterations + 1, dtype="int32"))
    sparsity = np.broadcast_to(ops.convert_to_numpy(sparsity), iterations)
    reached = np.maximum.accumulate(np.where(ops.convert_to_numpy(due), sparsity, 0.0))
    return float(np.mean(reached) / (final or max(reached[-1], 1e-12)))
