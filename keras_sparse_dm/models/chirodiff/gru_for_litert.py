"""GRU loop for LiteRT: single GRUs in operations that run fast in a `.tflite` file.

Keras's loop multiplies one point at a time by the input kernel, and after conversion each step
copies the whole sequence. Here all points share one product before the loop, and a step copies a
small part of the sequence. Products can be int8. In floats the numbers are equal up to rounding.
"""

import math

import keras

from keras_sparse_dm._keras import flatten_layers
from keras_sparse_dm.layers.shared_copy import shared_copy
from keras_sparse_dm.lazy import lazy_module, load

tf = load(lazy_module("tensorflow"))

# Steps of the inner of two loops. In every step LiteRT copies all that a loop reads and writes, so
# a step should see only a part of the sequence; but a part costs as much as several steps.
PART = 16
# Activations that turn an input of this size into a gate of 1.
CLOSING = (keras.activations.sigmoid, keras.activations.hard_sigmoid)
CLOSED = 1e4


class Floats:
    """Products of activations and kernels in floats."""

    def product(self, site, inputs, kernel, bias=None, reach=0.0):
        """Multiply inputs by a kernel.

        Args:
            site: Name of the product, unique in a model.
            inputs: Float tensor (n, inputs).
            kernel: Float tensor (inputs, outputs).
            bias: Float tensor (outputs,) to add, or None.
            reach: The levels of integer outputs cover at least [-reach, reach].

        Returns:
            Float tensor (n, outputs).
        """
        outputs = tf.matmul(inputs, kernel)
        return outputs if bias is None else outputs + bias


class Observed(Floats):
    """Products in floats that record the extremes of their inputs and outputs.

    Attributes:
        extremes: `{site: [least input, largest input, least output, largest output, largest
            magnitude in the kernel]}`, tensors.
    """

    def __init__(self):
        self.extremes = {}

    def product(self, site, inputs, kernel, bias=None, reach=0.0):
        outputs = super().product(site, inputs, kernel, bias)
        ends = (tf.reduce_min, tf.reduce_max)
        noted = [end(values) for values in (inputs, outputs) for end in ends]
        self.extremes[site] = [*noted, tf.reduce_max(tf.abs(kernel))]
        return outputs


class Integers(Floats):
    """Products that the converter turns into products of int8.

    Kernels are rounded to 255 levels around zero, so that zeros stay zero. All outputs share the
    levels: the converter cannot transpose a kernel with separate levels for each output.

    Args:
        extremes: As in `Observed`, but numbers.
    """

    def __init__(self, extremes):
        self.extremes = extremes

    def product(self, site, inputs, kernel, bias=None, reach=0.0):
        ends = self.extremes[site]
        inputs = _rounded(inputs, *ends[:2])
        largest = max(float(ends[4]), 1e-6)
        kernel = tf.quantization.fake_quant_with_min_max_args(
            kernel, -largest, largest, narrow_range=True
        )
        low, high = min(ends[2], -reach), max(ends[3], reach)
        return _rounded(super().product(site, inputs, kernel, bias), low, high)


def _rounded(values, low, high):
    # Zero must be one of the levels.
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    return tf.quantization.fake_quant_with_min_max_args(values, low, max(high, low + 1e-6))


def litert_form(model, products=None):
    """Return a copy of a model that shares its variables and uses this loop for its GRUs.

    Keras's own loop still serves GRUs that have both a mask and a given initial state.

    Args:
        model: A Keras model.
        products: `Floats`, `Observed` or `Integers` for the products of GRUs and dense layers;
            by default `Floats` in GRUs, and dense layers stay as they are.
    """
    model, _ = shared_copy(model)
    for i, layer in enumerate(flatten_layers(model)):
        if isinstance(layer, keras.layers.GRU):
            vars(layer)["inner_loop"] = _inner_loop(layer, products or Floats(), str(i))
        elif type(layer).call in _DENSE_CALLS and products is not None:
            vars(layer)["call"] = _dense(layer, products, str(i))
    return model


# `SparseDense` has the same `call`. A subclass with another one may compute something else.
_DENSE_CALLS = (keras.layers.Dense.call,)


def _dense(layer, products, site):
    """Return the function that a dense layer calls instead of its own `call`."""

    def call(inputs, training=None):
        sizes, features = inputs.shape[:-1], inputs.shape[-1]
        bias = tf.cast(layer.bias, inputs.dtype) if layer.use_bias else None
        kernel = tf.cast(layer.kernel, inputs.dtype)
        rows = tf.reshape(inputs, (-1, features))
        # The converter gives these levels to all that is concatenated with the outputs too. They
        # must cover the sines and cosines of the time features.
        outputs = products.product(site, rows, kernel, bias, reach=1.0)
        outputs = tf.reshape(outputs, (*sizes, layer.units))
        return outputs if layer.activation is None else layer.activation(outputs)

    return call


def _inner_loop(layer, products, site):
    """Return the function that a GRU layer calls instead of its own `inner_loop`."""

    def inner_loop(sequences, initial_state, mask, training=False):
        (state,) = keras.tree.flatten(initial_state)
        valid = mask[0] if isinstance(mask, (list, tuple)) else mask
        known = tf.get_static_value(state)
        # At masked steps before the first point Keras's outputs are zero, whatever the state is.
        unlike = known is None or known.any() or layer.cell.recurrent_activation not in CLOSING
        if None in sequences.shape or (valid is not None and unlike):
            return type(layer).inner_loop(layer, sequences, initial_state, mask, training=training)
        return _gru(layer, sequences, state, valid, products, site)

    return inner_loop


