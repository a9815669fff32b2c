"""State of single layers in a sparse checkpoint: `{key: array}`."""

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

    Keras does not save these, but resumed training must draw the same numbers.
    """
    generators = own_seed_generators(layer)
    missing, found = {id(generator) for generator in generators}, {}
    for name, value in members(layer) if generators else ():
        if id(value) in missing:
            missing.remove(id(value))
            found[f"seed:{name}"] = value.state
    return found


class Stored(Mapping):
    """Mapping from the keys of a layer or an optimizer to its arrays in a file.

    Args:
        names: `{key: name of the array}`.
        arrays: `{name: array}`, which reads an array when it is accessed.
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
