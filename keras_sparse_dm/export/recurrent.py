"""GRUs in a form that LiteRT runs fast.

Keras's loop multiplies one point after the other with the kernel and gathers the outputs by
copying all of them in every step. Here the inputs of all points meet the kernel at once, before
the loop, and an output is written where it belongs. Same numbers, a third of the time.
"""

import contextlib

import keras
import tensorflow as tf


class Floats:
    """Products of activations and kernels as they are."""

    def product(self, site, inputs, kernel, bias=None, reach=0.0):
        """Multiplies.

        Args:
            site: What the product is called; no two of a model have the same name.
            inputs: Float tensor (n, inputs).
            kernel: Float tensor (inputs, outputs).
            bias: Float tensor (outputs,) to add, or None.
            reach: Integer outputs have levels up to there, on both sides, at least.
        """
        outputs = tf.matmul(inputs, kernel)
        return outputs if bias is None else outputs + bias


class Observed(Floats):
    """The same, noting between what inputs and outputs of each product lie.

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
    """Products that the converter makes products of int8, by what was noted of them.

    Kernels are rounded to 255 levels around zero, so that zeros stay zero. (The converter cannot
    transpose one that has levels of its own for each output.)

    Args:
        extremes: As `Observed` has them, numbers.
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


@contextlib.contextmanager
def traced_for_litert(model, products=None):
    """Context in which a model's GRUs are traced in that form, those that can be.

    Args:
        model: A Keras model. Layers of other kinds, and GRUs with masks and an initial state
            of their own, are traced as Keras does it.
        products: How to multiply, in GRUs and dense layers; `Floats` by default.
    """
    layers = model._flatten_layers()
    for i, layer in enumerate(layers):
        if isinstance(layer, keras.layers.GRU):
            vars(layer)["inner_loop"] = _inner_loop(layer, products or Floats(), str(i))
        elif type(layer).call in _DENSE_CALLS and products is not None:
            vars(layer)["call"] = _dense(layer, products, str(i))
    try:
        yield
    finally:
        for layer in layers:
            for name in ("inner_loop", "call"):
                vars(layer).pop(name, None)


# Of the sparse layer it is the same, and of a subclass with one of its own it is not known.
_DENSE_CALLS = (keras.layers.Dense.call,)


def _dense(layer, products, site):
    """Returns what a dense layer calls instead of its own `call`."""

    def call(inputs, training=None):
        sizes, features = inputs.shape[:-1], inputs.shape[-1]
        bias = tf.cast(layer.bias, inputs.dtype) if layer.use_bias else None
        kernel = tf.cast(layer.kernel, inputs.dtype)
        rows = tf.reshape(inputs, (-1, features))
        # The converter gives what is joined to the outputs the levels of the outputs: sines and
        # cosines, where time is joined, which must fit.
        outputs = products.product(site, rows, kernel, bias, reach=1.0)
        outputs = tf.reshape(outputs, (*sizes, layer.units))
        return outputs if layer.activation is None else layer.activation(outputs)

    return call


def _inner_loop(layer, products, site):
    """Returns what a GRU layer calls instead of its own `inner_loop`."""

    def inner_loop(sequences, initial_state, mask, training=False):
        (state,) = keras.tree.flatten(initial_state)
        valid = mask[0] if isinstance(mask, (list, tuple)) else mask
        known = tf.get_static_value(state)
        # Where masked steps come first, Keras's outputs there are zero whatever the state is.
        if None in sequences.shape or (valid is not None and (known is None or known.any())):
            return type(layer).inner_loop(layer, sequences, initial_state, mask, training=training)
        return _gru(layer, sequences, state, valid, products, site)

    return inner_loop


def _gru(layer, sequences, state, mask, products, site):
    """Keras's GRU (Cho et al. 2014; Keras's gates z, r, h), without dropout.

    Args:
        layer: The `keras.layers.GRU`.
        sequences: Float tensor (batch_size, length, features), all sizes known.
        state: Float tensor (batch_size, units).
        mask: Boolean tensor (batch_size, length) or None.
        products: How to multiply.
        site: Name of the layer's products.

    Returns:
        `(last output, outputs, states)`, as an `inner_loop` gives them.
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

    # What is computed in a loop cannot be noted there, but all states are known after it.
    observing = isinstance(products, Observed)
    rows = tf.reshape(sequences, (-1, features))
    projected = products.product(f"{site} inputs", rows, kernel, input_bias)
    projected = tf.reshape(projected, (batch_size, length, 3 * units))
    # Time first, so that a step reads and writes one piece of memory.
    projected = tf.transpose(projected, (1, 0, 2))
    if mask is not None:
        mask = tf.transpose(mask)[..., None]
    if layer.go_backwards:
        projected = tf.reverse(projected, [0])
        mask = None if mask is None else tf.reverse(mask, [0])
    gates = 2 * units

    def step(i, state, outputs):
        x = projected[i]
        if cell.reset_after:
            recurrent = recurrent_product(state, Floats() if observing else products)
            update_reset = cell.recurrent_activation(x[:, :gates] + recurrent[:, :gates])
            update, reset = tf.split(update_reset, 2, axis=-1)
            candidate = reset * recurrent[:, gates:]
        else:
            recurrent = tf.matmul(state, recurrent_kernel[:, :gates])
            update_reset = cell.recurrent_activation(x[:, :gates] + recurrent)
            update, reset = tf.split(update_reset, 2, axis=-1)
            candidate = tf.matmul(reset * state, recurrent_kernel[:, gates:])
        candidate = cell.activation(x[:, gates:] + candidate)
        next_state = candidate + update * (state - candidate)
        if mask is not None:
            next_state = tf.where(mask[i], next_state, state)
        return i + 1, next_state, outputs.write(i, next_state)

    # Every row is written, so what is there at first does not matter; zeros would be stored.
    outputs = tf.TensorArray(dtype, length, element_shape=(batch_size, units))
    outputs = outputs.unstack(projected[:, :, :units])
    _, state, outputs = tf.while_loop(
        lambda i, *_: i < length, step, (tf.constant(0), state, outputs)
    )
    outputs = outputs.stack()
    if observing and cell.reset_after:
        recurrent_product(tf.reshape(outputs, (-1, units)))
    if mask is not None and layer.zero_output_for_mask:
        outputs = tf.where(mask, outputs, tf.zeros_like(outputs))
    last = outputs[-1]
    return last, tf.transpose(outputs, (1, 0, 2)), [state]
