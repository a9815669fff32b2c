"""The registry of samplers is all that generation, settings and costs know of them."""

import numpy as np

from keras_sparse_dm.diffusion import NoiseSchedule, registry, samplers


def half(denoise, noise_schedule, x_T, steps, seed=None, context=(), **how):
    return x_T / 2**steps


def test_a_registered_sampler_needs_nothing_else(monkeypatch):
    from keras_sparse_dm.diffusion import DiffusionModel
    from keras_sparse_dm.models import ChiroDiff

    monkeypatch.setattr(samplers, "half", half, raising=False)
    facts = registry.SamplerFacts("keras_sparse_dm.diffusion.samplers:half", evaluations_a_step=2)
    monkeypatch.setitem(registry.SAMPLERS, "half", facts)
    model = DiffusionModel(ChiroDiff(4, 1, timesteps=20, seed=0), NoiseSchedule.linear(20))
    one, three = (
        model.generate(lengths=[4, 4], steps=steps, sampler="half", seed=1) for steps in (1, 3)
    )
    np.testing.assert_allclose(three, one / 4)
    assert facts.evaluations(5, 20) == 10


def test_facts_of_our_samplers():
    ddim, ddpm = registry.SAMPLERS["ddim"], registry.SAMPLERS["ddpm"]
    assert ddim.evaluations(5, 20) == 5 and ddpm.evaluations(5, 20) == 20
    assert ddim.is_noiseless(0.0) and not ddim.is_noiseless(0.5) and not ddpm.is_noiseless(0.0)
    assert registry.load_sampler("ddpm") is samplers.ddpm
