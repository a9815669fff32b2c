"""Units to keep: their least number, their copies in a smaller model, and their report."""

import numpy as np
from keras.ops import convert_to_numpy as to_numpy

from keras_sparse_dm.sparsity.kernels import masked_kernels


class KernelParts:
    """Copier of parts of a model's kernels and of their masks to a smaller model.

    Args:
        model: The `keras.Model` to copy from.
        smaller: The `keras.Model` to copy to.

    Call arguments:
        kernel, new: Kernel variables of the two models.
        inputs, outputs: Boolean arrays over the last two axes of `kernel`, True to keep.
    """

    def __init__(self, model, smaller):
        self._masks = {id(k.kernel): k.mask for m in (model, smaller) for k in masked_kernels(m)}

    def __call__(self, kernel, new, inputs, outputs):
        new.assign(to_numpy(kernel)[..., inputs, :][..., outputs])
        if id(new) in self._masks:
            mask = to_numpy(self._masks[id(kernel)])
            self._masks[id(new)].assign(mask[..., inputs, :][..., outputs])


def at_least(needed, number):
    """Return the needed units, and the first other ones to reach a least number of them."""
    keep = needed.copy()
    keep[np.flatnonzero(~needed)[: max(0, number - int(needed.sum()))]] = True
    return keep


def row(name, keep, live):
    """Return a layer's row of `DeadUnits.layers` from boolean arrays of its kept and live units."""
    return name, len(keep), int(keep.sum()), int(np.sum(~keep & ~live)), int(np.sum(~keep & live))
