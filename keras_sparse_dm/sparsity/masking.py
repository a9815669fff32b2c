"""Finding a model's sparse kernels, and making them sparse."""

import math
import warnings
from dataclasses import dataclass

import keras
from keras import ops

from keras_sparse_dm.seeds import seed_generator
from keras_sparse_dm.sparsity.distributions import check_sparsity_value, densities
from keras_sparse_dm.sparsity.topology import random_mask


@dataclass(frozen=True, eq=False)
class MaskedKernel:
    """One sparse kernel of a model: its name (the variable's path, made unique), and mask."""

    name: str
    kernel: keras.Variable
    mask: keras.Variable


def masked_kernels(model):
    """Lists the sparse kernels of a model, each once, in the order of its variables.

    Args:
        model: A `keras.Model` or `keras.Layer`.

    Returns:
        List of `MaskedKernel`.
    """
    found = {}
    for layer in model._flatten_layers():
        for kernel, mask in getattr(layer, "masks", ()):
            found.setdefault(id(kernel), MaskedKernel(kernel.path, kernel, mask))
    order = {id(variable): i for i, variable in enumerate(model.variables)}
    kernels, taken = [], set()
    for k in sorted(found.values(), key=lambda k: order[id(k.kernel)]):
        # Keras gives two layers of one name the same path.
        name, number = k.name, 0
        while name in taken:
            number += 1
            name = f"{k.name}_{number}"
        taken.add(name)
        kernels.append(MaskedKernel(name, k.kernel, k.mask))
    return kernels


def sparsify(model, sparsity, distribution="erk", seed=None, exclude=()):
    """Makes a model sparse: draws the masks and zeroes what they prune (paper, section 3.1).

    Each sparse kernel gets its density from the distribution, a mask with
    `round(density * size)` ones placed uniformly at random, and keeps its values at those
    places. On a model that is sparse already the masks are drawn anew, over the kernels as
    they are. Train it afterwards with the `DynamicSparsity` callback, which keeps pruned
    weights at zero.

    Args:
        model: A built `keras.Model` with sparse layers (`keras_sparse_dm.layers`).
        sparsity: Share of all weights in the sparse kernels that is pruned, in [0, 1).
        distribution: `"erk"`, `"er"` or `"uniform"`; see `densities`.
        seed: Integer for the draw of the masks; None for a random one.
        exclude: Sparse layers, or names of layers or kernels, that stay dense. What they
            would have given up, the others give up instead.

    Returns:
        The `SparsityReport` of the model.

    Raises:
        ValueError: for a sparsity outside [0, 1), an unknown distribution, a model that is
            not built or has no sparse kernel, an unknown name in `exclude`, or a sparsity
            that cannot be reached with what is excluded.
    """
    from keras_sparse_dm.sparsity.report import sparsity_report

    sparsity = check_sparsity_value(sparsity)
    if not model.built:
        raise ValueError(
            f"`model` must be built before it is made sparse; {model.name!r} is not. Call it on "
            "a batch, or give it an `Input`."
        )
    kernels = masked_kernels(model)
    if not kernels:
        raise ValueError(
            f"`model` {model.name!r} has no sparse layer: use the layers of "
            "`keras_sparse_dm.layers` (SparseDense, SparseGRU) in place of those of Keras."
        )
    excluded = _excluded(model, kernels, exclude)
    total = sum(_size(k.kernel) for k in kernels)
    free = total - sum(_size(k.kernel) for k in kernels if k.name in excluded)
    if excluded and sparsity and sparsity * total >= free:
        raise ValueError(
            f"`sparsity` of {sparsity} cannot be reached with {len(excluded)} kernels excluded: "
            f"the others hold {free / total:.4f} of the weights, and it must be below that."
        )
    shares = {}
    if free:
        shares = densities(
            {k.name: tuple(k.kernel.shape) for k in kernels if k.name not in excluded},
            sparsity * total / free,
            distribution,
        )
    empty = [k.name for k in kernels if not round(shares.get(k.name, 1.0) * _size(k.kernel))]
    if empty:
        warnings.warn(
            f"At sparsity {sparsity} with distribution {distribution!r} no weight is left in "
            f"{', '.join(empty)}, and none will grow there; exclude them, or use 'erk'.",
            stacklevel=2,
        )
    generator = seed_generator(seed, "masks")
    for k in kernels:
        k.mask.assign(random_mask(tuple(k.kernel.shape), shares.get(k.name, 1.0), generator))
        k.kernel.assign(ops.where(k.mask, k.kernel, ops.zeros_like(k.kernel)))
    optimizer = innermost_sparse_optimizer(model)
    if optimizer is not None:
        optimizer.attach(model, masks_changed=True)
    return sparsity_report(model)


def innermost_optimizer(model):
    """Returns the optimizer of a model that does the updates, below all that wrap it, or None."""
    optimizer = getattr(model, "optimizer", None)
    while getattr(optimizer, "inner_optimizer", None) is not None:
        optimizer = optimizer.inner_optimizer
    return optimizer


def innermost_sparse_optimizer(model):
    """Returns the model's `SparseOptimizer`, under loss scaling too, or None."""
    from keras_sparse_dm.sparsity.optimizer import SparseOptimizer

    optimizer = getattr(model, "optimizer", None)
    while optimizer is not None and not isinstance(optimizer, SparseOptimizer):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return optimizer


def _size(variable):
    return math.prod(variable.shape)


def _excluded(model, kernels, exclude):
    if isinstance(exclude, (str, keras.layers.Layer)):
        exclude = (exclude,)
    layers = list(model._flatten_layers())
    names = set()
    for item in exclude:
        matches = [layer for layer in layers if item is layer or item == layer.name]
        inside = {id(k.kernel) for layer in matches for k in masked_kernels(layer)}
        found = {k.name for k in kernels if item == k.name or id(k.kernel) in inside}
        if not found:
            raise ValueError(
                f"`exclude` must list sparse layers of the model, or names of its layers or "
                f"kernels; nothing matches {item!r}. Kernels: {', '.join(k.name for k in kernels)}."
            )
        names |= found
    return names
