"""GRU loop for training: a stack of bidirectional GRUs with its own gradient, on a CPU.

As in `gru_for_sampling`, `PART` points share one product with the input kernel. In the backward
pass, a step computes only the two products that depend on the step after it; `PART` points share
the derivatives of the gates and the gradients of kernels and inputs. The numbers are equal to those
of Keras's loop up to rounding.
"""

import keras
from keras import ops

from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.models.chirodiff.gru_for_sampling import PART, by_sketch, by_time, can_sample

tf = lazy_module("tensorflow")


def can_train(layers):
    """Tell whether `training_outputs` computes the outputs of these layers in training, and faster.

    Args:
        layers: List of `keras.layers.Bidirectional`.
    """
    return can_sample(layers) and all(
        gru.cell.activation is keras.activations.tanh
        and gru.cell.recurrent_activation is keras.activations.sigmoid
        and not gru.cell.dropout
        and not gru.cell.recurrent_dropout
        for layer in layers
        for gru in (layer.forward_layer, layer.backward_layer)
    )


def training_outputs(layers, sequences, mask):
    """Return the outputs of the last layer of a stack.

    Args:
        layers: List of `keras.layers.Bidirectional` for which `can_train` is true; each reads the
            outputs of the one before.
        sequences: Float tensor (batch_size, length, features), finite at padding too.
        mask: Boolean tensor (batch_size, length), False at padding.

    Returns:
        Float tensor (batch_size, length, 2 * units of the last layer), zero at padding, with a
        first-order gradient.
    """
    valid = by_time(mask[..., None])
    outputs = by_time(sequences)
    for layer in layers:
        outputs = tf.concat(
            [
                _outputs(layer.forward_layer, outputs, valid, backwards=False),
                _outputs(layer.backward_layer, outputs, valid, backwards=True),
            ],
            axis=-1,
        )
    return by_sketch(outputs, mask)


