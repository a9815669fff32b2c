"""Masks of weights that something other than sparse training has written."""

from keras import ops

from keras_sparse_dm.masks.select import count

# Larger than the sum of a unit's mask entries; sums of it stay exact in float32.
_NONZERO = 2.0**12


def followed_mask(mask, weights, structure, axis, asked=None, free=False):
    """Return the mask that belongs to weights written by something other than sparse training.

    Pruned weights are zero, so nonzero weights show their mask. Active weights may also be exactly
    zero, for example after growth. The missing ones are taken first where the present mask has
    ones, then in row-major order, until the mask has as many ones as before.

    Args:
        mask: Boolean array, the present mask.
        weights: Float array of the same shape.
        structure: `Unstructured`, `Blocks` or `NM`; the new mask has this structure.
        axis: The kernel's input axis, counted from the end.
        asked: Number of ones that `sparsify` was asked for, or None. A full mask over weights
            with at most that many nonzeros counts as a mask that was never restored.
        free: True if the number of ones may change; the nonzero weights then make the mask.

    Returns:
        Boolean array, the present mask if it fits. None if the weights have more nonzeros than
        the mask may have ones, or if they break the structure.
    """
    nonzero = weights != 0
    nonzeros, ones = int(count(nonzero)), int(count(mask))
    size = int(ops.size(mask))
    never_restored = ones == size and asked is not None and 0 < nonzeros <= asked < size
    if never_restored:
        ones = asked
    elif not bool(ops.any(ops.logical_and(nonzero, ops.logical_not(mask)))):
        return mask
    if free:
        units = structure.to_units(nonzero, axis, ops.any)
        return structure.to_weights(units, tuple(mask.shape), axis)
    score = _NONZERO * ops.cast(nonzero, "float32") + ops.cast(mask, "float32")
    found = structure.mask_of_largest(score, axis, ones)
    if bool(ops.any(ops.logical_and(nonzero, ops.logical_not(found)))):
        return None
    return found
