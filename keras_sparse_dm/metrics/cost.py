"""Parameters and FLOPs, counted as Evci et al. (2021) and the paper's tables do."""

import contextlib
from dataclasses import asdict, dataclass

import keras
import numpy as np
from keras import ops

from keras_sparse_dm.layers.masked import own_kernels
from keras_sparse_dm.sparsity.masking import masked_kernels
from keras_sparse_dm.sparsity.methods import get_method
from keras_sparse_dm.sparsity.report import sparsity_report


@dataclass(frozen=True)
class Cost:
    """What a model costs, dense and sparse. FLOPs count 2 per multiply-add, kernels only.

    Attributes:
        parameters: Trainable parameters, pruned ones included.
        active_parameters: Those that are not pruned.
        dense_flops, sparse_flops: One forward pass of one example.
        dense_sampling_flops, sparse_sampling_flops: Sampling one example.
        dense_training_flops, sparse_training_flops: Training, counted for one example per
            iteration as in the paper's tables.
    """

    parameters: int
    active_parameters: int
    dense_flops: float
    sparse_flops: float
    dense_sampling_flops: float
    sparse_sampling_flops: float
    dense_training_flops: float
    sparse_training_flops: float

    def to_dict(self):
        return asdict(self)


def cost(
    model,
    inputs,
    sampling_steps=1,
    iterations=0,
    method="static",
    update_every=None,
    schedule=None,
):
    """Counts what a model costs to run, to sample from and to train.

    Only sparse kernels are counted, as in the paper's tables: normalization, activations and
    biases are left out.

    Args:
        model: A built denoiser or other `keras.Model` made of sparse layers.
        inputs: One example input (batch size 1) of the size to count for.
        sampling_steps: Network evaluations per sample.
        iterations: Training iterations.
        method: Name of a method, a `SparsityMethod`, or `"dense"`. One that grows by the
            dense gradient is charged with it: at every update, or, as SNFS, at every step.
        update_every: Steps between topology updates; needed where these take the dense
            gradient, as RigL's.
        schedule: The `PruningSchedule` of a method that prunes while it trains, as `"gmp"`:
            each step costs what the sparsity of that step does.

    Returns:
        A `Cost`.

    Raises:
        ValueError: for an unknown method, a missing `update_every` or `schedule`, or a model
            without sparse kernels.
    """
    if method != "dense":
        method = get_method(method)
        if method.dense_to_sparse and schedule is None:
            raise ValueError(f"`schedule` must be given for method {method.name!r}.")
        if method.gradient == "step" and not update_every:
            raise ValueError(f"`update_every` must be given for method {method.name!r}.")
    report = sparsity_report(model)
    flops = kernel_flops(model, inputs)
    dense = sum(flops.values())
    sparse = asked = 0
    for k in report.kernels:
        per_weight = flops.get(k.name, 0) // k.size
        sparse += per_weight * k.active
        asked += per_weight * (k.active if k.asked is None else round(k.asked * k.size))
    if method == "dense":
        training = 3 * dense
    elif method.dense_to_sparse:
        pruned = _mean_share_pruned(schedule, iterations)
        training = 3 * (dense - pruned * (dense - asked))
    elif method.gradient == "momentum":
        training = 2 * sparse + dense
    elif method.gradient == "step":
        training = (3 * sparse * update_every + 2 * sparse + dense) / (update_every + 1)
    else:
        training = 3 * sparse
    return Cost(
        parameters=report.parameters,
        active_parameters=report.active_parameters,
        dense_flops=dense,
        sparse_flops=sparse,
        dense_sampling_flops=dense * sampling_steps,
        sparse_sampling_flops=sparse * sampling_steps,
        dense_training_flops=3 * dense * iterations,
        sparse_training_flops=training * iterations,
    )


def kernel_flops(model, inputs):
    """Counts the FLOPs of each sparse kernel in one forward pass, as if it were dense.

    Nothing is computed, and variables that hold no value yet get none: a network's cost is
    known from its shapes alone.

    Args:
        model: A built denoiser or other `keras.Model` made of sparse layers.
        inputs: One example input (batch size 1) of the size to count for.

    Returns:
        `{kernel name: FLOPs}`, 2 per multiply-add; a kernel that is not applied is left out.
    """
    names = {id(k.kernel): (k.name, k.size) for k in masked_kernels(model)}
    flops = {}
    with _recorded_calls(model) as calls:
        _trace(model, inputs)
    for kernel, times in calls:
        name, size = names[id(kernel)]
        flops[name] = flops.get(name, 0) + 2 * size * times
    return flops


def _trace(model, inputs):
    """Calls a model without computing anything, where the backend can."""
    if keras.backend.backend() != "tensorflow":
        model(inputs)
        return
    import tensorflow as tf

    def call():
        with keras.StatelessScope(initialize_variables=False):
            return model(inputs)

    tf.function(call).get_concrete_function()


def _mean_share_pruned(schedule, iterations):
    """Mean over the iterations of what is pruned, as a share of what is in the end."""
    if not iterations:
        return 1.0
    final = getattr(schedule, "final_sparsity", None)
    final = getattr(schedule, "target_sparsity", final)
    due, sparsity = schedule(ops.arange(1, iterations + 1, dtype="int32"))
    sparsity = np.broadcast_to(ops.convert_to_numpy(sparsity), iterations)
    reached = np.maximum.accumulate(np.where(ops.convert_to_numpy(due), sparsity, 0.0))
    return float(np.mean(reached) / (final or max(reached[-1], 1e-12)))


@contextlib.contextmanager
def _recorded_calls(model):
    """Context that records `(kernel, times)` for every call of a layer with sparse kernels."""
    calls = []
    layers = model._flatten_layers()
    # What calls a cell in a loop, or for it, is what knows how often.
    recurrent = [layer for layer in layers if isinstance(layer, keras.layers.RNN)]
    cells = {id(cell) for layer in recurrent for cell in layer.cell._flatten_layers()}
    applied = [layer for layer in layers if getattr(layer, "masks", None) and own_kernels(layer)]
    applied = [layer for layer in applied if id(layer) not in cells] + recurrent

    def kernels_of(layer, shape):
        if isinstance(layer, keras.layers.RNN):
            return [(k.kernel, shape[1]) for k in masked_kernels(layer.cell)]
        kernels = [kernel for kernel, _ in own_kernels(layer).values()]
        return zip(kernels, layer.kernel_applications(shape), strict=True)

    def record(layer):
        call = layer.call

        def recording_call(*args, **kwargs):
            # The first argument, whatever its name.
            inputs = (*args, *kwargs.values())[0]
            calls.extend(kernels_of(layer, tuple(ops.shape(inputs))))
            return call(*args, **kwargs)

        return recording_call

    for layer in applied:
        layer.call = record(layer)
    try:
        yield calls
    finally:
        for layer in applied:
            del layer.call
