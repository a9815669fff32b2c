"""Methods: how the weights to drop and to grow are scored.

A method is a small class. To add one, subclass `SparsityMethod`, override a score, register
it for serialization and pass it to `DynamicSparsity(method=...)`.
"""

import keras
from keras import ops


class SparsityMethod:
    """Base class of the methods: magnitude pruning, growth left to the subclass."""

    name = None

    def drop_score(self, weights):
        """Score of a kernel's active weights, not negative; the smallest are dropped."""
        return ops.abs(weights)

    def growth_score(self, weights, gradient, seed):
        """Score of a kernel's pruned weights, not negative; the largest are grown.

        Args:
            weights: The kernel.
            gradient: The dense gradient of the loss with respect to the kernel, from the
                same training step.
            seed: `keras.random.SeedGenerator` for methods that draw.
        """
        raise TypeError(f"{type(self).__name__} does not grow weights.")

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class Static(SparsityMethod):
    """Static-DM (paper, Algorithm 1): the masks drawn at the start stay."""

    name = "static"


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class RigL(SparsityMethod):
    """RigL-DM (paper, Algorithm 2; Evci et al. 2021): grows where the gradient is largest."""

    name = "rigl"

    def growth_score(self, weights, gradient, seed):
        return ops.abs(gradient)


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class MagRan(SparsityMethod):
    """MagRan-DM (paper, Algorithm 2): grows uniformly at random."""

    name = "magran"

    def growth_score(self, weights, gradient, seed):
        return keras.random.uniform(ops.shape(weights), seed=seed)


METHODS = {method.name: method for method in (RigL, MagRan, Static)}


def get_method(method):
    """Returns the method for a name, a class or an instance.

    Raises:
        ValueError: for anything else; the message lists the known names.
    """
    if isinstance(method, SparsityMethod):
        return method
    if isinstance(method, type) and issubclass(method, SparsityMethod):
        return method()
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]()
    raise ValueError(
        f"`method` must be one of {', '.join(map(repr, METHODS))} or a SparsityMethod; "
        f"received {method!r}."
    )
