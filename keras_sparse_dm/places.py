"""Places of functions and classes, as registries name them: `"package.module:name"`."""

import importlib


def load_place(place):
    """Import the module of a place, and return what the place names.

    Raises:
        ImportError: for a module that cannot be imported.
        AttributeError: for a module without that name.
    """
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
