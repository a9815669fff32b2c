"""Methods: how the weights to drop and to grow are scored.

A method is a small class. To add one, subclass `SparsityMethod`, override a score, register
it for serialization and pass it to `DynamicSparsity(method=...)`:

```python
@keras.saving.register_keras_serializable(package="my_package")
class GrowWhereWeightsAreLarge(SparsityMethod):
    name = "largest_neighbours"
    gradient = None

    def growth_score(self, weights, gradient, seed):
        rows = ops.mean(ops.abs(weights), axis=-1, keepdims=True)
        columns = ops.mean(ops.abs(weights), axis=-2, keepdims=True)
        return rows * columns
```

Scores are arrays of the kernel's shape, not negative. They are compared within a kernel, or
among all of them where growth competes globally.
"""

import keras
from keras import ops

from keras_sparse_dm.sparsity import registry


class SparsityMethod:
    """Base class of the methods: magnitude pruning, growth left to the subclass.

    Attributes:
        name: The method's name.
        dynamic: False for a method that never changes the masks.
        gradient: What `growth_score` gets as the dense gradient: `"step"`, that of the update's
            training step (or the mean over the steps before it, where that is asked for);
            `"momentum"`, a running mean over all steps; None, nothing. Memory and time are
            spent on what is asked for only.
        dense_to_sparse: True for a method that starts with full masks and prunes towards the
            densities that `sparsify(..., dense_start=True)` recorded. The schedule's value is
            then the model's sparsity, not the share that is exchanged.
        momentum: Decay of that running mean.
        single_weights: True for a method whose scores have no meaning for blocks of weights.
    """

    name = None
    dynamic = True
    gradient = "step"
    momentum = 0.9
    dense_to_sparse = False
    single_weights = False

    def drop_score(self, weights):
        """Score of a kernel's active weights, not negative; the smallest are dropped."""
        return ops.abs(weights)

    def drop_apart(self, weights):
        """Boolean arrays that part the weights, each to drop the same share; None for one part."""
        return None

    def growth_score(self, weights, gradient, seed):
        """Score of a kernel's pruned weights, not negative; the largest are grown.

        Args:
            weights: The kernel.
            gradient: The dense gradient of the loss with respect to the kernel, as
                `gradient` of the class says, or None.
            seed: Seed for methods that draw, as `keras.random` takes it.
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
    dynamic = False
    gradient = None


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
    gradient = None

    def growth_score(self, weights, gradient, seed):
        return keras.random.uniform(ops.shape(weights), seed=seed)


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class SET(MagRan):
    """SET (Mocanu et al. 2018): drops the smallest positive and the largest negative weights.

    The same share of each; grows uniformly at random.
    """

    name = "set"
    single_weights = True

    def drop_apart(self, weights):
        positive = weights > 0
        return [positive, ops.logical_not(positive)]


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class SNFS(SparsityMethod):
    """SNFS (Dettmers & Zettlemoyer 2019): grows where the gradient's momentum is largest.

    The momentum is a running mean of the dense gradient over all training steps: it costs
    memory and time of a dense model. With global competition, kernels with a large momentum
    also take weights over from the others, as that paper's redistribution is meant to.

    Args:
        momentum: Decay of the running mean, in [0, 1).

    Raises:
        ValueError: for a momentum outside [0, 1).
    """

    name = "snfs"
    gradient = "momentum"

    def __init__(self, momentum=0.9):
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"`momentum` must be in [0, 1); received {momentum}.")
        self.momentum = momentum

    def growth_score(self, weights, gradient, seed):
        return ops.abs(gradient)

    def get_config(self):
        return {"momentum": self.momentum}


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class GMP(SparsityMethod):
    """Gradual magnitude pruning (Zhu & Gupta 2017), the dense-to-sparse baseline.

    Starts from full masks (`sparsify(..., dense_start=True)`) and prunes the smallest weights
    at each update until each kernel has the density that `sparsify` recorded; nothing grows.
    Its schedule gives the sparsity at each step: a `PolynomialDecay`.
    """

    name = "gmp"
    gradient = None
    dense_to_sparse = True


def _known():
    return [name for name, facts in registry.METHODS.items() if facts.place]


def __getattr__(name):
    # Made late: a registered class may be in a module that imports this one.
    if name == "METHODS":
        return {name: registry.load_method(name) for name in _known()}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get_method(method):
    """Return the method for a name, a class, an instance or the text `"package.module:Class"`.

    Raises:
        ValueError: for anything else; the message lists the known names.
    """
    if isinstance(method, str) and (method in _known() or ":" in method):
        method = registry.load_method(method)
    if isinstance(method, SparsityMethod):
        return method
    if isinstance(method, type) and issubclass(method, SparsityMethod):
        return method()
    raise ValueError(
        f"`method` must be one of {', '.join(map(repr, _known()))} or a SparsityMethod; "
        f"received {method!r}."
    )
