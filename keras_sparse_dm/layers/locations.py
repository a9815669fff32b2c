"""Locations of a model's layers, which are the same in every process.

Keras numbers unnamed layers again in each process (`dense_7` today, `dense_12` tomorrow). The
attribute that holds a layer does not change, so files of this package identify layers by it.
"""

import collections
import functools
import re

import keras

from keras_sparse_dm._keras import flatten_layers, graph_nodes

_NUMBERS = re.compile(r"_(\d+)(?=_|$)")


def locations(root):
    """Return `{location: layer}` of a layer and all its sublayers, each once.

    A location is the path from the root to the layer, with `/` between steps; the root's location
    is empty. In a functional or `Sequential` model, a step is the layer's name; names made by Keras
    are renumbered within the model, as in Keras's own files. In other layers, a step is the
    attribute that holds the sublayer, with the index or key in lists and dictionaries: `encoder`,
    `blocks/0`, `heads/key`. A layer with several locations gets the first of the shortest ones.
    Parents come before their sublayers.

    Args:
        root: A Keras model or layer.
    """
    missing = {id(layer) for layer in flatten_layers(root)} - {id(root)}
    found = {"": root}
    queue = collections.deque(found.items())
    while queue:
        location, layer = queue.popleft()
        for name, child in members(layer):
            # Attributes may also hold other layers, such as a parent.
            if id(child) in missing:
                missing.remove(id(child))
                place = unique_name(f"{location}/{name}" if location else name, found)
                found[place] = child
                queue.append((place, child))
    return found


def members(layer):
    """Yield `(name, object)` of a layer's members, named as in `locations`, with repetitions.

    Layers of a graph come first, then public attributes, private attributes, and Keras's own.
    """
    if holds_layers_by_name(layer):
        yield from _by_name(layer.layers)
    # `dir` would include properties, which may compute.
    attributes, internal = vars(layer), _attributes_of_every_layer()
    if keras.backend.backend() == "torch":
        # A layer is a `torch.nn.Module`, which keeps its sublayers apart.
        attributes = attributes | dict(layer.named_children())
    for name in sorted(attributes, key=lambda n: (n in internal, n.startswith("_"), n)):
        yield from _nested(name, attributes[name])


def holds_layers_by_name(layer):
    """Tell if a layer is a functional or `Sequential` model."""
    return isinstance(layer, keras.Sequential) or graph_nodes(layer) is not None


def split_numbers(name):
    """Split a name such as `block_12_conv_3` into `("block_conv", (12, 3))`."""
    return _NUMBERS.sub("", name), tuple(map(int, _NUMBERS.findall(name)))


def name_by_keras(layer):
    """Return a layer's name without its number if Keras may have made the name, else None."""
    # A layer that was turned sparse is named after its plain class.
    made = (_snake_case(cls.__name__) for cls in type(layer).__mro__)
    return next((name for name in made if re.fullmatch(rf"{name}(_\d+)?", layer.name)), None)


def match_paths(found, wanted):
    """Match the variable paths in a file to those of a newly built model.

    Keras numbers unnamed layers again in each process and puts the scope in which a model was built
    before its paths. Unless all paths are equal, this function compares them with numbers replaced
    by ranks among layers of the same name and place, and without the scope that all paths share.

    Args:
        found: Paths in the file, with steps separated by a slash.
        wanted: Paths of the model.

    Returns:
        `{wanted path: found path}`, or None unless each path has exactly one partner.
    """
    if set(found) == set(wanted):
        return {path: path for path in wanted}
    by_form = dict(zip(_forms(found), found, strict=True))
    forms = dict(zip(_forms(wanted), wanted, strict=True))
    if len(by_form) != len(found) or len(forms) != len(wanted) or set(forms) != set(by_form):
        return None
    return {path: by_form[form] for form, path in forms.items()}


def _forms(paths):
    """Return the paths without their scope and with ranks instead of Keras's numbers."""
    steps = [tuple(path.split("/")) for path in paths]
    # The last two steps are layer and variable, not scope.
    while steps and min(map(len, steps)) > 2 and len({s[0] for s in steps}) == 1:
        steps = [s[1:] for s in steps]
    numbers = collections.defaultdict(set)
    for path in steps:
        for depth, step in enumerate(path):
            base, number = split_numbers(step)
            numbers[path[:depth], base].add(number)
    return [
        tuple(
            (base, sorted(numbers[path[:depth], base]).index(number))
            for depth, step in enumerate(path)
            for base, number in [split_numbers(step)]
        )
        for path in steps
    ]


def unique_name(name, taken):
    """Return a name, followed by a number if it is already taken."""
    unique, number = name, 0
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique


def _by_name(layers):
    names = {}
    for layer in layers:
        names[unique_name(name_by_keras(layer) or layer.name, names)] = layer
    return names.items()


def _nested(name, value):
    yield name, value
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    elif isinstance(value, (set, frozenset)):
        # The order of a set differs between processes.
        parts = enumerate(sorted(value, key=lambda v: split_numbers(str(getattr(v, "name", "")))))
    else:
        parts = ()
    for key, part in parts:
        yield from _nested(f"{name}/{key}", part)


@functools.cache
def _attributes_of_every_layer():
    # The sublayer makes Keras and TensorFlow create the lists in which they track sublayers.
    layer = keras.layers.Layer(name="any")
    layer.sublayer = keras.layers.Layer(name="any")
    return frozenset(vars(layer)) - {"sublayer"}


def _snake_case(name):
    # Keras derives layer names from class names in this way.
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
