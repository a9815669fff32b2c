"""Training of the vector-quantized autoencoder on images."""

import functools

import keras
from keras import ops

from keras_sparse_dm.models.codebook import count_codes, restart_unused, share_used
from keras_sparse_dm.own_loss import OwnLossModel
from keras_sparse_dm.seeds import seed_generator
from keras_sparse_dm.sparsity.install import build_optimizer


class AutoencoderTraining(OwnLossModel):
    """Base class with the losses and steps that train an autoencoder on images.

    A subclass has the methods `encode`, `quantize` and `decode`, the variables `codebook` and
    `unused_steps`, and as attributes the arguments of `VQAutoencoder`.

    Args:
        seed: Integer seed of the restarts of codes; None for a random one.
    """

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self._seed_generator = seed_generator(seed, "code restarts")
        self._trackers = {
            name: keras.metrics.Mean(name=name)
            for name in ("loss", "reconstruction", "quantization", "codes_used")
        }

    @property
    def metrics(self):
        return list(self._trackers.values())

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        build_optimizer(self)
        return super().fit(*args, **kwargs)

    def prepared_batch(self, data, training):
        """Return the images of a batch, for the steps of all backends."""
        return _images(data)

    def batch_loss(self, images, training):
        """Return the loss of a batch, and what `finish_batch` needs."""
        loss, *outcome = self._batch_losses(images, training)
        return loss, outcome

    def finish_batch(self, images, outcome, training):
        """Restart unused codes in training, and return all metrics."""
        losses, latents, indices = outcome
        if training:
            used = self._restart_unused(latents, indices)
        else:
            used = share_used(count_codes(indices, self.codes))
        return self._track(images, losses | {"codes_used": used})

    def _batch_losses(self, images, training):
        """Compute the losses of a batch (van den Oord et al. 2017, equation 3).

        Returns:
            `(loss, {name: loss}, latents, indices)`.
        """
        images = ops.cast(images, "float32")
        latents = ops.cast(self.encode(images, training=training), "float32")
        _, indices = self.quantize(latents)
        quantized = ops.take(ops.cast(self.codebook, "float32"), indices, axis=0)
        to_codes = ops.mean(ops.square(quantized - ops.stop_gradient(latents)))
        to_latents = ops.mean(ops.square(ops.stop_gradient(quantized) - latents))
        # Straight-through estimator: the gradient passes as if nothing had been quantized.
        passed = latents + ops.stop_gradient(quantized - latents)
        decoded = self.decode(passed, quantize=False, training=training)
        error = ops.cast(decoded, "float32") - images
        distance = ops.abs if self.reconstruction == "l1" else ops.square
        reconstruction = ops.mean(distance(error))
        quantization = to_codes + self.commitment * to_latents
        loss = reconstruction + quantization
        losses = {"loss": loss, "reconstruction": reconstruction, "quantization": quantization}
        return loss, losses, latents, indices

    def _restart_unused(self, latents, indices):
        """Restart codes that are unused for long, and return the share of codes in the batch."""
        counts = count_codes(indices, self.codes)
        if self.restart_after:
            restart_unused(
                self.codebook,
                self.unused_steps,
                counts,
                latents,
                self.restart_after,
                self._seed_generator,
            )
        return share_used(counts)

    def _track(self, images, values):
        for name, value in values.items():
            self._trackers[name].update_state(value, sample_weight=ops.shape(images)[0])
        return self.get_metrics_result()


def _images(data):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if y is not None or sample_weight is not None:
        raise ValueError(
            "A VQAutoencoder is trained on images alone; received targets or sample weights too."
        )
    return x
