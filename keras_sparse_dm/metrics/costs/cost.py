"""Parameters, FLOPs and bytes, counted as Evci et al. (2021) and the paper's tables do."""

import math

import numpy as np
from keras import ops

from keras_sparse_dm._keras import has_value
from keras_sparse_dm.checks import whole_number
from keras_sparse_dm.masks.distributions import densities
from keras_sparse_dm.metrics.costs.attention import AttentionFlops
from keras_sparse_dm.metrics.costs.flops import forward_flops
from keras_sparse_dm.metrics.costs.kernels import counted_kernels
from keras_sparse_dm.metrics.costs.memory import file_bytes, training_bytes
from keras_sparse_dm.metrics.costs.table import Cost, LayerCost
from keras_sparse_dm.metrics.costs.training_flops import training_flops
from keras_sparse_dm.sparsity.methods import get_method


def cost(
    model,
    inputs,
    sampling_steps=1,
    iterations=0,
    method="static",
    update_every=None,
    schedule=None,
    batch_size=None,
    sparsity=None,
    distribution="erk",
    optimizer=None,
):
    """Count what a model costs to run, to sample from, to train and to store.

    Takes any built Keras model, sparse or dense, and counts all its kernels, pruned ones by their
    masks. Follows shapes only: computes nothing and does not initialize variables, so a large
    network made in `keras.StatelessScope(initialize_variables=False)` needs no memory. The result
    names the layers whose products cannot be counted. A training step counts as three passes over
    all kernels: forward, and backward to activations and to weights.

    Args:
        model: A built `keras.Model`.
        inputs: Example input of batch size 1 (for a larger batch, the cost of one example is
            returned). Or its shape, a tuple of integers with the batch axis first, or a tuple,
            list or dictionary of shapes, such as `((1, 64, 64, 3), (1,))` for the U-Net. A shape
            with the batch axis only means integers and any other shape means floats, unless the
            model declares the types of its inputs.
        sampling_steps: Network evaluations per sample, 1 or more.
        iterations: Training iterations, 0 or more.
        method: Name of a method, a `SparsityMethod`, or `"dense"`. A method that grows by the
            dense gradient also pays for it: at every update, or at every step (SNFS).
        update_every: Steps between topology updates; needed if the updates use the dense
            gradient, as RigL's do.
        schedule: The `UpdateSchedule` of a method that prunes while it trains, such as `"gmp"`;
            each step counts at its own sparsity.
        batch_size: Examples per training iteration, for the `..._batch_training_flops`.
        sparsity: Sparsity in [0, 1) to count the model at, as `sparsify(model, sparsity,
            distribution)` would make it. None counts by the model's masks.
        distribution: As in `sparsify`; used with `sparsity`.
        optimizer: Optimizer that trains the model, built or not, for the bytes held in training.
            None for the optimizer that the model was compiled with, or AdamW with averaged
            weights if it was not compiled.

    Returns:
        `Cost`.

    Raises:
        ValueError: for a model that is not built or has no kernel, an unknown method, a missing
            `update_every` or `schedule`, numbers out of range, or unknown shapes.

    Example:

    >>> chirodiff = ChiroDiff.from_preset("chirodiff_vmnist")
    >>> print(cost(chirodiff, ((1, 64, 3), (1,), (1,)), sampling_steps=50))
    """
    if method != "dense":
        method = get_method(method)
        if method.dense_to_sparse and schedule is None:
            raise ValueError(f"`schedule` must be given for method {method.name!r}.")
        if method.gradient == "step" and not update_every:
            raise ValueError(f"`update_every` must be given for method {method.name!r}.")
    for name, value, least in (
        ("sampling_steps", sampling_steps, 1),
        ("iterations", iterations, 0),
        ("batch_size", 1 if batch_size is None else batch_size, 1),
    ):
        whole_number(f"`{name}`", value, least)
    forward = forward_flops(model, inputs)
    kernels = counted_kernels(model)
    if not kernels:
        raise ValueError(
            f"`model` {model.name!r} has no kernel of a dense, convolution, recurrent or attention "
            "layer to count."
        )
    active, asked = _active_weights(kernels, sparsity, distribution)
    dense = sum(forward.kernels.values())
    sparse, in_the_end = (
        sum(_part(forward.kernels[k.name], ones[k.name], k.size) for k in kernels)
        for ones in (active, asked)
    )
    rule, training = training_flops(
        method, dense, sparse, in_the_end, iterations, update_every, schedule
    )
    parameters = sum(math.prod(v.shape) for v in model.trainable_variables)
    pruned = sum(k.size - active[k.name] for k in kernels if k.kernel.trainable)
    batch_training = [None, None]
    if batch_size is not None:
        batch_training = [3 * dense * iterations * batch_size, training * iterations * batch_size]
    to_be_sparse = [k.kernel for k in kernels if k.mask is not None or active[k.name] < k.size]
    # If nothing is pruned, now or later, training is dense.
    plain = method == "dense" or (pruned == 0 and not method.dense_to_sparse)
    return Cost(
        parameters=parameters,
        active_parameters=parameters - pruned,
        dense_flops=dense,
        sparse_flops=sparse,
        dense_sampling_flops=dense * sampling_steps,
        sparse_sampling_flops=sparse * sampling_steps,
        dense_training_flops=3 * dense * iterations,
        sparse_training_flops=training * iterations,
        training_rule=rule,
        batch_size=batch_size,
        dense_batch_training_flops=batch_training[0],
        sparse_batch_training_flops=batch_training[1],
        kernel_parameters=sum(k.size for k in kernels),
        active_kernel_parameters=sum(active.values()),
        nonzero_kernel_parameters=None if sparsity is not None else _nonzeros(kernels),
        attention_flops=sum(f.scores + f.values for _, f in forward.attention),
        file_bytes=file_bytes(model, [(k.kernel, active[k.name]) for k in kernels]),
        training_bytes=training_bytes(model, to_be_sparse, None if plain else method, optimizer),
        layers=_layer_costs(kernels, forward, active),
        not_counted=forward.not_counted,
    )


