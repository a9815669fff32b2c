"""Copies of a model that share its variables, to trace in another form than the model's own."""

import types

import keras

from keras_sparse_dm._keras import is_graph_node


def shared_copy(model):
    """Return a copy of a model or layer that computes with the same variables.

    Every layer of the copy is a new object of the same class, so that one may replace its
    methods and attributes and leave the user's layers alone. Variables, and all objects that
    are no layers, are those of the model. Give the copy no new layers and variables: Keras would
    add them to the model's.

    Layers are found in attributes, in lists, tuples, sets and dictionaries there, and behind
    bound methods. A layer that only a closure or an object of another class holds is not copied:
    the copy calls the original.

    Args:
        model: A `keras.Model` or layer.

    Returns:
        `(copy, {original layer: its copy})`, the dictionary with `model` itself.
    """
    copies, memo = {}, {}

    def copied(value):
        if isinstance(value, keras.Variable):
            return value
        if id(value) in memo:
            return memo[id(value)][0]
        if isinstance(value, keras.layers.Layer) or is_graph_node(value):
            new = object.__new__(type(value))
            # Keep the value too, so that no other object gets its `id`.
            memo[id(value)] = new, value
            if isinstance(value, keras.layers.Layer):
                copies[value] = new
                attributes = {name: copied(held) for name, held in vars(value).items()}
            else:
                attributes = vars(value) | {"operation": copied(value.operation)}
            # Keras and TensorFlow would track what is assigned.
            object.__setattr__(new, "__dict__", attributes)
            return new
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, copied(value.__self__))
        if isinstance(value, tuple):
            items = [copied(item) for item in value]
            if all(item is held for item, held in zip(items, value, strict=True)):
                return value
            return tuple(items) if type(value) is tuple else type(value)(*items)
        if isinstance(value, set):
            return {copied(item) for item in value}
        if isinstance(value, dict):
            memo[id(value)] = new, _ = {}, value
            new.update((key, copied(item)) for key, item in value.items())
            return new
        if isinstance(value, list):
            memo[id(value)] = new, _ = [], value
            new.extend(map(copied, value))
            return new
        return value

    return copied(model), copies
