"""Which sparse kernels a runtime can also multiply with sparsely, rather than only store."""

from dataclasses import dataclass

import numpy as np
from keras import ops

from keras_sparse_dm._keras import flatten_layers
from keras_sparse_dm.masks.structures import Blocks
from keras_sparse_dm.sparsity.kernels import masked_kernels

STORED = "stored sparse, multiplied dense"
BY_BLOCKS = "multiplied by blocks of 4"
BY_XNNPACK = "multiplied sparse by XNNPACK, in networks of such layers"


@dataclass(frozen=True)
class SparseInference:
    """What becomes of one sparse kernel in a float32 `.tflite` file.

    Attributes:
        name, shape: Of the kernel.
        sparsity: Share of zeros in it.
        how: One of three sentences: single zeros are only `"stored sparse, multiplied dense"`;
            matrices with masks of `Blocks(4)` are `"multiplied by blocks of 4"`; 1x1 convolutions
            are `"multiplied sparse by XNNPACK, in networks of such layers"`.
    """

    name: str
    shape: tuple
    sparsity: float
    how: str


def sparse_inference_report(model):
    """Tells which sparse kernels of a model make inference faster, and which only files smaller.

    Of convolutions the toolkit's policy `PruneForLatencyOnXNNPack` decides. XNNPACK then wants
    the whole network to be of layers that the policy takes, from a first 3x3 convolution of
    stride 2 to the global average; the toolkit documents it as
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
    """Whether the toolkit would prune a layer for XNNPACK; it knows those of Keras 2 only."""
    kernel_size = getattr(layer, "kernel_size", ())
    if len(kernel_size) != 2 or getattr(layer, "groups", 1) != 1:
        return False
    import tf_keras
    from tensorflow_model_optimization.sparsity.keras import PruneForLatencyOnXNNPack

    twin = tf_keras.layers.Conv2D(
        layer.filters,
        kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
    )
    return bool(PruneForLatencyOnXNNPack().allow_pruning(twin))