def _active_weights(kernels, sparsity, distribution):
    """Return `{kernel name: active weights}` twice: now, and as `sparsify` was asked."""
    if sparsity is not None:
        shapes = {
            k.name: k.axes.as_matrix(tuple(k.kernel.shape)) for k in kernels if k.kernel.trainable
        }
        density = densities(shapes, sparsity, distribution)
        active = {k.name: round(density.get(k.name, 1.0) * k.size) for k in kernels}
        return active, active
    active = {
        k.name: k.size if k.mask is None or not has_value(k.mask) else _count_nonzero(k.mask)
        for k in kernels
    }
    asked = {
        k.name: active[k.name] if k.asked is None else round(k.asked * k.size) for k in kernels
    }
    return active, asked


def _nonzeros(kernels):
    """Return the number of nonzero weights, or None if some weights have no value yet."""
    if not all(has_value(k.kernel) for k in kernels):
        return None
    return sum(_count_nonzero(k.kernel) for k in kernels)


def _count_nonzero(variable):
    return int(np.count_nonzero(ops.convert_to_numpy(variable)))


def _part(flops, active, size):
    """Return the FLOPs of a kernel's active weights; each weight is applied equally often."""
    return flops // size * active if flops % size == 0 else flops * active / size


def _layer_costs(kernels, forward, active):
    """Return a tuple of `LayerCost`: layers with kernels in order, then attention layers."""
    rows = {}
    for k in kernels:
        name = k.name.rpartition("/")[0] or k.layer.name
        rows.setdefault(id(k.layer), (name, k.layer, [], AttentionFlops()))[2].append(k)
    for layer, products in forward.attention:
        if not products.scores and not products.values:
            continue
        name, _, own, _ = rows.get(id(layer), (layer.path or layer.name, layer, [], None))
        rows[id(layer)] = (name, layer, own, products)
    return tuple(
        LayerCost(
            name=name,
            kind=type(layer).__name__,
            size=sum(k.size for k in own),
            active=sum(active[k.name] for k in own),
            dense_flops=sum(forward.kernels[k.name] for k in own),
            sparse_flops=sum(_part(forward.kernels[k.name], active[k.name], k.size) for k in own),
            score_flops=products.scores,
            value_flops=products.values,
        )
        for name, layer, own, products in rows.values()
    )
