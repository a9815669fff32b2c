"""Cost of a cell at the paper's setting, independent of the scale that it was run at."""

import dataclasses
import functools
import math
from dataclasses import dataclass

import keras

from keras_sparse_dm.masks.distributions import densities
from keras_sparse_dm.metrics.costs.flops import forward_flops
from keras_sparse_dm.metrics.costs.kernels import counted_kernels
from keras_sparse_dm.metrics.costs.training_flops import step_flops
from keras_sparse_dm.models import ChiroDiff, UNet
from keras_sparse_dm.presets import get_preset
from keras_sparse_dm.sparsity.methods import get_method
from keras_sparse_dm.study.paper import PAPER_SETTINGS


@dataclass(frozen=True)
class CostAtPaperSetting:
    """Cost with the paper's network, iterations, sampling steps and sketch lengths.

    Attributes:
        parameters: Number of trainable parameters of the dense network.
        weights_left: Share of the kernels' weights that is not pruned.
        training, sampling: FLOPs of training (one example per iteration) and of sampling one
            example. Training is None for a method that starts dense.
        training_share, sampling_share: The same FLOPs, relative to the dense network.
    """

    parameters: int
    weights_left: float
    training: float | None
    sampling: float
    training_share: float | None
    sampling_share: float


def cost_at_paper_setting(preset, method, sparsity, distribution="erk"):
    """Count the cost as the paper's Tables 1 and 2 do, without creating the network's weights.

    Args:
        preset: Name of one of the paper's presets, a key of `PAPER_SETTINGS`.
        method: Name of a method, or `"dense"`.
        sparsity: S, in [0, 1).
        distribution: Name of its distribution over the kernels.

    Returns:
        A `CostAtPaperSetting`.
    """
    setting = PAPER_SETTINGS[preset]
    settings = get_preset(preset)
    arguments = tuple(sorted(settings.denoiser_arguments().items()))
    parameters, kernels = _network(settings.model.kind, arguments, setting.size)
    # ChiroDiff applies every kernel once per point, and the kernels are counted for one point.
    times = setting.points or 1
    dense = times * sum(flops for _, flops in kernels.values())
    shapes = {name: shape for name, (shape, _) in kernels.items()}
    size = sum(map(math.prod, shapes.values()))
    left, sparse = size, dense
    if method != "dense":
        density = densities(shapes, sparsity, distribution)
        # The number of ones in a mask.
        ones = {name: round(density[name] * math.prod(shape)) for name, shape in shapes.items()}
        left = sum(ones.values())
        sparse = times * sum(
            flops * ones[name] / math.prod(shape) for name, (shape, flops) in kernels.items()
        )
    iterations = setting.iterations or setting.stated_iterations
    training = None
    kind = "dense" if method == "dense" else get_method(method)
    if kind == "dense" or not kind.dense_to_sparse:
        _, step = step_flops(kind, dense, sparse, setting.update_every)
        training = step * iterations
    return CostAtPaperSetting(
        parameters=parameters,
        weights_left=left / size,
        training=training,
        sampling=sparse * setting.sampling_steps,
        training_share=None if training is None else training / (3 * dense * iterations),
        sampling_share=sparse / dense,
    )


@functools.cache
def _network(kind, arguments, size):
    """Return `(parameters, {kernel: (shape, FLOPs)})` for one latent, or one point of a sketch."""
    # The U-Net's weights would take a gigabyte.
    with keras.StatelessScope(initialize_variables=False):
        model = (UNet if kind == "unet" else ChiroDiff)(**dict(arguments))
    inputs = ((1, size, size, 3), (1,)) if kind == "unet" else ((1, 1, 3), (1,), (1,))
    flops = forward_flops(model, inputs).kernels
    kernels = {
        k.name: (k.axes.as_matrix(tuple(k.kernel.shape)), flops[k.name])
        for k in counted_kernels(model)
    }
    return sum(math.prod(v.shape) for v in model.trainable_variables), kernels


def printed_as_in_paper(value, column, relative):
    """Return a number as Tables 1 and 2 print it: `"274.1M"`, `"9.00e16"`, `"0.68×"`.

    Args:
        value: A number, or None.
        column: `"parameters"`, `"training"` or `"sampling"`.
        relative: True if the number is relative to the dense network.
    """
    if value is None:
        return "–"
    if relative:
        return f"{value:.2f}×"
    if column == "parameters":
        return f"{value / 1e6:.1f}M" if value >= 1e8 else f"{value}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def columns_as_in_paper(cost, relative):
    """Return the three cost columns of Tables 1 and 2 as `{column: text}`."""
    values = dataclasses.asdict(cost)
    names = {
        "parameters": ("parameters", "weights_left"),
        "training": ("training", "training_share"),
        "sampling": ("sampling", "sampling_share"),
    }
    return {
        column: printed_as_in_paper(values[pair[relative]], column, relative)
        for column, pair in names.items()
    }
