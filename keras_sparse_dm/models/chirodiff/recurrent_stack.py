"""A stack of bidirectional GRUs, computed faster than layer by layer, for sampling on a CPU.

Keras's loop multiplies one point after the other with the input kernel, and turns every layer's
sequence around and back. Here some points at a time meet that kernel together, while they are
in the processor's cache, and all layers keep time as the first axis. The numbers are the same but
for rounding. Its own gradient is no faster than that of Keras's loop: `recurrent_gradient` trains.
"""

import keras
from keras import ops

# Points that are multiplied with the input kernel together, and steps in one turn of the loop.
PART = 4


def runs_as_stack(layers):
    """Whether `stacked_outputs` computes what these layers do, and is the faster way.

    Args:
        layers: List of `keras.layers.Bidirectional`.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

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
        # Where somebody listens to calls, or has put others in their place, they are made.
        and not {"inner_loop", "call"} & {*vars(gru), *vars(cell)}
        and gru.return_sequences
        and not gru.return_state
        and not gru.stateful
        and not gru.unroll
        and cell.reset_after
        and cell.use_bias
    )


def stacked_outputs(layers, sequences, mask, head=None):
    """What the last of the layers gives, each reading what the one before gives.

    Args:
        layers: List of `keras.layers.Bidirectional`, for which `runs_as_stack` is true.
        sequences: Float tensor (batch_size, length, features).
        mask: Boolean tensor (batch_size, length), False at padding.
        head: `head(outputs) -> features`, from a tensor (PART, batch_size, 2 * units of the last)
            to one (PART, batch_size, features): what follows the layers at every point by itself.
            So it too is computed on what is in the cache, and not on padding.

    Returns:
        Float tensor (batch_size, length, features), zero at padding; without a `head` the
        features are those of the last layer.
    """
    import tensorflow as tf

    length = ops.shape(sequences)[1]

    def in_parts(x):
        """(batch_size, length, features) as (parts, PART, batch_size, features)."""
        x = by_time(x)
        return tf.reshape(x, (-1, PART, *ops.shape(x)[1:]))

    valid = in_parts(mask[..., None])
    # Where all of a part is padding, and all after it, there is nothing to compute.
    lengths = tf.reduce_max(tf.where(mask, tf.range(1, length + 1), 0))
    used = tf.maximum(-(-lengths // PART), 1)
    # What is joined along the features; joining it would copy it.
    joined = [in_parts(sequences)]
    for layer in layers:
        joined = [
            _outputs(layer.forward_layer, joined, valid, used, backwards=False),
            _outputs(layer.backward_layer, joined, valid, used, backwards=True),
        ]
    outputs = _join(joined, used, head) if head else tf.concat(joined, axis=-1)
    return by_sketch(tf.reshape(outputs, (-1, *ops.shape(outputs)[2:])), mask)


def by_time(x):
    """(batch_size, length, features) as (parts * PART, batch_size, features), filled with zeros."""
    import tensorflow as tf

    return tf.pad(tf.transpose(x, (1, 0, 2)), [(0, -ops.shape(x)[1] % PART), (0, 0), (0, 0)])


def by_sketch(x, mask):
    """The reverse of `by_time`, with zeros where the mask (batch_size, length) is False."""
    import tensorflow as tf

    x = tf.transpose(x[: ops.shape(mask)[1]], (1, 0, 2))
    return tf.where(mask[..., None], x, tf.zeros((), x.dtype))


def _join(joined, used, head):
    """What `head` gives for the first `used` parts of tensors joined along their features."""
    import tensorflow as tf

    def of(part):
        return head(tf.concat([tf.gather(x, part) for x in joined], axis=-1))

    # There is always a first part, and it tells the type and the shape.
    first = of(0)
    outputs = tf.TensorArray(first.dtype, tf.shape(joined[0])[0], element_shape=first.shape)
    _, outputs = tf.while_loop(
        lambda number, _: number < used,
        lambda number, outputs: (number + 1, outputs.write(number, of(number))),
        (tf.constant(1), outputs.write(0, first)),
    )
    return outputs.stack()


def _sigmoid(x):
    """The same but for rounding to a float32 of about 1, in fewer instructions."""
    return 0.5 + 0.5 * ops.tanh(0.5 * x)


def _outputs(gru, joined, valid, used, backwards):
    """One direction of a layer (Cho et al. 2014; Keras's gates z, r, h), from a state of zero.

    Args:
        gru: The `keras.layers.GRU`.
        joined: List of tensors (parts, PART, batch_size, features): its inputs.
        valid: Boolean tensor (parts, PART, batch_size, 1); elsewhere the state stays as it is.
        used: Number of parts to read, from the first on; integer tensor.
        backwards: Whether to go from the last point to the first.

    Returns:
        Float tensor (parts, PART, batch_size, units), zero past the parts that are read.
    """
    import tensorflow as tf

    cell, dtype = gru.cell, joined[0].dtype
    recurrent_activation = cell.recurrent_activation
    if recurrent_activation is keras.activations.sigmoid and dtype.size >= 4:
        recurrent_activation = _sigmoid
    parts, _, batch_size, _ = tf.unstack(tf.shape(joined[0]))
    sizes = [x.shape[-1] for x in joined]
    # One matrix of each gate: what a product gives need not be cut up.
    kernels = [tf.split(gate, sizes) for gate in tf.split(ops.cast(cell.kernel, dtype), 3, axis=1)]
    recurrent_z, recurrent_r, recurrent_h = tf.split(
        ops.cast(cell.recurrent_kernel, dtype), 3, axis=1
    )
    input_bias, recurrent_bias = (
        tf.split(bias, 3) for bias in tf.unstack(ops.cast(cell.bias, dtype))
    )
    # The candidate's recurrent bias is reset with the state, the others' are added at any time.
    biases = [input_bias[0] + recurrent_bias[0], input_bias[1] + recurrent_bias[1], input_bias[2]]

    def of_part(number, state, outputs):
        part = used - 1 - number if backwards else number
        # XLA would compile anew for each place at which `[part]` cuts.
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
