"""Putting a `SparseOptimizer` in the place of an optimizer, and finding it there."""

import contextlib

import keras

from keras_sparse_dm import _keras
from keras_sparse_dm.sparsity.kernels import masked_kernels
from keras_sparse_dm.sparsity.optimizer import SparseOptimizer
from keras_sparse_dm.sparsity.options import SparsityOptions, takes_options


def innermost_optimizer(model):
    """Return the optimizer of a model that does the updates, below all that wrap it, or None."""
    optimizer = getattr(model, "optimizer", None)
    while getattr(optimizer, "inner_optimizer", None) is not None:
        optimizer = optimizer.inner_optimizer
    return optimizer


def innermost_sparse_optimizer(model):
    """Return the model's `SparseOptimizer`, under loss scaling too, or None."""
    optimizer = getattr(model, "optimizer", None)
    while optimizer is not None and not isinstance(optimizer, SparseOptimizer):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return optimizer


def build_optimizer(model):
    """Make the variables of a compiled model's optimizer, if they are not made yet.

    While the first training step is traced, they would be made too, but by tracing it twice.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        strategy = getattr(model, "distribute_strategy", None)
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            optimizer.build(model.trainable_variables)


@takes_options
def sparse_optimizer(model, optimizer=None, *args, **options):
    """Make the optimizer of sparse training without `fit`, or for `train_on_batch`.

    ```python
    sparsify(model, sparsity=0.9)
    optimizer = sparse_optimizer(model, keras.optimizers.AdamW(1e-3), "rigl", update_every=800)
    for batch in data:
        with tf.GradientTape() as tape:
            loss = loss_of(model, batch)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
    ```

    The gradients must be the dense ones, as automatic differentiation returns them. With
    `optimizer=None` the optimizer of the compiled model is replaced, after which
    `train_on_batch`, `fit` and a loop of your own train sparsely, callback or not. At the end
    of a loop of your own with averaged weights (`use_ema`) call
    `optimizer.finalize_variable_values(model.trainable_variables)`, as `fit` does; and wherever
    you put back earlier weights (`set_weights`), call `optimizer.weights_were_put_back()`.
    Several optimizers may train one model, or parts of it, each wrapped by itself.

    Args:
        model: A built `keras.Model` that was made sparse.
        optimizer: The `keras.optimizers.Optimizer` to train with; under `mixed_float16` a
            `LossScaleOptimizer`. None for that of the compiled model.
        *args, **options: As in `SparsityOptions`.

    Returns:
        The optimizer to call: a `SparseOptimizer`, within a `LossScaleOptimizer` if given one.

    Raises:
        ValueError: as `DynamicSparsity` does.
    """
    options = SparsityOptions(*args, **options)
    if optimizer is None:
        install(model, options)
        return model.optimizer
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(
            f"`optimizer` must be a keras.optimizers.Optimizer or None; received {optimizer!r}."
        )
    _check_sparse(model)
    _check_strategy(getattr(model, "distribute_strategy", None), optimizer)
    return _wrapped(optimizer, model, options)[0]


def install(model, options):
    """Make a compiled model's optimizer a `SparseOptimizer`, once, and return it.

    A model that has one already (it was loaded, or `fit` is called again) keeps it with all
    its state; its options become those given.

    Args:
        model: A compiled `keras.Model` that was made sparse.
        options: `SparsityOptions`.
    """
    if getattr(model, "optimizer", None) is None:
        raise ValueError(f"Compile model {model.name!r} with an optimizer before training it.")
    _check_sparse(model)
    strategy = getattr(model, "distribute_strategy", None)
    _check_strategy(strategy, model.optimizer)
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        optimizer = innermost_sparse_optimizer(model)
        if optimizer is None:
            outermost, optimizer = _wrapped(model.optimizer, model, options)
            _set_optimizer(model, outermost)
        else:
            changed = optimizer.configure(options)
            optimizer.attach(model)
            if changed:
                model.train_function = None
    build_optimizer(model)
    return optimizer


def unwrap_optimizer(model):
    """Give a compiled model the optimizer inside its `SparseOptimizer`, if it has one."""
    sparse = innermost_sparse_optimizer(model)
    if sparse is None:
        return
    if model.optimizer is sparse:
        _set_optimizer(model, sparse.inner_optimizer)
    else:
        # Below loss scaling.
        model.optimizer.inner_optimizer = sparse.inner_optimizer
        model.train_function = None


def _set_optimizer(model, optimizer):
    model.optimizer = optimizer
    _keras.record_compiled_optimizer(model, optimizer)
    # The function that holds the old optimizer.
    model.train_function = None


def _wrapped(optimizer, model, options):
    """Return the optimizer to call, and the `SparseOptimizer` that it is or holds."""
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    inner = optimizer.inner_optimizer if scales else optimizer
    if scales and not optimizer.built and not isinstance(inner, SparseOptimizer):
        # Keras tracks other variables of Adafactor when that is built by itself, and a file
        # holds those that are tracked: the loaded optimizer is built by loss scaling.
        optimizer.build(model.trainable_variables)
    sparse = SparseOptimizer(inner, **vars(options))
    sparse.attach(model)
    if not scales:
        return sparse, sparse
    # Below loss scaling, so that gradients come unscaled and only when they are finite.
    optimizer.inner_optimizer = sparse
    return optimizer, sparse


def _check_sparse(model):
    if not model.built or not masked_kernels(model):
        raise ValueError(
            f"Model {model.name!r} was never made sparse: call "
            "`keras_sparse_dm.sparsify(model, sparsity)` first."
        )


def _check_strategy(strategy, optimizer):
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    import tensorflow as tf

    if not isinstance(strategy, tf.distribute.MirroredStrategy):
        raise ValueError(
            "Sparse training on several replicas needs tf.distribute.MirroredStrategy; the model "
            f"was compiled under {type(strategy).__name__}."
        )
    while optimizer is not None:
        if optimizer.gradient_accumulation_steps:
            raise ValueError(
                "Keras accumulates no gradients on several replicas: "
                f"{type(optimizer).__name__} has gradient_accumulation_steps="
                f"{optimizer.gradient_accumulation_steps}. Use larger batches."
            )
        optimizer = getattr(optimizer, "inner_optimizer", None)
