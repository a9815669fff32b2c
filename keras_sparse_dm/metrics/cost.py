"""Parameters and FLOPs, counted as Evci et al. (2021) and the paper's tables do."""

import contextlib
from dataclasses import asdict, dataclass

from keras import ops

from keras_sparse_dm.sparsity.masking import masked_kernels
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


def cost(model, inputs, sampling_steps=1, iterations=0, method="static", update_every=None):
    """Counts what a model costs to run, to sample from and to train.

    Only sparse kernels are counted, as in the paper's tables: normalization, activations and
    biases are left out.

    Args:
        model: A built denoiser or other `keras.Model` made of sparse layers.
        inputs: One example input (batch size 1) of the size to count for.
        sampling_steps: Network evaluations per sample.
        iterations: Training iterations.
        method: `"static"`, `"magran"`, `"rigl"` or `"dense"`; RigL's dense gradient at every
            update is charged to it.
        update_every: Steps between RigL's updates; needed for `"rigl"`.

    Returns:
        A `Cost`.

    Raises:
        ValueError: for an unknown method, RigL without `update_every`, or a model without
            sparse kernels.
    """
    if method not in ("static", "magran", "rigl", "dense"):
        raise ValueError(
            f"`method` must be 'static', 'magran', 'rigl' or 'dense'; received {method!r}."
        )
    if method == "rigl" and not update_every:
        raise ValueError("`update_every` must be given for method 'rigl'.")
    report = sparsity_report(model)
    active = {k.name: (k.size, k.active) for k in report.kernels}
    names = {id(k.kernel): k.name for k in masked_kernels(model)}
    dense = sparse = 0
    with _recorded_calls(model) as calls:
        model(inputs)
    for layer, shape in calls:
        for (kernel, _), times in zip(layer.masks, layer.kernel_applications(shape), strict=True):
            size, ones = active[names[id(kernel)]]
            dense += 2 * size * times
            sparse += 2 * ones * times
    training = 3 * sparse
    if method == "rigl":
        training = (3 * sparse * update_every + 2 * sparse + dense) / (update_every + 1)
    elif method == "dense":
        training = 3 * dense
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


@contextlib.contextmanager
def _recorded_calls(model):
    """Context that records `(layer, input shape)` for every call of a sparse layer."""
    calls = []
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "masks", None)]

    def record(layer):
        call = layer.call

        def recording_call(inputs, *args, **kwargs):
            calls.append((layer, tuple(ops.shape(inputs))))
            return call(inputs, *args, **kwargs)

        return recording_call

    for layer in layers:
        layer.call = record(layer)
    try:
        yield calls
    finally:
        for layer in layers:
            del layer.call
