"""The mask that weights written from elsewhere belong to."""

from keras import ops

from keras_sparse_dm.masks.select import count

# Outweighs every mask entry of a unit, and sums of it stay exact in float32.
_NONZERO = 2.0**12


def followed_mask(mask, weights, structure, axis, asked=None, free=False):
    """Return the mask that fits weights which something other than sparse training has written.

    A pruned weight is zero, so weights say which mask they belong to, but for active weights that
    are exactly zero, such as those just grown. These are taken where the present mask has ones,
    then in row-major order, until the mask has as many ones as before.

    Args:
        mask: Boolean array, the present mask.
        weights: Float array of the same shape.
        structure: `Unstructured`, `Blocks` or `NM`, which the mask keeps.
        axis: The kernel's input axis, counted from the end.
        asked: Number of ones that a full mask was asked to have, or None; a full mask over
            weights with no more nonzeros than that is one that was never restored.
        free: True where the number of ones may change; the mask then has those of the nonzeros.

    Returns:
        Boolean array; the present mask where it fits; None where the weights have more nonzeros
        than the mask may have ones, or not in the mask's structure.
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
