"""Distributions of a model's active weights over its kernels.

A distribution is a function `(shape) -> raw density`, up to one factor for all kernels. To add one,
write the function and add it to `DISTRIBUTIONS`.
"""

import numpy as np


def uniform(shape):
    """Equal density for every kernel."""
    return 1.0


def erdos_renyi(shape):
    """Erdos-Renyi density, from inputs and outputs (Mocanu et al. 2018; paper, equation 4)."""
    n_in, n_out = _matrix_shape(shape)
    return (n_in + n_out) / (n_in * n_out)


def erdos_renyi_kernel(shape):
    """Erdos-Renyi-kernel density, from all axes (Evci et al. 2021; paper, equation 5).

    Equals `erdos_renyi` for a matrix.
    """
    _matrix_shape(shape)
    return float(np.sum(shape) / np.prod(shape, dtype="float64"))


DISTRIBUTIONS = {"uniform": uniform, "er": erdos_renyi, "erk": erdos_renyi_kernel}


def densities(shapes, sparsity, distribution="erk"):
    """Return the density of each kernel for a given total sparsity.

    Scales the raw densities by one factor to reach the total, which is the sum of
    `floor(sparsity * size)` pruned weights over the kernels, as in the original RigL program. A
    kernel whose density would exceed 1 becomes dense, and the others are scaled again.

    Args:
        shapes: `{name: shape}` of the kernels, in Keras layout (the last two axes are inputs
            and outputs).
        sparsity: Share of pruned weights among all weights, in [0, 1).
        distribution: `"uniform"`, `"er"`, `"erk"`, or a function that takes a kernel's shape
            and returns its density up to one factor for all kernels.

    Returns:
        `{name: density}`, densities in (0, 1], in the order of `shapes`.

    Raises:
        ValueError: for a sparsity outside [0, 1), an unknown distribution, no shapes, or a
            shape that the distribution does not accept.

    Example:

    >>> densities({"a": (784, 300), "b": (300, 10)}, 0.9)
    {'a': 0.08852040816326531, 'b': 1.0}
    """
    sparsity = check_sparsity_value(sparsity)
    weigh = distribution if callable(distribution) else None
    if isinstance(distribution, str):
        weigh = DISTRIBUTIONS.get(distribution)
    if weigh is None:
        raise ValueError(
            f"`distribution` must be one of {', '.join(map(repr, DISTRIBUTIONS))}, or a function "
            f"of a kernel's shape; received {distribution!r}."
        )
    if not shapes:
        raise ValueError("`shapes` must name at least one kernel; received none.")
    sizes = np.array([np.prod(shape, dtype="float64") for shape in shapes.values()])
    if not np.all(sizes > 0):
        raise ValueError(f"`shapes` must have positive dimensions only; received {dict(shapes)}.")
    if weigh is uniform:
        # Exact, without the rounding of the total.
        return dict.fromkeys(shapes, 1.0 - sparsity)
    given = {name: weigh(tuple(shape)) for name, shape in shapes.items()}
    if not all(_is_positive(value) for value in given.values()):
        raise ValueError(
            f"`distribution` must give every kernel a positive number; {distribution!r} gave "
            f"{given}."
        )
    raw = np.array(list(given.values()), "float64")

    dense = np.zeros(len(sizes), bool)
    budget = np.sum(sizes - np.floor(sparsity * sizes))
    while not dense.all():
        factor = (budget - sizes[dense].sum()) / (raw * sizes)[~dense].sum()
        # Ignore rounding errors of a density of exactly 1.
        overfull = ~dense & (raw * factor > 1.0 + 1e-12)
        if not overfull.any():
            break
        dense |= overfull
    density = np.where(dense, 1.0, np.minimum(raw * factor, 1.0))
    return dict(zip(shapes, density.tolist(), strict=True))


def check_sparsity_value(sparsity):
    """Return `sparsity` as a float; raise a ValueError unless it is in [0, 1)."""
    try:
        value = float(sparsity)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0.0 <= value < 1.0:
        raise ValueError(f"`sparsity` must be a number in [0, 1); received {sparsity!r}.")
    return value


def _is_positive(value):
    try:
        return 0.0 < float(value) < float("inf")
    except (TypeError, ValueError):
        return False


def _matrix_shape(shape):
    if len(shape) < 2:
        raise ValueError(f"A kernel must have at least two axes; received shape {tuple(shape)}.")
    return shape[-2:]
