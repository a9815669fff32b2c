"""Layers as a file holds them, each by itself: `{key: array}`."""

from collections.abc import Mapping

from keras_sparse_dm._keras import own_seed_generators
from keras_sparse_dm.layers.locations import members


def layer_arrays(layer):
    """Return `{key: variable or array}` of a layer without its sublayers."""
    stored = {}
    layer.save_own_variables(stored)
    return stored | seeds(layer)


def seeds(layer):
    """Return `{key: state of a random generator}` of a layer without its sublayers.

    Keras leaves these out, but what they draw next is part of where training stands.
    """
    generators = own_seed_generators(layer)
    missing, found = {id(generator) for generator in generators}, {}
    for name, value in members(layer) if generators else ():
        if id(value) in missing:
            missing.remove(id(value))
            found[f"seed:{name}"] = value.state
    return found


class Stored(Mapping):
    """A layer's or an optimizer's part of a file, as it reads it back.

    Args:
        names: `{key: name of the array}`.
        arrays: `{name: array}`, read when it is asked for.
    """

    def __init__(self, names, arrays):
        self._names = names
        self._arrays = arrays

    def __getitem__(self, key):
        return self._arrays[self._names[key]]

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)