def _gru(layer, sequences, state, mask, products, site):
    """Run Keras's GRU (Cho et al. 2014; Keras's gates z, r, h) without dropout.

    Args:
        layer: The `keras.layers.GRU`.
        sequences: Float tensor (batch_size, length, features), all sizes known.
        state: Float tensor (batch_size, units).
        mask: Boolean tensor (batch_size, length) or None.
        products: `Floats`, `Observed` or `Integers`.
        site: Name of the layer's products.

    Returns:
        `(last output, outputs, states)`, as Keras's `inner_loop` returns them.
    """
    cell, units = layer.cell, layer.cell.units
    batch_size, length, features = sequences.shape
    dtype = sequences.dtype
    kernel = tf.cast(cell.kernel, dtype)
    recurrent_kernel = tf.cast(cell.recurrent_kernel, dtype)
    input_bias = recurrent_bias = None
    if cell.use_bias and cell.reset_after:
        input_bias, recurrent_bias = tf.unstack(tf.cast(cell.bias, dtype))
    elif cell.use_bias:
        input_bias = tf.cast(cell.bias, dtype)

    def recurrent_product(states, by=products):
        return by.product(f"{site} recurrent", states, recurrent_kernel, recurrent_bias)

    # A loop's tensors cannot leave it, so the recurrent product is observed on all states after it.
    observing = isinstance(products, Observed)
    rows = tf.reshape(sequences, (-1, features))
    projected = products.product(f"{site} inputs", rows, kernel, input_bias)
    # With time as the first axis a step reads and writes one contiguous piece of memory.
    projected = tf.transpose(tf.reshape(projected, (batch_size, length, 3 * units)), (1, 0, 2))
    gates = 2 * units
    x_gates, x_candidate = projected[..., :gates], projected[..., gates:]
    if mask is not None:
        # An update gate of 1 keeps the state where there is no point.
        closed = tf.concat([tf.fill((units,), CLOSED), tf.zeros((units,))], axis=0)
        padding = tf.cast(tf.logical_not(tf.transpose(mask)), dtype)
        x_gates += padding[..., None] * tf.cast(closed, dtype)
    # Parts of equal length.
    parts = max(1, round(length / PART))
    size = math.ceil(length / parts)
    x_gates, x_candidate = (
        _in_parts(tf.reverse(x, [0]) if layer.go_backwards else x, parts, size)
        for x in (x_gates, x_candidate)
    )

    def step(x_gates, x_candidate, state):
        if cell.reset_after:
            recurrent = recurrent_product(state, Floats() if observing else products)
            update_reset = cell.recurrent_activation(x_gates + recurrent[:, :gates])
            update, reset = tf.split(update_reset, 2, axis=-1)
            candidate = reset * recurrent[:, gates:]
        else:
            recurrent = tf.matmul(state, recurrent_kernel[:, :gates])
            update_reset = cell.recurrent_activation(x_gates + recurrent)
            update, reset = tf.split(update_reset, 2, axis=-1)
            candidate = tf.matmul(reset * state, recurrent_kernel[:, gates:])
        candidate = cell.activation(x_candidate + candidate)
        return candidate + update * (state - candidate)

    # `tf.gather`, because LiteRT does not know the shape of a slice at a variable position.
    def one_part(i, state, outputs):
        part_gates, part_candidate = tf.gather(x_gates, i), tf.gather(x_candidate, i)

        def one_step(j, state, outputs):
            state = step(tf.gather(part_gates, j), tf.gather(part_candidate, j), state)
            return j + 1, state, outputs.write(j, state)

        _, state, rows = tf.while_loop(
            lambda j, *_: j < size,
            one_step,
            (tf.constant(0), state, _written_over(part_candidate)),
        )
        return i + 1, state, outputs.write(i, rows.stack())

    _, _, outputs = tf.while_loop(
        lambda i, *_: i < parts,
        one_part,
        (tf.constant(0), state, _written_over(x_candidate)),
    )
    outputs = tf.reshape(outputs.stack(), (parts * size, batch_size, units))[:length]
    state = outputs[-1]
    if observing and cell.reset_after:
        recurrent_product(tf.reshape(outputs, (-1, units)))
    if mask is not None and layer.zero_output_for_mask:
        valid = tf.transpose(tf.reverse(mask, [1]) if layer.go_backwards else mask)
        outputs = tf.where(valid[..., None], outputs, tf.zeros_like(outputs))
    return outputs[-1], tf.transpose(outputs, (1, 0, 2)), [state]


def _in_parts(x, parts, size):
    """Split (length, ...) into (parts, size, ...), padded with zeros."""
    missing = parts * size - x.shape[0]
    if missing:
        x = tf.pad(x, [(0, missing)] + [(0, 0)] * (len(x.shape) - 1))
    return tf.reshape(x, (parts, size, *x.shape[1:]))


def _written_over(values):
    """Return a `tf.TensorArray` of values to overwrite; the file would have to store zeros."""
    array = tf.TensorArray(values.dtype, values.shape[0], element_shape=values.shape[1:])
    return array.unstack(values)
