"""Installation of a `SparseOptimizer` in a compiled model."""

import contextlib

import keras

from keras_sparse_dm import _keras
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.sparsity.kernels import masked_kernels
from keras_sparse_dm.sparsity.optimizer import SparseOptimizer
from keras_sparse_dm.sparsity.options import SparsityOptions, takes_options

tf = lazy_module("tensorflow")


def innermost_optimizer(model):
    """Return a model's optimizer inside all wrappers, or None."""
    optimizer = getattr(model, "optimizer", None)
    while getattr(optimizer, "inner_optimizer", None) is not None:
        optimizer = optimizer.inner_optimizer
    return optimizer


def innermost_sparse_optimizer(model):
    """Return a model's `SparseOptimizer`, also inside loss scaling, or None."""
    optimizer = getattr(model, "optimizer", None)
    while optimizer is not None and not isinstance(optimizer, SparseOptimizer):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return optimizer


def build_optimizer(model):
    """Build the optimizer of a compiled model if it is not built yet.

    The first training step would build it too, but then Keras would trace the step twice.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        strategy = getattr(model, "distribute_strategy", None)
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            optimizer.build(model.trainable_variables)


@takes_options
def sparse_optimizer(model, optimizer=None, *args, **options):
    """Make an optimizer for sparse training in your own loop, or with `train_on_batch`.

    ```python
    sparsify(model, sparsity=0.9)
    optimizer = sparse_optimizer(model, keras.optimizers.AdamW(1e-3), "rigl", update_every=800)
    for batch in data:
        with tf.GradientTape() as tape:
            loss = loss_of(model, batch)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
    ```

    Pass the dense gradients, as automatic differentiation returns them. `optimizer=None` replaces
    the optimizer of the compiled model; then `train_on_batch`, `fit` and your own loop all train
    sparsely, with or without the callback. At the end of your own loop with averaged weights
    (`use_ema`), call `optimizer.finalize_variable_values(model.trainable_variables)`, as `fit`
    does. After you restore earlier weights (`set_weights`), call
    `optimizer.sync_masks_with_weights()`. If several optimizers train one model or its parts, wrap
    each of them.

    Args:
        model: A built `keras.Model` that was made sparse.
        optimizer: The `keras.optimizers.Optimizer` to train with; for `mixed_float16`, a
            `LossScaleOptimizer`. None for the optimizer of the compiled model.
        *args, **options: Arguments of `SparsityOptions`.

    Returns:
        The optimizer to call: a `SparseOptimizer`, or the given `LossScaleOptimizer` around it.

    Raises:
        ValueError: as `DynamicSparsity`.
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
    """Wrap the optimizer of a compiled model in a `SparseOptimizer`, and return the wrapper.

    If the model already has one (after loading, or when `fit` is called again), it keeps its state
    and takes the new options.

    Args:
        model: A compiled `keras.Model` that was made sparse.
        options: `SparsityOptions`.

    Raises:
        ValueError: as `DynamicSparsity`.
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
    """Replace a model's `SparseOptimizer`, if it has one, by the optimizer inside."""
    sparse = innermost_sparse_optimizer(model)
    if sparse is None:
        return
    if model.optimizer is sparse:
        _set_optimizer(model, sparse.inner_optimizer)
    else:
        # Inside loss scaling.
        model.optimizer.inner_optimizer = sparse.inner_optimizer
        model.train_function = None


def _set_optimizer(model, optimizer):
    model.optimizer = optimizer
    _keras.record_compiled_optimizer(model, optimizer)
    # The compiled step refers to the old optimizer.
    model.train_function = None


def _wrapped(optimizer, model, options):
    """Return the optimizer to call, and the `SparseOptimizer` that it is or contains."""
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    inner = optimizer.inner_optimizer if scales else optimizer
    if scales and not optimizer.built and not isinstance(inner, SparseOptimizer):
        # Files hold the tracked variables, and Keras tracks different variables of Adafactor if it
        # is built alone. Build it through loss scaling, as a loaded optimizer is.
        optimizer.build(model.trainable_variables)
    sparse = SparseOptimizer(inner, **vars(options))
    sparse.attach(model)
    if not scales:
        return sparse, sparse
    # Inside loss scaling, so that gradients arrive unscaled and only if they are finite.
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
    if not isinstance(strategy, tf.distribute.MirroredStrategy):
        raise ValueError(
            "Sparse training on several replicas needs tf.distribute.MirroredStrategy; the model "
            f"was compiled under {type(strategy).__name__}."
        )
    while optimizer is not None:
        if optimizer.gradient_accumulation_steps:
            raise ValueError(
                "Keras cannot accumulate gradients on several replicas: "
                f"{type(optimizer).__name__} has gradient_accumulation_steps="
                f"{optimizer.gradient_accumulation_steps}. Use larger batches instead."
            )
        optimizer = getattr(optimizer, "inner_optimizer", None)
