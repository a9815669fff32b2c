"""Generation of samples in batches, compiled and side by side in threads where that pays."""

import functools
import os
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import keras
import numpy as np
from keras import ops
from loky import cpu_count
from tqdm import tqdm

from keras_sparse_dm.checks import one_of, whole_number
from keras_sparse_dm.diffusion.registry import SAMPLERS, load_sampler
from keras_sparse_dm.lazy import lazy_module

tf = lazy_module("tensorflow")

# Floating-point operations of a sampling from which XLA saves more time than it takes to compile.
WORTH_COMPILING = 1e12
# Sketches in a thread's batch. Smaller batches hardly repay the overhead of each step; larger ones
# gain nothing, and their sketches differ more in length.
LEAST_SKETCHES_A_THREAD, MOST_SKETCHES_A_THREAD = 32, 112
# Compiled programs are made for lengths that are multiples of this.
LENGTH_STEP = 32


def generate(model, shape, lengths, steps, sampler, eta, seed, batch_size, progress, jit_compile):
    """Sample from noise with a `DiffusionModel`; `DiffusionModel.generate` has the arguments."""
    one_of("`sampler`", sampler, SAMPLERS)
    facts = SAMPLERS[sampler]
    if (shape is None) == (lengths is None):
        raise ValueError("Give one of `shape` and `lengths`, not both and not neither.")
    if lengths is not None:
        lengths, shape = _lengths_and_shape(model.denoiser, lengths)
    batch_size = whole_number("`batch_size`", batch_size, 1)
    if jit_compile not in (True, False, "auto"):
        raise ValueError(f'`jit_compile` must be True, False or "auto"; received {jit_compile!r}.')
    if seed is None:
        seed = int(keras.random.randint((), 0, 2**31 - 1))
    noiseless = facts.is_noiseless(eta)
    if keras.backend.backend() != "tensorflow":
        # JAX always compiles; PyTorch never does.
        jit_compile = False
    elif jit_compile == "auto":
        jit_compile = noiseless and _worth_compiling(model.denoiser, lengths, steps)
    # Threads cannot share the random generator of a sampler that adds noise.
    side_by_side = jit_compile and noiseless and lengths is not None
    workers = 1
    if side_by_side:
        workers, batch_size = _batches_side_by_side(len(lengths), batch_size)
    noise = ops.convert_to_numpy(keras.random.normal(shape, seed=seed))
    samples = np.zeros(shape, "float32")
    denoise = _denoise_function(model.denoiser)
    sample = functools.partial(load_sampler(sampler), **facts.arguments(steps, eta))
    # Sketches of similar length share a batch, which is as long as its longest sketch.
    order = np.arange(shape[0]) if lengths is None else np.argsort(lengths, kind="stable")
    sampler_steps = facts.steps(steps, model.noise_schedule.timesteps)
    bar = tqdm(total=shape[0] * sampler_steps, desc="Sampling", unit=" steps", disable=not progress)
    stopped = threading.Event()

    def sample_batch(begin):
        chosen = order[begin : begin + batch_size]
        number = len(chosen)
        if side_by_side:
            # Batches of one shape share one compiled program; the last one repeats sketches.
            chosen = np.resize(chosen, batch_size)

        def on_progress(steps):
            if stopped.is_set():
                raise RuntimeError("Sampling was stopped.")
            bar.update(steps * number)

        part, context = noise[chosen], ()
        if lengths is not None:
            context = (lengths[chosen],)
            length = lengths[chosen].max()
            if side_by_side or keras.backend.backend() == "jax":
                # A rounded length, so that the next call usually finds its program compiled.
                length = -(-shape[1] // LENGTH_STEP) * LENGTH_STEP
                part = np.pad(part, ((0, 0), (0, length - shape[1]), (0, 0)))
            part = part[:, :length]
        part = sample(
            denoise,
            model.noise_schedule,
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
    with model.averaged_weights(), bar:
        if workers == 1:
            for begin in batches:
                sample_batch(begin)
        else:
            _in_threads(sample_batch, batches, workers, stopped)
    if lengths is not None:
        samples[np.arange(shape[1])[None] >= lengths[:, None]] = 0.0
    return samples


def _lengths_and_shape(denoiser, lengths):
    """Return lengths as an int32 array, and the shape (n, longest, features) of the samples."""
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not len(lengths) or lengths.min() < 1:
        raise ValueError(f"`lengths` must be numbers of points, 1 or more; received {lengths}.")
    features = getattr(denoiser, "point_features", None)
    if features is None:
        raise ValueError(
            "`lengths` needs a denoiser of sequences, whose attribute `point_features` is the "
            f"number of features of a point; {type(denoiser).__name__} has none."
        )
    lengths = lengths.astype("int32")
    return lengths, (len(lengths), int(lengths.max()), features)


def _worth_compiling(denoiser, lengths, steps):
    """Tell whether XLA saves more time than it takes to compile."""
    if lengths is None or denoiser.compute_dtype != "float32":
        return False
    if not getattr(denoiser, "skips_padding", False):
        return False
    operations = 2.0 * denoiser.count_params() * float(lengths.sum()) * steps
    return operations >= WORTH_COMPILING


def _denoise_function(denoiser):
    """Return a denoiser as the samplers call it.

    Keeps one function per denoiser, because the samplers keep their compiled loops on it.
    """

    def denoise(x, t, *context):
        return denoiser((x, t, *context), training=False)

    # A compiled loop on JAX reads these.
    denoise.variables = lambda: denoiser.variables
    return vars(denoiser).setdefault("_denoise_function", denoise)


def _batches_side_by_side(number, batch_size):
    """Divide sketches into batches that run side by side in threads.

    Args:
        number: Number of sketches.
        batch_size: Most sketches to sample at a time, in all threads together.

    Returns:
        `(threads, size)`: numbers of threads, and of sketches in each batch.
    """
    # The number of threads that TensorFlow computes with.
    allowed = tf.config.threading.get_intra_op_parallelism_threads() or int(
        os.environ.get("TF_NUM_INTRAOP_THREADS") or 0
    )
    threads = min(allowed or cpu_count(), max(1, batch_size // LEAST_SKETCHES_A_THREAD))
    most = min(batch_size // threads, MOST_SKETCHES_A_THREAD)
    # Every thread gets the same number of batches, all of one size and as full as possible.
    batches = -(-number // (most * threads)) * threads
    size = -(-number // batches)
    return threads, size


def _in_threads(function, arguments, workers, stopped):
    """Call a function for each argument in threads, and set `stopped` when one call fails."""
    with ThreadPoolExecutor(workers) as pool:
        # The longest batches, which come last, go first, so that no core waits for one at the end.
        futures = [pool.submit(function, argument) for argument in reversed(arguments)]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
