"""Report of the sparse kernels that LiteRT multiplies sparsely rather than only stores."""

from dataclasses import dataclass

import numpy as np
from keras import ops

from keras_sparse_dm._keras import flatten_layers
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.masks.structures import Blocks
from keras_sparse_dm.sparsity.kernels import masked_kernels

tf_keras = lazy_module("tf_keras")
toolkit = lazy_module("tensorflow_model_optimization.sparsity.keras")

STORED = "stored sparse, multiplied dense"
BY_BLOCKS = "multiplied by blocks of 4"
BY_XNNPACK = "multiplied sparse by XNNPACK, in networks of such layers"


@dataclass(frozen=True)
class SparseInference:
    """Use of one sparse kernel in a float32 `.tflite` file.

    Attributes:
        name: Name of the kernel.
        shape: Shape of the kernel.
        sparsity: Share of zeros in the kernel.
        how: `"stored sparse, multiplied dense"` for single zeros; `"multiplied by blocks of 4"`
            for matrices with masks of `Blocks(4)`; `"multiplied sparse by XNNPACK, in networks of
            such layers"` for 1x1 convolutions.
    """

    name: str
    shape: tuple
    sparsity: float
    how: str


def sparse_inference_report(model):
    """Report which sparse kernels of a model make inference faster, and which only files smaller.

    The toolkit's policy `PruneForLatencyOnXNNPack` decides about convolutions. XNNPACK needs a
    whole network of layers that the policy accepts, from a first 3x3 convolution of stride 2 to
    the global average; see the toolkit's
    `PruneForLatencyOnXNNPack.ensure_model_supports_pruning`.

    Args:
        model: A Keras model with sparse kernels.

    Returns:
        List of `SparseInference`, one per sparse kernel.
    """
    owners = {}
    for layer in flatten_layers(model):
        for kernel, _ in getattr(layer, "masks", ()):
            owners.setdefault(id(kernel), layer)
    report = []
    for kernel in masked_kernels(model):
        values = ops.convert_to_numpy(kernel.kernel)
        target = kernel.target
        blocks = target is not None and target.structure == Blocks(4)
        how = STORED
        if values.ndim == 2 and blocks:
            how = BY_BLOCKS
        elif _policy_allows(owners[id(kernel.kernel)]):
            how = BY_XNNPACK
        share = float(np.mean(values == 0))
        report.append(SparseInference(kernel.name, values.shape, share, how))
    return report


def _policy_allows(layer):
    """Tell whether the toolkit would prune the Keras 2 twin of a layer for XNNPACK."""
    kernel_size = getattr(layer, "kernel_size", ())
    if len(kernel_size) != 2 or getattr(layer, "groups", 1) != 1:
        return False
    twin = tf_keras.layers.Conv2D(
        layer.filters,
        kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
    )
    return bool(toolkit.PruneForLatencyOnXNNPack().allow_pruning(twin))
