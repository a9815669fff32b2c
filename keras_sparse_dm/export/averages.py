"""Averaged (EMA) weights that an optimizer keeps."""

from keras_sparse_dm._keras import averages, trained_variables
from keras_sparse_dm.sparsity.install import innermost_optimizer


def averages_of(model):
    """Return `{id of a trainable variable: variable with its average}` of a model.

    The result is empty without averages, before the first step, and for a `DiffusionModel` whose
    weights are averages already.

    Args:
        model: A `keras.Model`.
    """
    optimizer = innermost_optimizer(model)
    averaged = averages(optimizer)
    if not averaged or int(optimizer.iterations) == 0:
        return {}
    if getattr(model, "_averages_final", False) or getattr(model, "_averages_in_use", False):
        return {}
    return {
        id(variable): average
        for variable, average in zip(trained_variables(optimizer), averaged, strict=True)
        if average is not None
    }
