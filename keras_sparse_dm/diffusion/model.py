"""`DiffusionModel`: trains a denoiser with `fit`."""

import contextlib
import functools
import warnings

import keras
import numpy as np
from keras import ops

from keras_sparse_dm._keras import averages, has_compiled_loss
from keras_sparse_dm.diffusion.generation import generate
from keras_sparse_dm.diffusion.noise_schedule import NoiseSchedule, check_timesteps
from keras_sparse_dm.own_loss import OwnLossModel
from keras_sparse_dm.seeds import seed_generator
from keras_sparse_dm.sparsity.install import build_optimizer, innermost_optimizer
from keras_sparse_dm.sparsity.wrapper import own_values

_RENAMED = "DiffusionModel.prepare is now clean_batch; the old name will go in the next version."


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class DiffusionModel(OwnLossModel):
    """A denoiser and its noise schedule, trained to predict the noise (paper, Algorithm 1).

    Each training step draws a timestep and noise for every example, and minimizes the mean
    squared error of the predicted noise: the mean over features, then over each sketch's own
    points, then over sketches. Compile the model with an optimizer alone. A sparse denoiser needs
    the `DynamicSparsity` callback; without it, training raises an error rather than fill the
    pruned weights.

    Args:
        denoiser: Built `keras.Model` with `denoiser((x, t)) -> epsilon`, or, for sequences,
            `denoiser((x, t, lengths)) -> epsilon`.
        noise_schedule: `NoiseSchedule`.
        seed: Integer seed of the draws of timesteps and noise; None for a random one. The
            generator's state is saved with the model.

    Data for `fit` and `evaluate`: float tensors `x` of shape (batch_size, ...), or for
    sequences dictionaries of `"points"` (batch_size, max_length, features) and `"lengths"`
    (batch_size,). `evaluate` makes the same draws in every call, so that its losses are
    comparable from epoch to epoch, given the same data in the same order. Like `generate`, it
    uses the averaged (EMA) weights if the optimizer keeps them.

    Raises:
        ValueError: if the denoiser is not built or has another number of timesteps; in `fit` and
            `evaluate`, for targets, sample weights, or a compiled loss.

    Example:

    >>> model = DiffusionModel(ChiroDiff(units=8, num_layers=1), NoiseSchedule.linear(1000))
    >>> report = sparsify(model, 0.5)
    >>> model.compile(keras.optimizers.AdamW(1e-3))
    >>> sketches = {"points": np.ones((8, 5, 3)), "lengths": np.full(8, 5)}
    >>> history = model.fit(sketches, callbacks=[DynamicSparsity("rigl", update_every=800)])
    >>> model.generate(lengths=[6, 8], steps=10, seed=0).shape
    (2, 8, 3)
    """

    def __init__(self, denoiser, noise_schedule, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.denoiser = denoiser
        self.noise_schedule = noise_schedule
        self.seed = seed
        if getattr(denoiser, "timesteps", noise_schedule.timesteps) != noise_schedule.timesteps:
            raise ValueError(
                "`noise_schedule` must have as many timesteps as the denoiser was made for, "
                f"{denoiser.timesteps}; received {noise_schedule.timesteps}."
            )
        if not denoiser.built:
            raise ValueError(
                f"`denoiser` {denoiser.name!r} must be built: call it once on inputs `(x, t)`."
            )
        self._seed_generator = seed_generator(seed, "training")
        self._eval_seed_generator = seed_generator(seed, "evaluation")
        self._eval_seed = ops.convert_to_numpy(self._eval_seed_generator.state)
        alphas_cumprod = noise_schedule.alphas_cumprod
        self._signal_scale = np.sqrt(alphas_cumprod).astype("float32")
        self._noise_scale = np.sqrt(1.0 - alphas_cumprod).astype("float32")
        self.built = True

    def call(self, inputs, training=False):
        """Predict the noise: `model((x, t))` or `model((x, t, lengths))`."""
        return self.denoiser(inputs, training=training)

    def diffuse(self, x, t, noise):
        """Noise data to timestep t: sample q(x_t | x_0) (Ho et al. 2020, equation 4).

        Args:
            x: Float tensor x_0 (batch_size, ...).
            t: Integer tensor (batch_size,), counting from 0.
            noise: Standard normal tensor of the shape of `x`.

        Returns:
            Float tensor x_t of the shape of `x`.

        Raises:
            ValueError: for timesteps out of range.
        """
        check_timesteps(t, self.noise_schedule.timesteps)
        shape = (-1,) + (1,) * (len(x.shape) - 1)
        signal_scale = ops.reshape(ops.take(self._signal_scale, t), shape)
        noise_scale = ops.reshape(ops.take(self._noise_scale, t), shape)
        return signal_scale * x + noise_scale * noise

    def clean_batch(self, data, training):
        """Return the clean data x_0 of a batch, in the space in which the model diffuses.

        Args:
            data: A batch, as passed to `train_step` and `test_step`.
            training: Whether the model trains on the batch.

        Returns:
            `(x, lengths)`: float tensor x_0 (batch_size, ...), and the sketches' lengths
            (batch_size,) or None.

        Raises:
            ValueError: for targets or sample weights.
        """
        return _unpack(data)

    def prepare(self, data, training):
        """Return `clean_batch(data, training)`; the old name will go in the next version."""
        warnings.warn(_RENAMED, DeprecationWarning, stacklevel=2)
        return self.clean_batch(data, training)

    def _clean_batch(self, data, training):
        if type(self).prepare is DiffusionModel.prepare:
            return self.clean_batch(data, training)
        # A subclass still overrides the old name.
        warnings.warn(_RENAMED, DeprecationWarning, stacklevel=2)
        return self.prepare(data, training)

    def prepared_batch(self, data, training):
        """Return `(x, lengths)` of a batch, for the steps of all backends."""
        return self._clean_batch(data, training)

    def batch_loss(self, batch, training):
        """Return the loss of a prepared batch, twice: to minimize, and for `finish_batch`."""
        x, lengths = batch
        seed = self._seed_generator if training else self._eval_seed_generator
        loss = self._noise_prediction_loss(x, lengths, seed, training)
        return loss, loss

    def finish_batch(self, batch, loss, training):
        """Add a batch's loss to Keras's mean loss, and return all metrics."""
        x, _ = batch
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        tracker.update_state(loss, sample_weight=ops.shape(x)[0])
        return self.get_metrics_result()

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        self._check_no_compiled_loss()
        self._averages_final = False
        build_optimizer(self)
        history = super().fit(*args, **kwargs)
        # At the end of `fit` Keras moves the averages into the weights.
        self._averages_final = True
        return history

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args, **kwargs):
        self._averages_final = False
        return super().train_on_batch(*args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        self._check_no_compiled_loss()
        with self.averaged_weights():
            return super().evaluate(*args, **kwargs)

    def reset_metrics(self):
        super().reset_metrics()
        # Every evaluation starts here, and so repeats the draws of the last one.
        self._eval_seed_generator.state.assign(self._eval_seed)

    def _check_no_compiled_loss(self):
        if has_compiled_loss(self):
            raise ValueError(
                "A DiffusionModel has its own loss: compile it with an optimizer alone, without "
                "`loss` and `metrics`."
            )

    def _noise_prediction_loss(self, x, lengths, seed, training):
        self._check_no_compiled_loss()
        x = ops.cast(x, "float32")
        if lengths is not None:
            # Padding may hold any values; the loss must not depend on them.
            valid = ops.arange(ops.shape(x)[1])[None] < ops.cast(lengths, "int32")[:, None]
            x = ops.where(valid[..., None], x, ops.zeros_like(x))
        t = keras.random.randint(
            (ops.shape(x)[0],), 0, self.noise_schedule.timesteps, dtype="int32", seed=seed
        )
        noise = keras.random.normal(ops.shape(x), dtype=x.dtype, seed=seed)
        inputs = (self.diffuse(x, t, noise), t)
        if lengths is not None:
            inputs = (*inputs, lengths)
        error = ops.cast(self.denoiser(inputs, training=training), "float32") - noise
        if lengths is None:
            return ops.mean(ops.square(error))
        per_point = ops.mean(ops.square(error), axis=-1)
        per_sketch = ops.sum(per_point * ops.cast(valid, "float32"), axis=1)
        per_sketch = per_sketch / ops.cast(lengths, "float32")
        return ops.mean(per_sketch)

    def generate(
        self,
        shape=None,
        lengths=None,
        steps=50,
        sampler="ddim",
        eta=0.0,
        seed=None,
        batch_size=256,
        progress=False,
        jit_compile="auto",
    ):
        """Sample new data from noise, with the averaged (EMA) weights if there are any.

        Args:
            shape: Shape of all samples, their number first, for data without lengths.
            lengths: Numbers of points of the sketches to draw, integers (n,).
            steps: Number of DDIM steps, from 1 to T.
            sampler: `"ddim"` or `"ddpm"` (all timesteps).
            eta: Noise of DDIM, from 0 to 1.
            seed: Integer; equal seeds give equal samples, for `eta=0` with any batch size.
            batch_size: Number of samples to generate at a time.
            progress: Whether to show a progress bar.
            jit_compile: Whether XLA compiles the sampling, which takes seconds. DDIM with
                `eta=0` then samples sketches in smaller batches side by side, one on each core.
                `"auto"` compiles where it saves time: on a CPU, for many sketches. Compiled
                samples differ by rounding only, unless `eta > 0` or `"ddpm"` adds noise, which
                XLA draws differently.

        Returns:
            Float32 NumPy array of shape `shape`, or (n, max(lengths), features) with zeros past
            each length.

        Raises:
            ValueError: for lengths below 1, both or neither of `shape` and `lengths`, an
                unknown sampler, steps or eta out of range, a `batch_size` below 1, or a
                `jit_compile` that is neither a boolean nor `"auto"`.
        """
        return generate(
            self,
            shape=shape,
            lengths=lengths,
            steps=steps,
            sampler=sampler,
            eta=eta,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
            jit_compile=jit_compile,
        )

    @contextlib.contextmanager
    def averaged_weights(self):
        """Context in which the weights are the optimizer's averages (EMA), if it keeps any."""
        optimizer = innermost_optimizer(self)
        # There are no averages before the first step.
        unavailable = not averages(optimizer) or int(optimizer.iterations) == 0
        if unavailable or self._averages_final or self._averages_in_use:
            yield
            return
        trained = [ops.convert_to_numpy(v) for v in self.trainable_variables]
        optimizer.finalize_variable_values(self.trainable_variables)
        own_values(self.trainable_variables)
        self._averages_in_use = True
        try:
            yield
        finally:
            self._averages_in_use = False
            for variable, value in zip(self.trainable_variables, trained, strict=True):
                variable.assign(value)

    _averages_in_use = False
    _averages_final = False

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["seed_state"] = ops.convert_to_numpy(self._seed_generator.state)
        store["eval_seed_state"] = self._eval_seed

    def load_own_variables(self, store):
        own = {key: store[key] for key in store.keys() if not key.endswith("seed_state")}
        super().load_own_variables(own)
        self._seed_generator.state.assign(store["seed_state"])
        self._eval_seed = np.array(store["eval_seed_state"])
        self._averages_final = False

    def get_config(self):
        return {
            "name": self.name,
            "denoiser": keras.saving.serialize_keras_object(self.denoiser),
            "noise_schedule": self.noise_schedule.get_config(),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["denoiser"] = keras.saving.deserialize_keras_object(
            config["denoiser"], custom_objects=custom_objects
        )
        config["noise_schedule"] = NoiseSchedule.from_config(config["noise_schedule"])
        return cls(**config)


def _unpack(data):
    """Split a batch into `(x, lengths)`, with None for data without lengths."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if y is not None or sample_weight is not None:
        raise ValueError(
            "A DiffusionModel is trained on `x` alone; received targets or sample weights too. "
            "For sequences give a dictionary of 'points' and 'lengths'."
        )
    if isinstance(x, dict):
        return x["points"], x["lengths"]
    return x, None
