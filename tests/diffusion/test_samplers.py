import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_sparse_dm.diffusion import NoiseSchedule, ddim, ddim_timesteps, ddpm

LDM = NoiseSchedule.scaled_linear(1000, 0.0015, 0.0195)
SHORT = NoiseSchedule.linear(50, 1e-3, 0.2)


def new_tanh_denoiser():
    """Return a new copy of the epsilon function in `reference/README.md`."""

    def denoise(x, t):
        t = ops.cast(t, x.dtype)
        t = ops.reshape(t, (-1,) + (1,) * (len(x.shape) - 1))
        return ops.tanh(0.7 * x + ops.sin(t / 200))

    return denoise


# For data of two axes; the tests of other ranks make their own.
tanh_denoiser = new_tanh_denoiser()


def tanh_numpy(x, t):
    return np.tanh(0.7 * x + math.sin(t / 200))


def relative_error(mine, wanted):
    return np.abs(np.asarray(mine) - wanted).max() / np.abs(wanted).max()


# DDIM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [50, 100, 200])
def test_ddim_equals_latent_diffusion(reference, steps):
    arrays = reference.arrays("schedules_and_ddim.npz")
    timesteps = ddim_timesteps(1000, steps)
    np.testing.assert_array_equal(timesteps, arrays[f"ldm_ddim{steps}_timesteps"])
    np.testing.assert_allclose(
        LDM.alphas_cumprod[timesteps], arrays[f"ldm_ddim{steps}_alphas"], rtol=3e-6
    )
    x_0 = ddim(new_tanh_denoiser(), LDM, arrays["x_T_nchw"], steps)
    assert relative_error(x_0, arrays[f"ldm_ddim{steps}_x0_nchw"]) < 1e-5


def ddim_numpy(x, schedule, timesteps):
    """Song et al. 2021, equation 12 with sigma 0, as written there."""
    a = schedule.alphas_cumprod
    for i in reversed(range(len(timesteps))):
        now = a[timesteps[i]]
        before = a[timesteps[i - 1]] if i else a[0]
        epsilon = tanh_numpy(x, timesteps[i])
        x_0 = (x - math.sqrt(1 - now) * epsilon) / math.sqrt(now)
        x = math.sqrt(before) * x_0 + math.sqrt(1 - before) * epsilon
    return x


@pytest.mark.parametrize("steps", [1, 2, 7, 49, 50])
def test_ddim_equals_the_papers_equation_for_any_steps(steps):
    x_T = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    wanted = ddim_numpy(x_T.astype("float64"), SHORT, ddim_timesteps(50, steps))
    assert relative_error(ddim(tanh_denoiser, SHORT, x_T, steps), wanted) < 1e-5


@given(data=st.data(), timesteps=st.integers(1, 1500))
@settings(max_examples=150, deadline=None)
def test_any_number_of_steps_visits_distinct_ascending_timesteps(data, timesteps):
    steps = data.draw(st.integers(1, timesteps))
    visited = ddim_timesteps(timesteps, steps)
    assert visited.shape == (steps,)
    assert np.issubdtype(visited.dtype, np.integer)
    assert visited[0] >= 0 and visited[-1] <= timesteps - 1
    assert (np.diff(visited) >= 1).all()
    # Gaps differ by at most one.
    if steps > 1:
        assert np.ptp(np.diff(visited)) <= 1


def test_all_steps_visit_every_timestep():
    np.testing.assert_array_equal(ddim_timesteps(50, 50), np.arange(50))


@pytest.mark.parametrize("steps", [0, -1, 51, 2.5, math.inf])
def test_ddim_refuses_steps_out_of_range(steps):
    with pytest.raises((ValueError, OverflowError), match="inf" if steps == math.inf else "50"):
        ddim(tanh_denoiser, SHORT, np.zeros((1, 2), "float32"), steps)


@pytest.mark.parametrize("eta", [-0.1, math.nan])
def test_ddim_refuses_a_negative_eta(eta):
    with pytest.raises(ValueError, match="eta"):
        ddim(tanh_denoiser, SHORT, np.zeros((1, 2), "float32"), 5, eta=eta)


@pytest.mark.parametrize("eta", [1.0, 1.5, 2.0, 5.0])
def test_ddim_never_answers_nan_for_an_eta_that_it_accepts(eta):
    x_T = np.ones((2, 3), "float32")
    try:
        samples = np.asarray(ddim(tanh_denoiser, LDM, x_T, 50, eta=eta, seed=0))
    except ValueError as error:
        assert str(eta) in str(error) and eta > 1
        return
    assert np.isfinite(samples).all()


