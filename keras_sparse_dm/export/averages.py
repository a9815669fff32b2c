"""Averaged (EMA) weights, where an optimizer keeps them."""

from keras_sparse_dm._keras import averages, trained_variables
from keras_sparse_dm.sparsity.install import innermost_optimizer


def averages_of(model):
    """Returns `{id of a trainable variable: variable with its average}` of a model.

    Empty where the weights are to be used as they are: without averages, before the first step,
    and where the model says that its weights are averages already.

    Args:
        model: A `keras.Model`; what a `DiffusionModel` says of its averages is heeded.
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
