"""Samplers: short functions from noise to data.

`denoise` predicts the noise: `denoise(x, t, *context) -> epsilon`, with an integer tensor `t`
(batch_size,) that counts from 0. The whole loop of a sampler is one graph, compiled once per
denoiser and shape. So pass the same function every time rather than a new lambda, and pass what
changes between calls (lengths, conditions) as `context`.
"""

import threading

import keras
import numpy as np
from keras import ops

from keras_sparse_dm.compiled import compiled

# Number of calls of `on_progress` for one batch.
PROGRESS_PARTS = 20
_making_loops = threading.Lock()


def ddim(
    denoise,
    noise_schedule,
    x_T,
    steps,
    eta=0.0,
    seed=None,
    context=(),
    on_progress=None,
    jit_compile=False,
):
    """Denoising diffusion implicit sampling (Song et al. 2021, equation 12).

    Args:
        denoise: `denoise(x, t, *context) -> epsilon`, of the shape of `x`.
        noise_schedule: The `NoiseSchedule` that the denoiser was trained with.
        x_T: Noise to start from, float tensor (batch_size, ...).
        steps: Number of steps, from 1 to the schedule's T.
        eta: From 0 (deterministic) to 1 (as much noise as DDPM).
        seed: Integer seed of the noise that `eta > 0` adds; None for a random one.
        context: Tuple of tensors to pass to `denoise` unchanged.
        on_progress: `on_progress(steps)`, called from time to time with the number of steps since
            the last call. The samples are bitwise the same with or without it.
        jit_compile: Whether XLA compiles the loop (TensorFlow only), which takes seconds for every
            new shape. The samples differ by rounding only, unless `eta > 0` adds noise, which XLA
            draws differently.

    Returns:
        Float tensor of the shape of `x_T`.

    Raises:
        ValueError: for `steps` outside 1..T or `eta` outside [0, 1].

    Example:

    >>> def denoise(x, t):
    ...     return 0.1 * x  # the noise in x, as a network predicts it
    >>> noise = keras.random.normal((2, 8, 3))
    >>> ddim(denoise, NoiseSchedule.linear(1000), noise, steps=10).shape
    TensorShape([2, 8, 3])
    """
    t, factors = ddim_factors(noise_schedule, steps, eta)
    return _sample(denoise, t, factors, x_T, seed, context, on_progress, jit_compile)


def ddpm(denoise, noise_schedule, x_T, seed=None, context=(), on_progress=None, jit_compile=False):
    """Ancestral sampling through all timesteps (Ho et al. 2020, algorithm 2).

    The noise has the variance of the posterior, `beta_t (1 - abar_{t-1}) / (1 - abar_t)`.

    Args:
        denoise, noise_schedule, x_T, seed, context, on_progress, jit_compile: As in `ddim`.

    Returns:
        Float tensor of the shape of `x_T`.

    Example:

    >>> def denoise(x, t):
    ...     return 0.1 * x  # the noise in x, as a network predicts it
    >>> noise = keras.random.normal((2, 8, 3))
    >>> ddpm(denoise, NoiseSchedule.linear(10), noise, seed=0).shape
    TensorShape([2, 8, 3])
    """
    beta, alpha_cumprod = noise_schedule.betas, noise_schedule.alphas_cumprod
    previous = np.append(1.0, alpha_cumprod[:-1])
    factors = np.stack(
        [
            1 / np.sqrt(1 - beta),
            -beta / np.sqrt((1 - beta) * (1 - alpha_cumprod)),
            np.sqrt(beta * (1 - previous) / (1 - alpha_cumprod)),
        ]
    )
    return _sample(
        denoise, np.arange(len(beta)), factors, x_T, seed, context, on_progress, jit_compile
    )