# Stochastic samplers: with Gaussian data the best denoiser is known, each step is linear in x
# and the noise, and so mean and variance of the samples follow exactly from the equations.

MEAN, DEVIATION = 0.7, 0.4


def best_epsilon(x, alpha_cumprod):
    """E[epsilon | x_t] for data from N(MEAN, DEVIATION^2)."""
    variance = alpha_cumprod * DEVIATION**2 + 1 - alpha_cumprod
    return (x - alpha_cumprod**0.5 * MEAN) * (1 - alpha_cumprod) ** 0.5 / variance


def gaussian_denoiser(schedule):
    def denoise(x, t):
        return best_epsilon(x, ops.take(schedule.alphas_cumprod.astype("float32"), t)[:, None])

    return denoise


def follow(step, timesteps):
    """Mean and variance after all steps; `step(x, i)` gives the next mean and sigma."""
    mean, variance = 0.0, 1.0
    for i in reversed(range(len(timesteps))):
        offset, sigma = step(0.0, i)
        slope = step(1.0, i)[0] - offset
        mean, variance = slope * mean + offset, slope**2 * variance + sigma**2
    return mean, variance


def ddim_step(schedule, timesteps, eta):
    a = schedule.alphas_cumprod

    def step(x, i):
        now, before = a[timesteps[i]], a[timesteps[i - 1]] if i else a[0]
        sigma = eta * math.sqrt((1 - before) / (1 - now)) * math.sqrt(1 - now / before)
        epsilon = best_epsilon(x, now)
        x_0 = (x - math.sqrt(1 - now) * epsilon) / math.sqrt(now)
        return math.sqrt(before) * x_0 + math.sqrt(1 - before - sigma**2) * epsilon, sigma

    return step


def ddpm_step(schedule):
    """Ho et al. 2020, algorithm 2, line 4."""
    beta, a = schedule.betas, schedule.alphas_cumprod

    def step(x, i):
        mean = (x - beta[i] / math.sqrt(1 - a[i]) * best_epsilon(x, a[i])) / math.sqrt(1 - beta[i])
        before = a[i - 1] if i else 1.0
        return mean, math.sqrt(beta[i] * (1 - before) / (1 - a[i]))

    return step


def assert_distributed(samples, mean, variance):
    samples = np.asarray(samples, "float64").ravel()
    n = len(samples)
    assert abs(samples.mean() - mean) < 5 * math.sqrt(variance / n)
    assert abs(samples.var() / variance - 1) < 5 * math.sqrt(2 / n)
    # Fourth moment: Gaussian, not only of the right width.
    kurtosis = ((samples - samples.mean()) ** 4).mean() / samples.var() ** 2
    assert abs(kurtosis - 3) < 5 * math.sqrt(24 / n)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_samples_have_the_mean_and_variance_of_its_equation(eta):
    denoise = gaussian_denoiser(SHORT)
    x_T = np.random.default_rng(1).standard_normal((40_000, 1)).astype("float32")
    samples = ddim(denoise, SHORT, x_T, 25, eta=eta, seed=3)
    assert_distributed(samples, *follow(ddim_step(SHORT, ddim_timesteps(50, 25), eta), range(25)))


def test_ddpm_samples_have_the_mean_and_variance_of_the_data():
    denoise = gaussian_denoiser(SHORT)
    x_T = np.random.default_rng(2).standard_normal((40_000, 1)).astype("float32")
    samples = ddpm(denoise, SHORT, x_T, seed=4)
    mean, variance = follow(ddpm_step(SHORT), range(50))
    assert_distributed(samples, mean, variance)
    # The recursion ends near the data.
    assert mean == pytest.approx(MEAN, abs=0.02)
    assert math.sqrt(variance) == pytest.approx(DEVIATION, abs=0.05)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_ddpm_equals_algorithm_2_step_by_step(monkeypatch, noise):
    # Constant noise makes the sampler deterministic, sigma included.
    monkeypatch.setattr(
        keras.random, "normal", lambda shape, *args, **kwargs: ops.full(shape, noise, "float32")
    )
    denoise = new_tanh_denoiser()
    x = np.linspace(-2, 2, 12).reshape(3, 4)
    mine = ddpm(denoise, SHORT, x.astype("float32"), seed=0)
    beta, a = SHORT.betas, SHORT.alphas_cumprod
    for t in reversed(range(50)):
        x = (x - beta[t] / math.sqrt(1 - a[t]) * tanh_numpy(x, t)) / math.sqrt(1 - beta[t])
        if t > 0:
            x = x + math.sqrt(beta[t] * (1 - a[t - 1]) / (1 - a[t])) * noise
    assert relative_error(mine, x) < 1e-5


