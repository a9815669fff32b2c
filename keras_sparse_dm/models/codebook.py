"""The vectors of a vector-quantized autoencoder: nearest codes, and restarts of unused ones."""

import keras
from keras import ops

from keras_sparse_dm.lazy import lazy_module

tf = lazy_module("tensorflow")

# Distances between latents and codes to hold at a time.
DISTANCES = 2**22


def nearest_codes(latents, codebook):
    """Return the indices of the codes nearest to latents.

    Args:
        latents: Float tensor (..., channels).
        codebook: Float tensor (codes, channels).

    Returns:
        Tensor (...,) of int32.
    """
    codes, channels = codebook.shape
    flat = ops.reshape(ops.cast(latents, "float32"), (-1, channels))
    codebook = ops.cast(codebook, "float32")
    squared = ops.sum(ops.square(codebook), axis=-1)

    def nearest(part):
        # The latent's own square is the same for all codes.
        distances = squared - 2 * ops.matmul(part, ops.transpose(codebook))
        if keras.backend.backend() != "tensorflow":
            return ops.cast(ops.argmin(distances, axis=-1), "int32")
        # `ops.argmin` uses bitcasts, which TensorFlow Lite does not have.
        return tf.argmin(distances, axis=-1, output_type="int32")

    size = max(1, DISTANCES // codes)
    if flat.shape[0] is not None and flat.shape[0] <= size:
        indices = nearest(flat)
    else:
        positions = ops.shape(flat)[0]
        parts = ops.pad(flat, ((0, -positions % size), (0, 0)))
        parts = ops.reshape(parts, (-1, size, channels))
        indices = ops.reshape(ops.map(nearest, parts), (-1,))[:positions]
    return ops.reshape(indices, ops.shape(latents)[:-1])


def count_codes(indices, codes):
    """Count how often each of a number of codes occurs in indices: int tensor (codes,)."""
    flat = ops.reshape(indices, (-1,))
    # JAX cannot compile `bincount`, whose result could be longer.
    return ops.segment_sum(ops.ones_like(flat), flat, num_segments=codes)


def share_used(counts):
    """Return the share of the codes with a count above zero."""
    return ops.mean(ops.cast(counts > 0, "float32"))


def restart_unused(codebook, unused_steps, counts, latents, restart_after, seed):
    """Move codes that no latent chose for many steps to random latents of the batch.

    Args:
        codebook: Variable (codes, channels) to change.
        unused_steps: Integer variable (codes,) to change, steps since a latent last chose a code.
        counts: Uses of the codes in this batch, (codes,).
        latents: Float tensor (..., channels) of the batch.
        restart_after: Number of unused steps before a restart.
        seed: `SeedGenerator` that draws the latents.
    """
    unused = ops.where(counts > 0, 0, ops.convert_to_tensor(unused_steps) + 1)
    restarted = unused >= restart_after
    flat = ops.reshape(latents, (-1, codebook.shape[-1]))
    chosen = keras.random.randint((codebook.shape[0],), 0, ops.shape(flat)[0], seed=seed)
    old, new = ops.convert_to_tensor(codebook), ops.take(flat, chosen, axis=0)
    codebook.assign(ops.where(restarted[:, None], new, old))
    unused_steps.assign(ops.where(restarted, 0, unused))