def _outputs(gru, sequences, valid, backwards):
    """Run one direction of a layer from a zero state.

    With Keras's gates z and r and candidate c, `h' = c + z (h - c)` where
    `c = tanh(x K_c + b + r s)` and `s = h R_c + b'` (Cho et al. 2014, reset after the product).

    Args:
        gru: The `keras.layers.GRU`.
        sequences: Float tensor (parts * PART, batch_size, features).
        valid: Boolean tensor (parts * PART, batch_size, 1).
        backwards: Whether to go from the last point to the first.

    Returns:
        Float tensor (parts * PART, batch_size, units).
    """
    cell, dtype = gru.cell, sequences.dtype
    units = cell.units
    parts = tf.shape(sequences)[0] // PART
    batch_size, features = ops.shape(sequences)[1:]
    # The batch size if tracing knows it, else None.
    size = sequences.shape[1]
    rows = None if size is None else PART * size
    order = range(PART)[::-1] if backwards else range(PART)
    # An update gate of 1 keeps the state where there is no point.
    open_gate = tf.constant(1e4 if dtype == tf.float16 else 1e9, dtype)
    valid = tf.reshape(valid, (parts, PART * batch_size, 1))

    def array(*shape):
        return tf.TensorArray(dtype, parts, element_shape=shape, clear_after_read=False)

    def gates_and_candidate(kernel):
        return tf.split(kernel, [2 * units, units], axis=1)

    @tf.custom_gradient
    def outputs_of(sequences, kernel, recurrent_kernel, bias):
        by_part = tf.reshape(sequences, (parts, PART * batch_size, features))
        kernel_zr, kernel_c = gates_and_candidate(kernel)
        recurrent_zr, recurrent_c = gates_and_candidate(recurrent_kernel)
        bias_zr = bias[0, : 2 * units] + bias[1, : 2 * units]
        bias_c, bias_s = bias[0, 2 * units :], bias[1, 2 * units :]

        def forward(number, state, arrays):
            part = parts - 1 - number if backwards else number
            points = by_part[part]
            x_zr = tf.nn.bias_add(points @ kernel_zr, bias_zr)
            x_zr = tf.split(tf.where(valid[part], x_zr, open_gate), PART)
            x_c = tf.split(tf.nn.bias_add(points @ kernel_c, bias_c), PART)
            start, steps = state, [None] * PART
            for i in order:
                zr = tf.sigmoid(x_zr[i] + state @ recurrent_zr)
                z, r = tf.split(zr, 2, axis=1)
                s = tf.nn.bias_add(state @ recurrent_c, bias_s)
                c = tf.tanh(x_c[i] + r * s)
                state = c + z * (state - c)
                steps[i] = (zr, s, c, state)
            of_part = [tf.stack(values) for values in zip(*steps, strict=True)]
            written = (a.write(part, v) for a, v in zip(arrays, (start, *of_part), strict=True))
            return number + 1, state, tuple(written)

        zero = tf.zeros((batch_size, units), dtype)
        arrays = (
            array(size, units),
            array(PART, size, 2 * units),
            *(array(PART, size, units) for _ in range(3)),
        )
        _, _, arrays = tf.while_loop(
            lambda number, *_: number < parts, forward, (tf.constant(0), zero, arrays)
        )
        all_states = tf.reshape(arrays[-1].stack(), (parts * PART, batch_size, units))

        def gradient(upstream):
            upstream = tf.reshape(upstream, (parts, PART, batch_size, units))

            def backward(number, d, d_points, sums):
                part = number if backwards else parts - 1 - number
                start, zr, s, c, states = (a.read(part) for a in arrays)
                if backwards:
                    before = tf.concat([states[1:], start[None]], axis=0)
                else:
                    before = tf.concat([start[None], states[:-1]], axis=0)
                z, r = tf.split(zr, 2, axis=-1)
                # Derivatives of the state by the inputs of the activations, and by s.
                by_c = (1 - z) * (1 - c * c)
                by_z = (before - c) * (z * (1 - z))
                by_s = by_c * r
                by_r = by_s * s * (1 - r)
                factors = (upstream[part], z, by_z, by_r, by_s)
                factors = list(zip(*(tf.unstack(f) for f in factors), strict=True))
                steps = [None] * PART
                for i in reversed(order):
                    from_above, z_i, z_factor, r_factor, s_factor = factors[i]
                    d = d + from_above
                    d_zr = tf.concat([d * z_factor, d * r_factor], axis=1)
                    d_s = d * s_factor
                    steps[i] = (d, d_zr, d_s)
                    d = tf.add_n(
                        [
                            d * z_i,
                            tf.matmul(d_zr, recurrent_zr, transpose_b=True),
                            tf.matmul(d_s, recurrent_c, transpose_b=True),
                        ]
                    )
                d_state, d_zr, d_s = (tf.concat(v, axis=0) for v in zip(*steps, strict=True))
                d_c = d_state * tf.reshape(by_c, (-1, units))
                d_points = d_points.write(
                    part,
                    tf.matmul(d_zr, kernel_zr, transpose_b=True)
                    + tf.matmul(d_c, kernel_c, transpose_b=True),
                )
                points, before = by_part[part], tf.reshape(before, (-1, units))
                of_part = (
                    tf.matmul(points, d_zr, transpose_a=True),
                    tf.matmul(points, d_c, transpose_a=True),
                    tf.matmul(before, d_zr, transpose_a=True),
                    tf.matmul(before, d_s, transpose_a=True),
                    tf.reduce_sum(d_zr, axis=0),
                    tf.reduce_sum(d_c, axis=0),
                    tf.reduce_sum(d_s, axis=0),
                )
                sums = tuple(a + b for a, b in zip(sums, of_part, strict=True))
                return number + 1, d, d_points, sums

            weights = (kernel_zr, kernel_c, recurrent_zr, recurrent_c, bias_zr, bias_c, bias_s)
            sums = tuple(tf.zeros_like(w) for w in weights)
            _, _, d_points, sums = tf.while_loop(
                lambda number, *_: number < parts,
                backward,
                (tf.constant(0), zero, array(rows, features), sums),
            )
            d_kernel, d_recurrent = tf.concat(sums[:2], axis=1), tf.concat(sums[2:4], axis=1)
            d_zr, d_c, d_s = sums[4:]
            d_bias = tf.stack([tf.concat([d_zr, d_c], axis=0), tf.concat([d_zr, d_s], axis=0)])
            d_sequences = tf.reshape(d_points.stack(), (parts * PART, batch_size, features))
            return d_sequences, d_kernel, d_recurrent, d_bias

        return all_states, gradient

    return outputs_of(
        sequences,
        ops.cast(cell.kernel, dtype),
        ops.cast(cell.recurrent_kernel, dtype),
        ops.cast(cell.bias, dtype),
    )
