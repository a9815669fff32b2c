"""Matching of the records in a file to the layers of a rebuilt model.

Matches records and layers from the root down, never by their order. Among the sublayers of one
layer, the name decides if the user gave it and no other layer has it, ignoring numbers. Otherwise
the location decides, because Keras numbers layers again and may derive a name from another one. If
neither distinguishes two layers with certainty, the file is refused.
"""

import collections
import itertools

from keras_sparse_dm._keras import own_variables
from keras_sparse_dm.layers.locations import (
    holds_layers_by_name,
    locations,
    name_by_keras,
    split_numbers,
)


def path_of(layer):
    """Return a layer's path, or its name if it is not built or was renamed."""
    path = layer.path or ""
    return path if last(path) == layer.name else layer.name


def match(records, model):
    """Match the records of a file to the layers of a model.

    Args:
        records: `layers` of the file's content.
        model: The `keras.Model`.

    Returns:
        List of `(record, layer)` for the records that have arrays.

    Raises:
        ValueError: if a record has no layer, if a layer with variables has no record, or if two
            layers may have changed places.
    """
    by_location = {}
    for record in records:
        if by_location.setdefault(record["location"], record) is not record:
            raise ValueError(f"there are two records for layer {record['path']!r}")
    here = locations(model)
    theirs, ours = _by_parent(by_location), _by_parent(here)
    matched, todo = {}, [("", "")]
    while todo:
        there, location = todo.pop()
        matched[there] = here[location]
        todo += _matched_children(
            {step: (place, by_location[place]) for step, place in theirs[there].items()},
            {step: (place, here[place]) for step, place in ours[location].items()},
            holds_layers_by_name(here[location]),
        )
    full = [record for record in records if record["arrays"]]
    for record in full:
        if record["location"] not in matched:
            raise ValueError(f"layer {record['path']!r}, at {record['location']!r}, is missing")
    filled = {id(matched[record["location"]]) for record in full}
    for location, layer in here.items():
        if own_variables(layer) and id(layer) not in filled:
            raise ValueError(f"there is nothing for layer {path_of(layer)!r}, at {location!r}")
    return [(record, matched[record["location"]]) for record in full]


def check_names(pairs):
    """Check that names differ only in Keras's numbers, and that those are in the same order.

    Args:
        pairs: List of `(path in the file, path here)`; the last part of a path is the name.

    Raises:
        ValueError: if names differ otherwise.
    """
    split = [[split_numbers(last(path)) for path in pair] for pair in pairs]
    for (path, other), ((kind, _), (other_kind, _)) in zip(pairs, split, strict=True):
        if kind != other_kind:
            raise ValueError(f"{path!r} is {other!r} here")
    in_order = sorted(zip(split, pairs, strict=True))
    for ((_, here), (path, _)), ((_, next_here), (other, _)) in itertools.pairwise(in_order):
        if here[0] == next_here[0] and here > next_here:
            raise ValueError(f"{path!r} and {other!r} may have changed places")


def last(path):
    """Return the last part of a path."""
    return path.rpartition("/")[2]


def _by_parent(places):
    """Return `{location: {step to a sublayer: its location}}`."""
    found = collections.defaultdict(dict)
    for place in places:
        parent = place.rpartition("/")[0]
        while parent and parent not in places:
            parent = parent.rpartition("/")[0]
        if place:
            found[parent][place.removeprefix(f"{parent}/")] = place
    return found


def _matched_children(theirs, ours, in_graph):
    """Return `[(location in the file, location here)]` of the sublayers of one layer.

    Args:
        theirs: `{step: (location, record)}`.
        ours: `{step: (location, layer)}`.
        in_graph: Whether the layer is a functional or `Sequential` model.
    """
    names = {step: last(record["path"]) for step, (_, record) in theirs.items()}
    kinds = collections.Counter(split_numbers(name)[0] for name in names.values())
    kinds_here = collections.Counter(split_numbers(la.name)[0] for _, la in ours.values())
    steps = {name: step for step, name in names.items()}
    paired = {}
    for step, (_, layer) in ours.items():
        kind = split_numbers(layer.name)[0]
        alone = kinds[kind] == kinds_here[kind] == 1
        if alone and layer.name in steps and name_by_keras(layer) is None:
            paired[steps[layer.name]] = step
    taken = set(paired.values())
    to_check = []
    for step in (theirs.keys() & ours.keys()) - paired.keys() - taken:
        layer = ours[step][1]
        if split_numbers(names[step])[0] == split_numbers(layer.name)[0]:
            paired[step] = step
            # An attribute identifies a layer that Keras has numbered; a place in a list or graph
            # does not.
            if in_graph or step[-1].isdigit() or name_by_keras(layer) is None:
                to_check.append((theirs[step][1]["path"], path_of(layer)))
    check_names(to_check)
    return [(theirs[step][0], ours[here][0]) for step, here in paired.items()]
