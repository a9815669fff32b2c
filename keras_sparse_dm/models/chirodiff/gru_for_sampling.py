"""GRU loop for sampling: forward passes of a stack of bidirectional GRUs on a CPU.

Keras's loop multiplies one point at a time by the input kernel, and transposes the sequence before
and after every layer. This loop multiplies `PART` points at once, while they are in the processor's
cache, keeps time as the first axis through all layers, and skips padding. The numbers are equal up
to rounding. Its gradient would be no faster than that of Keras's loop; `gru_for_training` has one.
"""

import keras
from keras import ops

from keras_sparse_dm.lazy import lazy_module

tf = lazy_module("tensorflow")

# Points in one product with the input kernel, and steps in one iteration of the loop.
PART = 4


def can_sample(layers):
    """Tell whether `sampling_outputs` computes the outputs of these layers, and faster than Keras.

    Args:
        layers: List of `keras.layers.Bidirectional`.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    # With a GPU, Keras's GRU is one cuDNN kernel.
    if tf.config.list_logical_devices("GPU"):
        return False
    return all(
        layer.merge_mode == "concat"
        and "call" not in vars(layer)
        and _computed_as_here(layer.forward_layer)
        and _computed_as_here(layer.backward_layer)
        for layer in layers
    )


def _computed_as_here(gru):
    cell = gru.cell
    return (
        isinstance(gru, keras.layers.GRU)
        and type(gru).inner_loop is keras.layers.GRU.inner_loop
        and type(cell).call is keras.layers.GRUCell.call
        # Methods on the object itself, such as those of a profiler, must still be called.
        and not {"inner_loop", "call"} & {*vars(gru), *vars(cell)}
        and gru.return_sequences
        and not gru.return_state
        and not gru.stateful
        and not gru.unroll
        and cell.reset_after
        and cell.use_bias
    )


def sampling_outputs(layers, sequences, mask, head=None):
    """Return the outputs of the last layer of a stack, or those of a head after it.

    Args:
        layers: List of `keras.layers.Bidirectional` for which `can_sample` is true; each reads the
            outputs of the one before.
        sequences: Float tensor (batch_size, length, features).
        mask: Boolean tensor (batch_size, length), False at padding.
        head: Function of each point by itself, `head(outputs) -> features`, from a tensor (PART,
            batch_size, 2 * units of the last layer) to one (PART, batch_size, features). It runs on
            outputs that are still in the cache, and skips padding like the layers.

    Returns:
        Float tensor (batch_size, length, features), zero at padding. Without a `head` the features
        are the 2 * units outputs of the last layer.
    """
    length = ops.shape(sequences)[1]

    def in_parts(x):
        """Reshape (batch_size, length, features) to (parts, PART, batch_size, features)."""
        x = by_time(x)
        return tf.reshape(x, (-1, PART, *ops.shape(x)[1:]))

    valid = in_parts(mask[..., None])
    # Number of parts up to the last one that holds a point.
    lengths = tf.reduce_max(tf.where(mask, tf.range(1, length + 1), 0))
    used = tf.maximum(-(-lengths // PART), 1)
    # Tensors to concatenate along the features; keeping them apart saves the copy.
    joined = [in_parts(sequences)]
    for layer in layers:
        joined = [
            _outputs(layer.forward_layer, joined, valid, used, backwards=False),
            _outputs(layer.backward_layer, joined, valid, used, backwards=True),
        ]
    outputs = _join(joined, used, head) if head else tf.concat(joined, axis=-1)
    return by_sketch(tf.reshape(outputs, (-1, *ops.shape(outputs)[2:])), mask)


def by_time(x):
    """Transpose (batch_size, length, ...) to (parts * PART, batch_size, ...), padded with zeros."""
    return tf.pad(tf.transpose(x, (1, 0, 2)), [(0, -ops.shape(x)[1] % PART), (0, 0), (0, 0)])


def by_sketch(x, mask):
    """Reverse `by_time`, with zeros where the mask (batch_size, length) is False."""
    x = tf.transpose(x[: ops.shape(mask)[1]], (1, 0, 2))
    return tf.where(mask[..., None], x, tf.zeros((), x.dtype))


def _join(joined, used, head):
    """Apply `head` to the first `used` parts of tensors, concatenated along their features."""

    def of(part):
        return head(tf.concat([tf.gather(x, part) for x in joined], axis=-1))

    # The first part, which always exists, shows the type and shape of the outputs.
    first = of(0)
    outputs = tf.TensorArray(first.dtype, tf.shape(joined[0])[0], element_shape=first.shape)
    _, outputs = tf.while_loop(
        lambda number, _: number < used,
        lambda number, outputs: (number + 1, outputs.write(number, of(number))),
        (tf.constant(1), outputs.write(0, first)),
    )
    return outputs.stack()


def _sigmoid(x):
    """Sigmoid in fewer instructions, equal up to the rounding of a float32 near 1."""
    return 0.5 + 0.5 * ops.tanh(0.5 * x)


def _outputs(gru, joined, valid, used, backwards):
    """Run one direction of a layer (Cho et al. 2014; Keras's gates z, r, h) from a zero state.

    Args:
        gru: The `keras.layers.GRU`.
        joined: List of tensors (parts, PART, batch_size, features), the inputs to concatenate.
        valid: Boolean tensor (parts, PART, batch_size, 1); the state does not change where it is
            False.
        used: Integer tensor, the number of parts to read from the first on.
        backwards: Whether to go from the last point to the first.

    Returns:
        Float tensor (parts, PART, batch_size, units), zero past the parts that were read.
    """
    cell, dtype = gru.cell, joined[0].dtype
    recurrent_activation = cell.recurrent_activation
    if recurrent_activation is keras.activations.sigmoid and dtype.size >= 4:
        recurrent_activation = _sigmoid
    parts, _, batch_size, _ = tf.unstack(tf.shape(joined[0]))
    sizes = [x.shape[-1] for x in joined]
    # One matrix per gate saves splitting the products.
    kernels = [tf.split(gate, sizes) for gate in tf.split(ops.cast(cell.kernel, dtype), 3, axis=1)]
    recurrent_z, recurrent_r, recurrent_h = tf.split(
        ops.cast(cell.recurrent_kernel, dtype), 3, axis=1
    )
    input_bias, recurrent_bias = (
        tf.split(bias, 3) for bias in tf.unstack(ops.cast(cell.bias, dtype))
    )
    # The reset gate scales the candidate's recurrent bias; the other biases can be added here.
    biases = [input_bias[0] + recurrent_bias[0], input_bias[1] + recurrent_bias[1], input_bias[2]]

    def of_part(number, state, outputs):
        part = used - 1 - number if backwards else number
        # With `[part]`, XLA would compile once for every position of the slice.
        rows = [
            tf.reshape(tf.gather(x, part), (-1, size))
            for x, size in zip(joined, sizes, strict=True)
        ]
        projected = [
            tf.split(tf.add_n([r @ k for r, k in zip(rows, gate, strict=True)]) + bias, PART)
            for gate, bias in zip(kernels, biases, strict=True)
        ]
        steps = list(zip(*projected, tf.unstack(tf.gather(valid, part)), strict=True))
        states = []
        for x_z, x_r, x_h, is_point in reversed(steps) if backwards else steps:
            update = recurrent_activation(x_z + state @ recurrent_z)
            reset = recurrent_activation(x_r + state @ recurrent_r)
            candidate = cell.activation(x_h + reset * (state @ recurrent_h + recurrent_bias[2]))
            state = tf.where(is_point, candidate + update * (state - candidate), state)
            states.append(state)
        states = tf.stack(states[::-1] if backwards else states)
        return number + 1, state, outputs.write(part, states)

    _, _, outputs = tf.while_loop(
        lambda number, *_: number < used,
        of_part,
        (
            tf.constant(0),
            tf.zeros((batch_size, cell.units), dtype),
            tf.TensorArray(dtype, parts, element_shape=(PART, joined[0].shape[2], cell.units)),
        ),
    )
    return outputs.stack()
