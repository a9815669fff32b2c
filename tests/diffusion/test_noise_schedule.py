import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keras_sparse_dm.diffusion import NoiseSchedule


@pytest.mark.parametrize(
    "schedule, program",
    [
        (NoiseSchedule.scaled_linear(1000, 0.0015, 0.0195), "ldm"),
        (NoiseSchedule.linear(1000, 1e-4, 2e-2), "chirodiff"),
    ],
    ids=["latent diffusion", "chirodiff"],
)
def test_equals_the_original_programs(reference, schedule, program):
    arrays = reference.arrays("schedules_and_ddim.npz")
    # The originals keep float32.
    np.testing.assert_allclose(schedule.betas, arrays[f"{program}_betas"], rtol=3e-7)
    np.testing.assert_allclose(
        schedule.alphas_cumprod, arrays[f"{program}_alphas_cumprod"], rtol=3e-6
    )


def test_defaults_are_those_of_the_papers():
    assert NoiseSchedule.linear(1000) == NoiseSchedule.linear(1000, 1e-4, 2e-2)
    assert NoiseSchedule.scaled_linear(1000) == NoiseSchedule.scaled_linear(1000, 0.0015, 0.0195)


@pytest.mark.parametrize("T", [1, 2, 50, 1000])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
def test_arrays_are_float64_of_length_T(kind, T):
    schedule = getattr(NoiseSchedule, kind)(T)
    for array in (schedule.betas, schedule.alphas_cumprod):
        assert array.shape == (T,)
        assert array.dtype == np.float64


def test_linear_is_linear_in_beta_and_scaled_linear_in_its_root():
    linear = NoiseSchedule.linear(7, 0.01, 0.4)
    step = (0.4 - 0.01) / 6
    np.testing.assert_allclose(linear.betas, [0.01 + i * step for i in range(7)], rtol=1e-12)
    scaled = NoiseSchedule.scaled_linear(7, 0.01, 0.4)
    step = (math.sqrt(0.4) - 0.1) / 6
    np.testing.assert_allclose(scaled.betas, [(0.1 + i * step) ** 2 for i in range(7)], rtol=1e-12)


@pytest.mark.parametrize("T", [1, 2, 10, 1000])
def test_cosine_follows_equation_17(T):
    def f(t):
        return math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2

    schedule = NoiseSchedule.cosine(T)
    wanted = [min(1 - f(t) / f(t - 1), 0.999) for t in range(1, T + 1)]
    np.testing.assert_allclose(schedule.betas, wanted, rtol=1e-9)
    # Before the last, clipped steps the product telescopes.
    free = schedule.betas < 0.999
    assert not free[-1]
    cumulative = np.array([f(t) / f(0) for t in range(1, T + 1)])
    np.testing.assert_allclose(schedule.alphas_cumprod[free], cumulative[free], rtol=1e-9)


@given(
    kind=st.sampled_from(["linear", "scaled_linear", "cosine"]),
    T=st.integers(1, 300),
    start=st.floats(1e-6, 0.5),
    end=st.floats(1e-6, 0.9),
)
@settings(max_examples=60, deadline=None)
def test_any_schedule_adds_noise_at_every_step(kind, T, start, end):
    assume(start <= end)
    arguments = () if kind == "cosine" else (start, end)
    schedule = getattr(NoiseSchedule, kind)(T, *arguments)
    assert ((schedule.betas > 0) & (schedule.betas < 1)).all()
    assert (np.diff(schedule.betas) >= -1e-15).all()
    alphas_cumprod = np.array([np.prod(1 - schedule.betas[: t + 1]) for t in range(T)])
    np.testing.assert_allclose(schedule.alphas_cumprod, alphas_cumprod, rtol=1e-9)
    assert ((schedule.alphas_cumprod > 0) & (schedule.alphas_cumprod < 1)).all()


@pytest.mark.parametrize(
    "make, received",
    [
        (lambda: NoiseSchedule("sigmoid", 10, 0.1, 0.2), "sigmoid"),
        (lambda: NoiseSchedule.linear(0), "0"),
        (lambda: NoiseSchedule.linear(-3), "-3"),
        (lambda: NoiseSchedule.cosine(2.5), "2.5"),
        (lambda: NoiseSchedule.linear(10, 0.0, 0.1), "0.0"),
        (lambda: NoiseSchedule.linear(10, 0.3, 0.1), "0.3"),
        (lambda: NoiseSchedule.scaled_linear(10, 0.1, 1.0), "1.0"),
        (lambda: NoiseSchedule.linear(10, -0.1, 0.1), "-0.1"),
        (lambda: NoiseSchedule.linear(10, math.nan, 0.1), "nan"),
        (lambda: NoiseSchedule("linear", 10), "None"),
    ],
)
def test_errors_say_what_was_received(make, received):
    with pytest.raises(ValueError, match=received):
        make()


def test_a_whole_float_counts_as_the_number_of_timesteps_or_is_refused_at_once():
    try:
        schedule = NoiseSchedule.linear(50.0)
    except (ValueError, TypeError):
        return
    np.testing.assert_array_equal(schedule.betas, NoiseSchedule.linear(50).betas)


def test_frozen_compares_and_hashes_by_value():
    schedule = NoiseSchedule.linear(50, 0.01, 0.2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.timesteps = 60
    assert schedule == NoiseSchedule.linear(50, 0.01, 0.2)
    assert hash(schedule) == hash(NoiseSchedule.linear(50, 0.01, 0.2))
    assert schedule != NoiseSchedule.linear(51, 0.01, 0.2)
    assert schedule != NoiseSchedule.scaled_linear(50, 0.01, 0.2)
    schedule.betas  # noqa: B018  values computed on demand must not change equality
    assert schedule == NoiseSchedule.linear(50, 0.01, 0.2)
    assert "linear" in repr(schedule) and "50" in repr(schedule)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
def test_config_survives_json(kind):
    schedule = getattr(NoiseSchedule, kind)(123)
    schedule.alphas_cumprod  # noqa: B018  nothing cached may enter the config
    again = NoiseSchedule.from_config(json.loads(json.dumps(schedule.get_config())))
    assert again == schedule
    np.testing.assert_array_equal(again.betas, schedule.betas)