def stochastic(name):
    return {
        "ddim": lambda seed: ddim(
            tanh_denoiser, SHORT, np.zeros((4, 3), "float32"), 10, eta=1.0, seed=seed
        ),
        "ddpm": lambda seed: ddpm(tanh_denoiser, SHORT, np.zeros((4, 3), "float32"), seed=seed),
    }[name]


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_the_seed_decides_the_noise(name):
    sample = stochastic(name)
    first = np.asarray(sample(5))
    np.testing.assert_array_equal(first, sample(5))
    assert np.abs(first - np.asarray(sample(6))).max() > 1e-3
    # The examples of a batch get different noise.
    assert len(np.unique(first.round(4))) == first.size
    # Without a seed every call differs.
    assert np.abs(np.asarray(sample(None)) - np.asarray(sample(None))).max() > 1e-3


def test_without_eta_the_seed_does_not_matter():
    x_T = np.ones((2, 3), "float32")
    a = np.asarray(ddim(tanh_denoiser, SHORT, x_T, 10, seed=1))
    np.testing.assert_array_equal(a, ddim(tanh_denoiser, SHORT, x_T, 10, seed=2))


# Compilation -----------------------------------------------------------------------------------


@pytest.mark.tensorflow
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_denoiser_is_traced_once_and_never_called_from_python(sampler):
    traced = []

    def denoise(x, t):
        traced.append((tuple(x.shape), tuple(t.shape), t.dtype))
        return 0.1 * x

    def sample(x_T, seed):
        if sampler == "ddim":
            return ddim(denoise, SHORT, x_T, 20, seed=seed)
        return ddpm(denoise, SHORT, x_T, seed=seed)

    random = np.random.default_rng(0)
    outputs = [sample(random.standard_normal((4, 3)).astype("float32"), i) for i in range(5)]
    assert len({np.asarray(o).tobytes() for o in outputs}) == 5
    assert 1 <= len(traced) <= 2
    shape, t_shape, dtype = traced[0]
    assert shape == (4, 3) and t_shape in ((4,), (None,))
    assert "int" in keras.backend.standardize_dtype(dtype)


def test_context_is_passed_on_and_may_change_between_calls():
    traced = []

    def denoise(x, t, scale, shift):
        traced.append(1)
        return scale[:, None] * x + shift

    schedule = NoiseSchedule.linear(10, 0.01, 0.2)
    x_T = np.ones((3, 2), "float32")

    def wanted(scale, shift):
        a, x = schedule.alphas_cumprod, x_T.astype("float64")
        for t in reversed(range(10)):
            before = a[t - 1] if t else a[0]
            epsilon = scale[:, None] * x + shift
            x_0 = (x - math.sqrt(1 - a[t]) * epsilon) / math.sqrt(a[t])
            x = math.sqrt(before) * x_0 + math.sqrt(1 - before) * epsilon
        return x

    for scale, shift in (([0.1, 0.2, 0.3], 0.0), ([0.5, -0.4, 0.0], 0.7)):
        scale, shift = np.array(scale, "float32"), np.float32(shift)
        mine = ddim(denoise, schedule, x_T, 10, context=(scale, shift))
        np.testing.assert_allclose(mine, wanted(scale, shift), rtol=1e-5, atol=1e-6)
    # PyTorch runs the loop, and compiles nothing.
    assert len(traced) <= 2 or keras.backend.backend() == "torch"


def test_weights_that_change_between_calls_are_seen():
    weight = keras.Variable(0.0)

    def denoise(x, t):
        return weight * x

    x_T = np.ones((1, 2), "float32")
    before = np.asarray(ddim(denoise, SHORT, x_T, 5))
    weight.assign(0.9)
    assert np.abs(np.asarray(ddim(denoise, SHORT, x_T, 5)) - before).max() > 1e-3


def test_one_denoiser_serves_data_of_any_rank():
    denoise = new_tanh_denoiser()
    random = np.random.default_rng(0)
    for shape in [(2, 4, 4, 3), (1, 1), (2, 5, 3), (3, 5, 3), (4, 2)]:
        x_T = random.standard_normal(shape).astype("float32")
        samples = ddim(denoise, SHORT, x_T, 5)
        assert tuple(samples.shape) == shape
        assert relative_error(samples, ddim_numpy(x_T, SHORT, ddim_timesteps(50, 5))) < 1e-5
