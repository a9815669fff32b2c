"""Parameters, FLOPs and bytes, counted as Evci et al. (2021) and the paper's tables do."""

import math

import numpy as np
from keras import ops

from keras_sparse_dm._keras import has_value
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
    """Counts what a model costs to run, to sample from, to train and to store.

    Any built Keras model, sparse or dense, this project's or your own; all kernels are counted,
    pruned ones by their masks. Nothing is computed, and variables that hold no value yet get
    none: a large network can be made in `keras.StatelessScope(initialize_variables=False)` and
    costs no memory. Layers that multiply, or may, and cannot be counted are named in the
    result. Training counts all kernels as trained, a step as three passes: forward, and back to
    activations and to weights.

    Args:
        model: A built `keras.Model`.
        inputs: One example input (batch size 1) of the size to count for; of a larger batch,
            the cost of one example is counted. Or its shape, a tuple of integers with the
            batch axis first, or a tuple, list or dictionary of shapes: `((1, 64, 64, 3), (1,))`
            for the U-Net. A shape of the batch axis alone stands for integers, any other for
            floats, unless the model knows the types of its inputs.
        sampling_steps: Network evaluations per sample.
        iterations: Training iterations.
        method: Name of a method, a `SparsityMethod`, or `"dense"`. One that grows by the
            dense gradient is charged with it: at every update, or, as SNFS, at every step.
        update_every: Steps between topology updates; needed where these take the dense
            gradient, as RigL's.
        schedule: The `PruningSchedule` of a method that prunes while it trains, as `"gmp"`:
            each step costs what the sparsity of that step does.
        batch_size: Examples per training iteration, for the `..._batch_training_flops`.
        sparsity: In [0, 1): counts for the model as `sparsify(model, sparsity, distribution)`
            would make it, whatever its masks are. None to count by its masks.
        distribution: As in `sparsify`; used where `sparsity` is given.
        optimizer: The optimizer that trains the model, built or not, for the bytes held in
            training. None for the one that the model is compiled with, or, where it is not,
            AdamW with averaged weights.

    Returns:
        A `Cost`.

    Raises:
        ValueError: for a model that is not built or has no kernel, an unknown method, a missing
            `update_every` or `schedule`, numbers out of range, or shapes that are not known.

    Example:

    >>> print(cost(UNet.from_preset("ldm_celebahq"), ((1, 64, 64, 3), (1,)), sampling_steps=100))
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
        if int(value) != value or value < least:
            raise ValueError(f"`{name}` must be a whole number, {least} or more; received {value}.")
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
    # With nothing pruned, and nothing to be, training is plain training.
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
    """Returns `{kernel name: active weights}`, now and as `sparsify` has asked for."""
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
    """Number of weights that differ from zero; None where some have no value."""
    if not all(has_value(k.kernel) for k in kernels):
        return None
    return sum(_count_nonzero(k.kernel) for k in kernels)


def _count_nonzero(variable):
    return int(np.count_nonzero(ops.convert_to_numpy(variable)))


def _part(flops, active, size):
    """FLOPs of the active weights of a kernel, each of which is applied equally often."""
    return flops // size * active if flops % size == 0 else flops * active / size


def _layer_costs(kernels, forward, active):
    """Returns a tuple of `LayerCost`: layers with kernels in their order, then attention."""
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