def ddim_factors(noise_schedule, steps, eta=0.0):
    """Return the factors of the steps of `ddim`, each of which is `x = a x + b epsilon + c noise`.

    Args:
        noise_schedule, steps, eta: As in `ddim`.

    Returns:
        `(t, factors)`: ascending timesteps, integers (steps,), and the factors a, b and c of each,
        float64 (3, steps). Sampling goes from the last to the first.

    Raises:
        ValueError: for `steps` outside 1..T or `eta` outside [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"`eta` must be in [0, 1]; received {eta}.")
    t = ddim_timesteps(noise_schedule.timesteps, steps)
    alpha = noise_schedule.alphas_cumprod[t]
    # The last step ends at the schedule's first alpha, not at 1, as in latent diffusion.
    alpha_prev = np.append(noise_schedule.alphas_cumprod[0], alpha[:-1])
    sigma = eta * np.sqrt((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev))
    factors = np.stack(
        [
            np.sqrt(alpha_prev / alpha),
            np.sqrt(1 - alpha_prev - sigma**2) - np.sqrt(alpha_prev * (1 - alpha) / alpha),
            sigma,
        ]
    )
    return t, factors


def ddim_timesteps(timesteps, steps):
    """Return the timesteps that `ddim` visits, ascending.

    They are evenly spaced and shifted by one, and equal those of latent diffusion if `steps`
    divides T.

    Args:
        timesteps: The schedule's T.
        steps: Number of steps.

    Returns:
        Integer array (steps,).

    Raises:
        ValueError: if `steps` is not a whole number from 1 to `timesteps`.

    Example:

    >>> ddim_timesteps(1000, steps=4)
    array([  1, 251, 501, 751])
    """
    if int(steps) != steps or not 1 <= steps <= timesteps:
        raise ValueError(
            f"`steps` must be a whole number from 1 to {timesteps}, the number of timesteps; "
            f"received {steps!r}."
        )
    return np.minimum(np.arange(steps) * timesteps // steps + (steps < timesteps), timesteps - 1)


def _sample(denoise, timesteps, factors, x_T, seed, context, on_progress, jit_compile):
    # Samples stay in full precision, whatever the denoiser computes in.
    x_T = ops.cast(ops.convert_to_tensor(x_T), "float32")
    noisy = bool(np.any(factors[2]))
    context = tuple(ops.convert_to_tensor(tensor) for tensor in context)
    ranks = tuple(len(tensor.shape) for tensor in (x_T, *context))
    loop, generator = _sampling_loop(denoise, noisy, ranks, bool(jit_compile))
    if noisy:
        if seed is None:
            seed = int(keras.random.randint((), 0, 2**31 - 1))
        generator.state.assign(np.array([seed, 0], dtype="int64"))
    steps = len(timesteps)
    parts = 1 if on_progress is None else min(PROGRESS_PARTS, steps)
    timesteps = ops.convert_to_tensor(timesteps, "int32")
    factors = ops.convert_to_tensor(factors, x_T.dtype)
    x = x_T
    # The loop goes from the last timestep to the first, and so do its parts.
    for part in reversed(np.array_split(np.arange(steps, dtype="int32"), parts)):
        bounds = ops.convert_to_tensor([part[0], part[-1] + 1])
        x = loop(x, timesteps, factors, bounds, context)
        if on_progress is not None:
            on_progress(len(part))
    return x


def _sampling_loop(denoise, noisy, ranks, jit_compile):
    """Return the loop for a denoiser and its seed generator, new at the first call.

    Keeps them as an attribute of the denoiser (of its object for a method), so that they live as
    long as the denoiser.
    """
    owner = getattr(denoise, "__self__", denoise)
    loops = vars(owner).setdefault("_sampling_loops", {}) if hasattr(owner, "__dict__") else {}
    key = (getattr(denoise, "__name__", ""), noisy, ranks, jit_compile)
    # Threads that sample with one denoiser share one compiled loop.
    with _making_loops:
        if key not in loops:
            loops[key] = _make_sampling_loop(denoise, noisy, jit_compile)
    return loops[key]


def _normal_like(x, generator, state):
    """Return standard normal noise, and `[state]` of the generator after it, or [] for [].

    Without a given state, the generator uses its own.
    """
    shape = ops.shape(x)
    if not state:
        return keras.random.normal(shape, dtype=x.dtype, seed=generator), []
    with keras.StatelessScope(state_mapping=[(generator.state, state[0])]) as scope:
        noise = keras.random.normal(shape, dtype=x.dtype, seed=generator)
    return noise, [scope.get_current_value(generator.state)]


def _make_sampling_loop(denoise, noisy, jit_compile):
    generator = keras.random.SeedGenerator(0) if noisy else None

    def loop(x_T, timesteps, factors, bounds, context):
        def step(i, carried):
            x, *state = carried
            # With `[i]`, XLA would compile once for every position of the slice.
            i = bounds[0] + bounds[1] - 1 - i
            t = ops.broadcast_to(ops.take(timesteps, i), (ops.shape(x)[0],))
            a, b, c = ops.unstack(ops.take(factors, i, axis=1), 3)
            epsilon = ops.cast(denoise(x, t, *context), x.dtype)
            next_x = a * x + b * epsilon
            if noisy:
                noise, state = _normal_like(x, generator, state)
                next_x = next_x + c * noise
            # The static shape of a loop variable must not change.
            return (ops.reshape(next_x, ops.shape(x)), *state)

        # A loop of JAX assigns no variables, so it carries the generator's state.
        carries = noisy and keras.backend.backend() == "jax"
        state = [ops.convert_to_tensor(generator.state)] if carries else []
        x, *state = ops.fori_loop(bounds[0], bounds[1], step, (x_T, *state))
        if carries:
            generator.state.assign(state[0])
        return x

    variables = getattr(denoise, "variables", None)
    if keras.backend.backend() == "jax" and variables is None:
        # Nobody knows which variables a function reads, so its loop is compiled for each call.
        return loop, generator
    assigned = [generator.state] if noisy else []
    options = {"reduce_retracing": True, "jit_compile": jit_compile or None}
    return compiled(loop, variables, assigned, **options), generator
