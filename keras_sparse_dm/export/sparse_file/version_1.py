"""Loading of version 1 of the format, which identifies layers and variables by position."""

from keras_sparse_dm._keras import flatten_layers, own_seed_generators, own_variables
from keras_sparse_dm.export.sparse_file.layer_state import Stored
from keras_sparse_dm.export.sparse_file.optimizer_state import load_optimizers, own_variables_of


def load(model, content, arrays):
    """Load weights, masks and state into a model that was rebuilt from the file's configuration.

    Args:
        model: The `keras.Model`.
        content: The file's content.
        arrays: `{name: array}`, which reads an array when it is accessed.
    """
    _load_layers(model, content["layers"], arrays)
    load_optimizers(model, content["optimizers"], arrays, _numbered)


def _load_layers(model, records, arrays):
    layers = flatten_layers(model)
    for record in records:
        position, names = record["position"], dict(record["arrays"])
        if position >= len(layers):
            raise ValueError(f"layer {record['name']!r} is missing")
        layer = layers[position]
        for i, generator in enumerate(own_seed_generators(layer)):
            generator.state.assign(arrays[names.pop(f"seed_{i}")])
        if names:
            layer.load_own_variables(Stored(names, arrays))
    filled = {record["position"] for record in records}
    for position, layer in enumerate(layers):
        if position not in filled and own_variables(layer):
            raise ValueError(f"there is nothing for layer {layer.name!r}")


def _numbered(optimizer):
    return {str(i): variable for i, variable in enumerate(own_variables_of(optimizer))}
