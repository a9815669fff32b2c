"""Modules that load when one of their names is first used, so that what is not used never loads.

`tf = lazy_module("tensorflow")` stands where `import tensorflow as tf` would. The command line then
answers at once, other backends do not load TensorFlow, and an installation without an extra works
up to the point where it needs a package of the extra.
"""

import importlib

# Packages that the plain installation lacks, or that do not exist for all systems: the name that
# Python imports, the name on PyPI, and what to give to `pip install`.
_TRAIN = "'keras_sparse_dm[train]'"
OPTIONAL = {
    "PIL": ("pillow", _TRAIN),
    "ai_edge_litert": ("ai-edge-litert", "ai-edge-litert"),
    "filelock": ("filelock", _TRAIN),
    "kanjivg": ("kanjivg", _TRAIN),
    "matplotlib": ("matplotlib", _TRAIN),
    "platformdirs": ("platformdirs", _TRAIN),
    "shapely": ("shapely", _TRAIN),
    "skimage": ("scikit-image", _TRAIN),
    "sklearn": ("scikit-learn", _TRAIN),
    "svg": ("svg.path", _TRAIN),
    "tensorboard": ("tensorboard", _TRAIN),
    "tensorflow": ("tensorflow", "tensorflow"),
    "threadpoolctl": ("threadpoolctl", _TRAIN),
    "jax": ("jax", "'keras_sparse_dm[jax]'"),
    "torch": ("torch", "'keras_sparse_dm[convert]'"),
    "tyro": ("tyro", _TRAIN),
    "yaml": ("pyyaml", _TRAIN),
}


class MissingPackage(ModuleNotFoundError):
    """Error for a package that is not installed; the message tells how to install it."""


def lazy_module(name):
    """Return a module that loads when one of its names is first used, in any thread.

    Unlike `lazy_loader.load`, it does not put an unloaded module into `sys.modules`, where other
    packages look to see if TensorFlow is loaded.

    Args:
        name: Full name of the module, such as `"tensorflow"` or `"PIL.Image"`.

    Returns:
        An object with the attributes of the module. Using one raises `MissingPackage` if the
        module belongs to an optional package that is not installed.
    """
    return _LazyModule(name)


class _LazyModule:
    # No `types.ModuleType`, which takes ten times as long to find that it lacks a name.
    _loaded = None

    def __init__(self, name):
        self.__name__ = name

    def __getattr__(self, name):
        if self._loaded is None:
            # Looked up once: names are used in every step of an eager loop.
            self._loaded = load(self)
        return getattr(self._loaded, name)


def load(module):
    """Load a `lazy_module` now, and return the module itself.

    Raises:
        MissingPackage: if it belongs to an optional package that is not installed.
    """
    name = module.__name__
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if package not in OPTIONAL or error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingPackage(not_installed(package), name=error.name) from None


def not_installed(package):
    """Return the sentence that an optional package is missing, and how to install it."""
    title, target = OPTIONAL[package]
    return f"{title} is not installed; install it with: pip install {target}"
