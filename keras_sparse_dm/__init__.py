"""Sparse-to-sparse training of diffusion models in Keras 3.

All public names are attributes of this package and load on first use, so
``import keras_sparse_dm as ksd`` is quick.
"""

import importlib as _importlib
import pathlib as _pathlib
import sys as _sys

import lazy_loader as _lazy
import wrapt as _wrapt

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules={
        "convert",
        "data",
        "diffusion",
        "export",
        "layers",
        "metrics",
        "models",
        "runs",
        "sparsity",
        "study",
    },
    submod_attrs={
        "sparsity": [
            "DynamicSparsity",
            "sparse_optimizer",
            "sparsify",
            "sparsity_report",
            "to_plain",
        ],
    },
)
__all__ = [*__all__, "__version__"]


def _register_saved_classes(module):
    """Register the classes of saved models with Keras, which then needs no `custom_objects`.

    Runs once Keras and this package are both imported, in either order. If a module of this
    package imports Keras, that module is still incomplete, and this function runs again when its
    import ends.
    """
    if "keras" not in _sys.modules or _being_imported(except_for=module):
        return
    names = (
        "layers.in_place",
        "models.chirodiff.denoiser",
        "models.latent_diffusion",
        "sparsity.optimizer",
    )
    for name in names:
        _importlib.import_module(f"{__name__}.{name}")


def _being_imported(except_for):
    """Return True if the import of Keras or of another module of this package has not ended."""
    return any(
        getattr(module.__spec__, "_initializing", False)
        for name, module in _sys.modules.items()
        if name == "keras" or name.startswith(f"{__name__}.")
        if module is not except_for
    )


def _module_names():
    root = _pathlib.Path(__file__).parent
    for file in root.rglob("*.py"):
        parts = file.relative_to(root.parent).with_suffix("").parts
        if parts != (__name__, "__init__"):
            yield ".".join(parts).removesuffix(".__init__")


for _name in ("keras", *_module_names()):
    _wrapt.register_post_import_hook(_register_saved_classes, _name)
