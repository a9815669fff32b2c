"""`DiffusionModel`: trains a denoiser with `fit`."""

import contextlib
import functools
import os
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from loky import cpu_count
from tqdm import tqdm

from keras_sparse_dm._keras import averages, has_compiled_loss
from keras_sparse_dm.diffusion.noise_schedule import NoiseSchedule, check_timesteps
from keras_sparse_dm.diffusion.samplers import ddim, ddpm
from keras_sparse_dm.seeds import seed_generator
from keras_sparse_dm.sparsity.install import build_optimizer, innermost_optimizer

SAMPLERS = ("ddim", "ddpm")
# Multiplications and additions of a sampling from which XLA's gain exceeds its compilation.
WORTH_COMPILING = 1e12
# Sketches of a thread's batch. Fewer than the least hardly repay what every step costs by itself;
# more than the most gain nothing, and differ more in length.
LEAST_SKETCHES_A_THREAD, MOST_SKETCHES_A_THREAD = 32, 112
# Lengths that compiled programs are made for are multiples of this.
LENGTH_STEP = 32


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class DiffusionModel(keras.Model):
    """A denoiser and its noise schedule, trained to predict the noise (paper, Algorithm 1).

    Each training step draws a timestep and noise for every example, and minimizes the mean
    squared error of the predicted noise: the mean over features, then over each sketch's own
    points, then over sketches. Compile it with an optimizer alone. A sparse denoiser needs
    the `DynamicSparsity` callback; without it training raises rather than go on densely.

    Args:
        denoiser: Built `keras.Model` with `denoiser((x, t)) -> epsilon`, or, for sequences,
            `denoiser((x, t, lengths)) -> epsilon`.
        noise_schedule: `NoiseSchedule`.
        seed: Integer seed of the draws of timesteps and noise; None for a random one. The
            state is saved with the model.

    Data for `fit` and `evaluate`: float tensors `x` of shape (batch_size, ...), or for
    sequences dictionaries of `"points"` (batch_size, max_length, features) and `"lengths"`
    (batch_size,). `evaluate` makes the same draws at every call, so that its losses can be
    compared from epoch to epoch, given the same data in the same order; it uses averaged
    (EMA) weights where the optimizer keeps them, as `generate` does.

    Raises:
        ValueError: if the denoiser is not built or was made for another number of timesteps;
            from `fit` and `evaluate` for targets, sample weights, or a compiled loss.

    Example:

    >>> model = DiffusionModel(ChiroDiff(units=48, num_layers=2), NoiseSchedule.linear(1000))
    >>> sparsify(model, 0.5)
    >>> model.compile(keras.optimizers.AdamW(1e-3))
    >>> model.fit(batches, epochs=10, callbacks=[DynamicSparsity("rigl", update_every=800)])
    >>> points = model.generate(lengths=[60, 80], steps=50, seed=0)
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
        """Predicts the noise: `model((x, t))` or `model((x, t, lengths))`."""
        return self.denoiser(inputs, training=training)

    def diffuse(self, x, t, noise):
        """Noises data to timestep `t`: samples q(x_t | x_0) (Ho et al. 2020, equation 4).

        Args:
            x: Float tensor (batch_size, ...).
            t: Integer tensor (batch_size,), counting from 0.
            noise: Standard normal tensor of the shape of `x`.

        Raises:
            ValueError: for timesteps out of range.
        """
        check_timesteps(t, self.noise_schedule.timesteps)
        shape = (-1,) + (1,) * (len(x.shape) - 1)
        signal_scale = ops.reshape(ops.take(self._signal_scale, t), shape)
        noise_scale = ops.reshape(ops.take(self._noise_scale, t), shape)
        return signal_scale * x + noise_scale * noise

    def prepare(self, data, training):
        """Turns what `fit` and `evaluate` are given into what is diffused.

        Args:
            data: A batch as the data set holds it.
            training: Whether the batch is trained on.

        Returns:
            `(x, lengths)`: tensor (batch_size, ...), and lengths (batch_size,) or None.
        """
        return _unpack(data)

    def train_step(self, data):
        x, lengths = self.prepare(data, training=True)
        with tf.GradientTape() as tape:
            loss = self._noise_prediction_loss(x, lengths, self._seed_generator, training=True)
            # Regularizers of the denoiser's layers.
            total_loss = sum(self.losses, loss)
            scaled_loss = self.optimizer.scale_loss(total_loss)
        gradients = tape.gradient(scaled_loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return self._record(loss, x)

    def test_step(self, data):
        x, lengths = self.prepare(data, training=False)
        loss = self._noise_prediction_loss(x, lengths, self._eval_seed_generator, training=False)
        return self._record(loss, x)

    def _record(self, loss, x):
        """Add a batch's loss to the mean that Keras keeps, and return all the metrics."""
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        tracker.update_state(loss, sample_weight=ops.shape(x)[0])
        return self.get_metrics_result()

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        self._averages_final = False
        build_optimizer(self)
        history = super().fit(*args, **kwargs)
        # Keras ends training by moving the averages into the weights.
        self._averages_final = True
        return history

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args, **kwargs):
        self._averages_final = False
        return super().train_on_batch(*args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        with self.averaged_weights():
            return super().evaluate(*args, **kwargs)

    def reset_metrics(self):
        super().reset_metrics()
        # Every evaluation starts here, and so makes the draws of the one before.
        self._eval_seed_generator.state.assign(self._eval_seed)

    def _noise_prediction_loss(self, x, lengths, seed, training):
        if has_compiled_loss(self):
            raise ValueError(
                "A DiffusionModel has its own loss: compile it with an optimizer alone, without "
                "`loss` and `metrics`."
            )
        x = ops.cast(x, "float32")
        if lengths is not None:
            # Whatever fills up the shorter sketches, the loss must not see it.
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
        """Samples new data from noise, with averaged (EMA) weights where there are any.

        Args:
            shape: Shape of the samples with their number first, for data without lengths.
            lengths: Numbers of points of the sketches to draw, integers of shape (n,).
            steps: Number of DDIM steps, from 1 to T.
            sampler: `"ddim"` or `"ddpm"` (all timesteps).
            eta: Noise of DDIM, from 0 to 1.
            seed: Integer; the same seed gives the same samples, whatever the batch size
                where eta is 0.
            batch_size: Samples that are generated at a time.
            progress: Whether to show a progress bar.
            jit_compile: Whether XLA compiles the sampling, which takes seconds. Sketches by DDIM
                with `eta=0` are then sampled in smaller batches side by side, one on each
                core. `"auto"` does so where it pays: on a CPU, for so many sketches that it
                saves more than it takes. It changes no more than the rounding, except for the
                noise of `eta > 0` and of `"ddpm"`, which is drawn otherwise.

        Returns:
            NumPy array of the samples, float32, of shape `shape`, or (n, max(lengths),
            features) with zeros past each length.

        Raises:
            ValueError: for lengths below 1, both or neither of `shape` and `lengths`, an
                unknown sampler, steps or eta out of range, a `batch_size` below 1, or a
                `jit_compile` that is neither a boolean nor `"auto"`.
        """
        if sampler not in SAMPLERS:
            raise ValueError(f"`sampler` must be one of {SAMPLERS}; received {sampler!r}.")
        if (shape is None) == (lengths is None):
            raise ValueError("Give one of `shape` and `lengths`, not both and not neither.")
        if lengths is not None:
            lengths = np.asarray(lengths)
            if lengths.ndim != 1 or not len(lengths) or lengths.min() < 1:
                raise ValueError(f"`lengths` must be numbers of points, 1 or more; got {lengths}.")
            lengths = lengths.astype("int32")
            features = getattr(self.denoiser, "point_features", None)
            if features is None:
                raise ValueError(
                    "`lengths` need a denoiser of sequences, whose attribute `point_features` "
                    f"says how many numbers a point has; {type(self.denoiser).__name__} has none."
                )
            shape = (len(lengths), int(lengths.max()), features)
        if seed is None:
            seed = int(keras.random.randint((), 0, 2**31 - 1))
        if int(batch_size) != batch_size or batch_size < 1:
            raise ValueError(
                f"`batch_size` must be a whole number, 1 or more; received {batch_size!r}."
            )
        if jit_compile not in (True, False, "auto"):
            raise ValueError(
                f'`jit_compile` must be True, False or "auto"; received {jit_compile!r}.'
            )
        batch_size = int(batch_size)
        noiseless = sampler == "ddim" and eta == 0
        if jit_compile == "auto":
            jit_compile = noiseless and self._worth_compiling(lengths, steps)
        # Threads cannot share the generator that a sampler's noise comes from.
        side_by_side = jit_compile and noiseless and lengths is not None
        workers = 1
        if side_by_side:
            workers, batch_size = _batches_side_by_side(len(lengths), batch_size)
        noise = ops.convert_to_numpy(keras.random.normal(shape, seed=seed))
        samples = np.zeros(shape, "float32")
        denoise = _denoise_function(self.denoiser)
        sample = functools.partial(ddim, steps=steps, eta=eta) if sampler == "ddim" else ddpm
        # Sketches of like length share a batch, which is no longer than its longest.
        order = np.arange(shape[0]) if lengths is None else np.argsort(lengths, kind="stable")
        sampler_steps = steps if sampler == "ddim" else self.noise_schedule.timesteps
        bar = tqdm(
            total=shape[0] * sampler_steps, desc="Sampling", unit=" steps", disable=not progress
        )
        stopped = threading.Event()

        def sample_batch(begin):
            chosen = order[begin : begin + batch_size]
            number = len(chosen)
            if side_by_side:
                # All batches have one shape, so that one program serves them all.
                chosen = np.resize(chosen, batch_size)

            def on_progress(steps):
                if stopped.is_set():
                    raise RuntimeError("Sampling was stopped.")
                bar.update(steps * number)

            part, context = noise[chosen], ()
            if lengths is not None:
                context = (lengths[chosen],)
                length = lengths[chosen].max()
                if side_by_side:
                    # One that serves the next call too, as a rule.
                    length = -(-shape[1] // LENGTH_STEP) * LENGTH_STEP
                    part = np.pad(part, ((0, 0), (0, length - shape[1]), (0, 0)))
                part = part[:, :length]
            part = sample(
                denoise,
                self.noise_schedule,
                part,
                seed=seed + 1 + begin,
                context=context,
                on_progress=on_progress if progress or workers > 1 else None,
                jit_compile=jit_compile,
            )
            part = ops.convert_to_numpy(part)
            if lengths is None:
                samples[chosen] = part
            else:
                samples[chosen, : part.shape[1]] = part[:, : shape[1]]

        batches = range(0, shape[0], batch_size)
        with self.averaged_weights(), bar:
            if workers == 1:
                for begin in batches:
                    sample_batch(begin)
            else:
                _in_threads(sample_batch, batches, workers, stopped)
        if lengths is not None:
            samples[np.arange(shape[1])[None] >= lengths[:, None]] = 0.0
        return samples

    def _worth_compiling(self, lengths, steps):
        """Whether XLA saves more than it takes, where sketches of `lengths` are to be sampled."""
        if lengths is None or self.denoiser.compute_dtype != "float32":
            return False
        if not getattr(self.denoiser, "skips_padding", False):
            return False
        operations = 2.0 * self.denoiser.count_params() * float(lengths.sum()) * steps
        return operations >= WORTH_COMPILING

    @contextlib.contextmanager
    def averaged_weights(self):
        """Context in which the weights are the optimizer's averages (EMA), if it keeps any."""
        optimizer = innermost_optimizer(self)
        # Before the first step there are none yet.
        unavailable = not averages(optimizer) or int(optimizer.iterations) == 0
        if unavailable or self._averages_final or self._averages_in_use:
            yield
            return
        trained = [ops.convert_to_numpy(v) for v in self.trainable_variables]
        optimizer.finalize_variable_values(self.trainable_variables)
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


def _denoise_function(denoiser):
    """A denoiser as the samplers call it, always the same one, which keeps compiled loops."""

    def denoise(x, t, *context):
        return denoiser((x, t, *context), training=False)

    return vars(denoiser).setdefault("_denoise_function", denoise)


def _batches_side_by_side(number, batch_size):
    """How to sample `number` sketches, up to `batch_size` at a time.

    Returns:
        `(threads, size)`: how many batches run at a time, and how many sketches each holds.
    """
    # As many threads as TensorFlow computes with.
    allowed = tf.config.threading.get_intra_op_parallelism_threads() or int(
        os.environ.get("TF_NUM_INTRAOP_THREADS") or 0
    )
    threads = min(allowed or cpu_count(), max(1, batch_size // LEAST_SKETCHES_A_THREAD))
    most = min(batch_size // threads, MOST_SKETCHES_A_THREAD)
    # All threads get as many batches of one size, as nearly full as can be.
    batches = -(-number // (most * threads)) * threads
    size = -(-number // batches)
    return threads, size


def _in_threads(function, arguments, workers, stopped):
    """Calls a function for all arguments, and lets the calls see that one of them failed."""
    with ThreadPoolExecutor(workers) as pool:
        # The last, which are the longest, first: no core waits for another that began one last.
        futures = [pool.submit(function, argument) for argument in reversed(arguments)]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def _unpack(data):
    """Splits a batch into `(x, lengths)`; lengths are None for data without them."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if y is not None or sample_weight is not None:
        raise ValueError(
            "A DiffusionModel is trained on `x` alone; received targets or sample weights too. "
            "For sequences give a dictionary of 'points' and 'lengths'."
        )
    if isinstance(x, dict):
        return x["points"], x["lengths"]
    return x, None
