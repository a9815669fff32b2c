"""Sparse-to-sparse training of diffusion models in Keras 3.

The whole public surface is reachable from here and loads on first use, so that
``import keras_sparse_dm as ksd`` is quick and pulls in nothing that is not used.
"""

import lazy_loader as _lazy
import wrapt as _wrapt

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules={
        "convert",
        "data",
        "diffusion",
        "experiments",
        "layers",
        "metrics",
        "models",
        "sparsity",
    },
    submod_attrs={
        "sparsity": ["DynamicSparsity", "sparse_optimizer", "sparsify", "sparsity_report"],
    },
)
__all__ = [*__all__, "__version__"]


@_wrapt.when_imported("keras")
def _register_saved_classes(keras):
    """Makes what saved models consist of known to Keras, which then needs no `custom_objects`.

    Runs when Keras is there, before or after this package, and not without it.
    """
    import keras_sparse_dm.layers
    import keras_sparse_dm.models.chirodiff
    import keras_sparse_dm.sparsity.optimizer

    if keras.config.backend() == "tensorflow":
        import keras_sparse_dm.diffusion.model  # noqa: F401
