"""State of optimizers in a sparse checkpoint, without those that they wrap: `{key: array}`."""

import keras

from keras_sparse_dm._keras import trained_variables
from keras_sparse_dm.export.sparse_file.layer_state import Stored
from keras_sparse_dm.layers.locations import unique_name
from keras_sparse_dm.sparsity.install import build_optimizer


def chain(optimizer):
    """Yield an optimizer and those that it wraps, from the outermost in."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def saves_otherwise(optimizer):
    """Tell whether an optimizer has its own `save_own_variables`."""
    return type(optimizer).save_own_variables is not keras.optimizers.Optimizer.save_own_variables


def own_variables_of(optimizer):
    """List an optimizer's variables, without those of the optimizers that it wraps."""
    inner = getattr(optimizer, "inner_optimizer", None)
    wrapped = {id(v) for v in inner.variables} if inner is not None else ()
    return [v for v in optimizer.variables if id(v) not in wrapped]


def states(optimizer):
    """List `(variable of an optimizer, trained variable whose state it is)`."""
    own, trained = own_variables_of(optimizer), trained_variables(optimizer)
    ids, found = {id(v): None for v in own}, []
    for value in vars(optimizer).values():
        # Keras keeps state in lists parallel to the trained variables. This includes state that is
        # not per weight, such as Adafactor's means of rows.
        if isinstance(value, list) and len(value) == len(trained) and [*map(id, value)] != [*ids]:
            found += [pair for pair in zip(value, trained, strict=True) if id(pair[0]) in ids]
    return found


def optimizer_variables(optimizer, names):
    """Return `{key: variable}` of an optimizer without those that it wraps.

    Args:
        optimizer: One with Keras's `save_own_variables`.
        names: `{id of a trained variable: name of its array in the file}`, so that its state has
            the same key even if Keras numbers the variable differently here.
    """
    owners, found = {id(state): owner for state, owner in states(optimizer)}, {}
    for variable in own_variables_of(optimizer):
        key, owner = variable.path, owners.get(id(variable))
        if owner is not None:
            kind = variable.name.removeprefix(owner.path.replace("/", "_") + "_")
            key = f"{names.get(id(owner), owner.path)}:{kind}"
        found[unique_name(key, found)] = variable
    return found


def load_optimizers(model, records, arrays, variables_of, rename=lambda key: key):
    """Load the state of a model's optimizers, if the file has any.

    Args:
        model: The `keras.Model`.
        records: `optimizers` of the file's content.
        arrays: `{name: array}`, which reads an array when it is accessed.
        variables_of: `variables_of(optimizer) -> {key: variable}`, for optimizers with Keras's
            `save_own_variables`.
        rename: `rename(key) -> key here`, for all other optimizers.

    Raises:
        ValueError: if the optimizers are not those of the file.
    """
    if not records:
        return
    build_optimizer(model)
    optimizers = list(chain(getattr(model, "optimizer", None)))
    if len(optimizers) != len(records):
        raise ValueError(f"the model has {len(optimizers)} optimizers instead of {len(records)}")
    for optimizer, record in zip(optimizers, records, strict=True):
        names = record["arrays"]
        if saves_otherwise(optimizer):
            renamed = {rename(key): name for key, name in names.items()}
            optimizer.load_own_variables(Stored(renamed, arrays))
            continue
        variables = variables_of(optimizer)
        differing = variables.keys() ^ names.keys()
        if differing:
            raise ValueError(
                f"optimizer {optimizer.name!r} has other variables than in the file, such as "
                f"{min(differing)!r}"
            )
        for key, variable in variables.items():
            variable.assign(arrays[names[key]])
