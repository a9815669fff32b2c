"""Selection of kernels by layer, name or pattern."""

import difflib
import fnmatch
import re
from collections.abc import Iterable

import keras

from keras_sparse_dm._keras import flatten_layers

_NAMES_SHOWN = 20


def matching(argument, model, variables, items, left_alone=None):
    """Return the set of names of the kernels that layers, names or patterns match.

    Layers of the model without kernels are allowed and match no kernel.

    Args:
        argument: Name of the argument, for errors.
        model: The `keras.Model`.
        variables: `{kernel name: variable}`.
        items: A layer, string or compiled regular expression, or an iterable of these.
        left_alone: Optional `{kernel name: reason}` of kernels that cannot be sparse; they are
            left out of the result.

    Raises:
        ValueError: for an item that matches nothing, or only kernels in `left_alone`.
    """
    if isinstance(items, (str, keras.layers.Layer, re.Pattern)) or not isinstance(items, Iterable):
        items = (items,)
    layers = flatten_layers(model)
    names = set()
    for item in items:
        held = []
        if isinstance(item, keras.layers.Layer):
            found, held = set(), [layer for layer in layers if layer is item]
        elif isinstance(item, re.Pattern):
            found = {name for name in variables if item.search(name)}
        elif isinstance(item, str):
            found = {n for n in variables if n == item or fnmatch.fnmatchcase(n, item)}
            held = [layer for layer in layers if fnmatch.fnmatchcase(layer.name, item)]
        else:
            raise ValueError(
                f"`{argument}` must name layers or kernels by layer, string or compiled regular "
                f"expression; received {item!r}."
            )
        inside = {id(v) for layer in held for v in layer.variables}
        found |= {name for name, variable in variables.items() if id(variable) in inside}
        if not found and not held:
            close = difflib.get_close_matches(str(item), variables, _NAMES_SHOWN, 0.3)
            names = variables if len(variables) <= _NAMES_SHOWN or not close else close
            raise ValueError(
                f"`{argument}` must list layers of the model, or names or patterns of its layers "
                f"or kernels; nothing matches {item!r}. Kernels: {listed(dict.fromkeys(names))}."
            )
        if left_alone and found and all(name in left_alone for name in found):
            reasons = {name: left_alone[name] for name in found}
            raise ValueError(
                f"`{argument}` must match kernels that can be sparse; {item!r} matches only "
                f"{listed(reasons)}."
            )
        names |= found - set(left_alone or ())
    return names


def listed(names):
    """Join names, each with its reason if it has one, into a text of limited length."""
    shown = [f"{name} ({why})" if why else name for name, why in names.items()][:_NAMES_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
