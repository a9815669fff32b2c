"""Registry of the samplers: facts that need no Keras.

Another sampler is a function, as in `samplers.py`, and a line here.
"""

from typing import NamedTuple

from keras_sparse_dm.places import load_place


class SamplerFacts(NamedTuple):
    """Facts about a sampler, for generation, settings and costs.

    Attributes:
        place: Module and function, `"module:function"`.
        takes_steps: True for a function of `steps`; False for one that takes all timesteps.
        takes_eta: True for a function of `eta`, which adds noise where that is above 0.
        adds_noise: True for a sampler that always adds noise.
        evaluations_a_step: Evaluations of the network in each step.
    """

    place: str
    takes_steps: bool = True
    takes_eta: bool = False
    adds_noise: bool = False
    evaluations_a_step: int = 1

    def steps(self, steps, timesteps):
        """Return the number of steps where `steps` are asked for."""
        return steps if self.takes_steps else timesteps

    def evaluations(self, steps, timesteps):
        """Return the number of evaluations of the network for a sample."""
        return self.evaluations_a_step * self.steps(steps, timesteps)

    def is_noiseless(self, eta):
        """Return True if the sampler adds no noise with an `eta`."""
        return not (self.adds_noise or (self.takes_eta and eta))

    def arguments(self, steps, eta):
        """Return the arguments that the function takes, of these two."""
        return ({"steps": steps} if self.takes_steps else {}) | (
            {"eta": eta} if self.takes_eta else {}
        )


_OURS = "keras_sparse_dm.diffusion.samplers"
SAMPLERS = {
    "ddim": SamplerFacts(f"{_OURS}:ddim", takes_eta=True),
    "ddpm": SamplerFacts(f"{_OURS}:ddpm", takes_steps=False, adds_noise=True),
}


def load_sampler(name):
    """Return the function of a sampler."""
    return load_place(SAMPLERS[name].place)
