"""FLOPs of products of activations in attention layers."""

import math
from dataclasses import dataclass

import keras

from keras_sparse_dm.models import autoencoder_layers, unet


@dataclass(frozen=True)
class AttentionFlops:
    """Products of activations with each other in one attention layer, 2 FLOPs per multiply-add.

    Attributes:
        scores: FLOPs of queries times keys.
        values: FLOPs of scores times values.
    """

    scores: float = 0
    values: float = 0


def attention_rules():
    """List `(layer class, rule)` of the attention layers that can be counted.

    A rule takes the layer and a dictionary of the arguments of its call. It returns the
    multiply-adds of the scores and of the values, summed over all examples.
    """
    return [
        (keras.layers.MultiHeadAttention, _multi_head_attention),
        (keras.layers.GroupQueryAttention, _grouped_query_attention),
        (keras.layers.Attention, _dot_product_attention),
        (unet.AttentionBlock, _attention_block),
        (autoencoder_layers._AttentionBlock, _attention_block),
    ]


def _multi_head_attention(layer, arguments):
    query = known_shape(layer, arguments["query"])
    value = known_shape(layer, arguments["value"])
    axes = layer.attention_axes or tuple(range(1, len(query) - 1))
    axes = [axis % len(query) for axis in ((axes,) if isinstance(axes, int) else axes)]
    # Each position of the query meets all positions of the values along the attention axes.
    pairs = math.prod(query[:-1]) * math.prod(value[axis] for axis in axes) * layer.num_heads
    return pairs * layer.key_dim, pairs * layer.value_dim


def _grouped_query_attention(layer, arguments):
    query = known_shape(layer, arguments["query"])
    value = known_shape(layer, arguments["value"])
    products = math.prod(query[:-1]) * value[1] * layer.num_query_heads * layer.head_dim
    return products, products


def _dot_product_attention(layer, arguments):
    if not is_dot_product(layer):
        return 0, 0
    query, value, *key = (known_shape(layer, x) for x in arguments["inputs"])
    pairs = math.prod(query[:-1]) * value[-2]
    return pairs * query[-1], pairs * value[-1]


def is_dot_product(layer):
    """Tell if the scores of a `keras.layers.Attention` are products, not sums."""
    additive = isinstance(layer, keras.layers.AdditiveAttention)
    return layer.score_mode == "dot" and not additive


def _attention_block(layer, arguments):
    batch_size, height, width, channels = known_shape(layer, arguments["x"])
    products = batch_size * (height * width) ** 2 * channels
    return products, products


def known_shape(layer, tensor):
    shape = tuple(tensor.shape)
    if None in shape:
        raise ValueError(
            f"`inputs` must determine the shapes in all layers; {layer.name!r} "
            f"({type(layer).__name__}) receives {shape}, which is not known before it is computed."
        )
    return shape
