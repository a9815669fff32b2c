"""`sparsify` and `to_plain`: make a model sparse, and plain again."""

import math
import warnings

import keras
from keras import ops

from keras_sparse_dm._keras import flatten_layers
from keras_sparse_dm.layers.guard import guarded
from keras_sparse_dm.layers.in_place import turn_plain, turn_sparse
from keras_sparse_dm.layers.kernel_mask import KernelTarget
from keras_sparse_dm.masks.distributions import check_sparsity_value, densities
from keras_sparse_dm.masks.structures import NM, Unstructured
from keras_sparse_dm.seeds import seed_generator
from keras_sparse_dm.sparsity.install import innermost_sparse_optimizer, unwrap_optimizer
from keras_sparse_dm.sparsity.kernels import candidates, check_is_layer, masked_kernels
from keras_sparse_dm.sparsity.report import sparsity_report
from keras_sparse_dm.sparsity.selection import listed, matching
from keras_sparse_dm.sparsity.topology_update import masked

MASKS = ("random", "magnitude")


def sparsify(
    model,
    sparsity,
    distribution="erk",
    seed=None,
    exclude=(),
    include=None,
    structure=None,
    on_misfit="warn",
    dense_start=False,
    masks="random",
):
    """Make a model sparse: draw masks and set pruned weights to zero (paper, section 3.1).

    Takes any built Keras 3 model. Its dense, convolution, recurrent and attention layers become
    sparse layers in place; layers of `keras_sparse_dm.layers` are sparse already. Each kernel gets
    a density from the distribution, and a mask with `round(density * size)` ones: placed uniformly
    at random, or at the largest weights (see `masks`). Active weights keep their values. If the
    model is already sparse, new masks are drawn: trained weights outside them are lost, and newly
    active weights start at zero. Compile your own training steps again after this call. Train the
    model with the `DynamicSparsity` callback, which keeps pruned weights at zero.

    Biases, normalization and embeddings are never pruned. Frozen, LoRA-enabled and quantized layers
    are left alone, and so are kernels of layers without a sparse twin. The report lists them with
    the reason, and the sparsity excludes them. A structure lies along the last axis that the layer
    sums over; for the output projection of attention, that is the axis of a single head.

    Args:
        model: A built `keras.Model`.
        sparsity: Share of pruned weights among all weights of the sparse kernels, in [0, 1). Or a
            dictionary from layers, names or patterns (as in `exclude`) to sparsities of single
            kernels: the last entry that matches a kernel counts, kernels without a match stay
            dense, and `distribution` is not used.
        distribution: `"erk"`, `"er"`, `"uniform"`, or a function of a kernel's shape; see
            `densities`.
        seed: Integer seed of the masks; None for a random seed.
        exclude: Kernels that stay dense, as layers, names of layers or kernels, patterns with
            wildcards (`"*/attention_output/*"`), or compiled regular expressions to search for in
            kernel names. The other kernels get sparser to reach the total. Layers without kernels
            are allowed, as in `model.layers[:9]`.
        include: The only kernels to make sparse, given as in `exclude`; None for all. Other
            kernels are left alone.
        structure: `Blocks(size)` or `NM(n, m)`, along the kernels' input axis; None for single
            weights. N:M needs distribution `"uniform"` and sparsity `1 - n / m`.
        on_misfit: Treatment of kernels whose input axis is not a multiple of the structure:
            `"warn"` leaves them alone with a warning, `"raise"` raises an error.
        dense_start: True to keep all weights active for now and only record the densities, for a
            method that prunes while it trains (`"gmp"`).
        masks: `"random"`, as in the paper, for a model that is trained sparsely from its first
            step; `"magnitude"`, the largest weights of each kernel, for a trained model. Random
            masks on trained weights cause a warning.

    Returns:
        The `SparsityReport` of the model.

    Raises:
        TypeError: if `model` is not a Keras model or layer.
        ValueError: for a sparsity outside [0, 1), an unknown distribution, a model that is not
            built or has nothing to make sparse, an entry of `exclude`, `include` or `sparsity`
            that matches nothing, or a sparsity that is out of reach with the excluded kernels.
            After any error the model is unchanged.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((8, 8, 1)),
    ...         keras.layers.Conv2D(8, 3, name="first"),
    ...         keras.layers.Flatten(),
    ...         keras.layers.Dense(10, name="last"),
    ...     ]
    ... )
    >>> print(sparsify(model, 0.8, exclude=["first"]))
    """
    check_is_layer(model)
    structure = Unstructured() if structure is None else structure
    if isinstance(sparsity, dict):
        sparsity = {key: check_sparsity_value(value) for key, value in sparsity.items()}
    else:
        sparsity = check_sparsity_value(sparsity)
    _check_structure(structure, sparsity, distribution, on_misfit)
    if masks not in MASKS:
        raise ValueError(f"`masks` must be 'random' or 'magnitude'; received {masks!r}.")
    if not model.built:
        raise ValueError(
            f"`model` must be built before it is made sparse; {model.name!r} is not. Call it on "
            "a batch, or give it an `Input`."
        )
    generator = seed_generator(seed, "masks")
    kernels, targets, left_alone = _plan(
        model, sparsity, distribution, exclude, include, structure, on_misfit
    )
    trained = masks == "random" and not dense_start and sparsity and _looks_trained(model, kernels)
    if trained:
        warnings.warn(
            f"`model` {model.name!r} is trained ({trained}), but random masks ignore the size of "
            'its weights: use masks="magnitude" to keep the largest.',
            stacklevel=2,
        )
    drawn = {}
    for name, k in kernels.items():
        target, axis = targets[name], k.axes.structured
        ones = target.structure.ones(k.shape, target.density)
        if dense_start or ones == math.prod(k.shape):
            drawn[name] = ops.ones(k.shape, "bool")
        elif masks == "magnitude":
            score = ops.abs(ops.cast(k.variable, "float32"))
            drawn[name] = target.structure.mask_of_largest(score, axis, ones)
        else:
            drawn[name] = target.structure.random_mask(k.shape, target.density, generator, axis)
    # All optimizers that train these kernels hold state of newly pruned weights.
    optimizers = {o for k in kernels.values() if (r := guarded(k.variable)) for o in r.optimizers}
    optimizers |= {innermost_sparse_optimizer(model)} - {None}
    for optimizer in optimizers:
        optimizer.check_trains(optimizer.attached_model() or model, kernels)
    unguarded = any(guarded(k.variable) is None for k in kernels.values())
    # The model is unchanged so far, and the arguments cannot cause errors below.
    turn_sparse(model, list({id(k.layer): k.layer for k in kernels.values()}.values()))
    records = {id(k.kernel): k.record for k in masked_kernels(model)}
    for name, k in kernels.items():
        record = records[id(k.variable)]
        record.ones_vary = dense_start
        record.ask(k.variable, targets[name])
        record.mask.assign(drawn[name])
        k.variable.assign(masked(drawn[name], k.variable))
    if unguarded:
        # A step that was compiled earlier does not include the guards.
        model.train_function = None
    for optimizer in optimizers:
        optimizer.attach(optimizer.attached_model() or model, masks_changed=True)
    return sparsity_report(model, left_alone=left_alone)


def to_plain(model):
    """Turn a sparse model into a model of plain Keras layers, in place.

    Kernels keep their values, including zeros, so predictions stay equal. Masks are removed, and a
    `SparseOptimizer` is replaced by the optimizer inside, so further training is dense.

    Args:
        model: A built `keras.Model`; the model and its layers stay the same objects.

    Returns:
        The model.

    Raises:
        TypeError: if `model` is not a Keras model or layer.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> report = sparsify(model, 0.5)
    >>> plain = to_plain(model)
    >>> plain.save("plain.keras")  # loads where keras_sparse_dm is not installed
    """
    check_is_layer(model)
    masked_kernels(model)
    turn_plain(model)
    if getattr(model, "optimizer", None) is not None:
        unwrap_optimizer(model)
        model.train_function = None
    return model


def _looks_trained(model, kernels):
    """Return the reason why a model seems to be trained, or None.

    Either its optimizer has taken steps, or the biases or statistics of a normalization layer, or
    of a layer with a kernel to prune, differ from their initial values.
    """
    optimizer = getattr(model, "optimizer", None)
    steps = int(optimizer.iterations) if optimizer is not None and optimizer.built else 0
    if steps:
        return f"its optimizer has taken {steps} steps"
    norms = [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    for layer in [*{id(k.layer): k.layer for k in kernels.values()}.values(), *norms]:
        for name in ("bias", "beta", "moving_mean"):
            initializer = getattr(layer, f"{name}_initializer", None)
            variable = getattr(layer, name, None)
            if isinstance(initializer, keras.initializers.Zeros) and variable is not None:
                if bool(ops.any(ops.not_equal(variable, 0))):
                    return f"{variable.path} differs from its initial value"
    return None


def _plan(model, sparsity, distribution, exclude, include, structure, on_misfit):
    """Choose the target of each kernel's mask; see `sparsify` for the arguments.

    Returns:
        `({name: Candidate}, {name: KernelTarget}, {name: reason})`: the kernels to make sparse,
        the targets of their masks, and the kernels to leave alone.
    """
    kernels, left_alone, variables = candidates(model)
    own_sparsities = isinstance(sparsity, dict)
    if include is not None:
        included = matching("include", model, variables, include, left_alone)
        left_alone |= {name: "not included" for name in kernels if name not in included}
        kernels = {name: k for name, k in kernels.items() if name in included}
    excluded = matching("exclude", model, variables, exclude) & set(kernels)
    # Kernels that stay dense need no structure.
    dense = set(excluded)
    if own_sparsities:
        own = matching("sparsity", model, variables, tuple(sparsity))
        if any(sparsity.values()) and not own:
            raise ValueError(
                "`sparsity` must match kernels; received only layers without kernels: "
                f"{list(sparsity)}."
            )
        dense |= set(kernels) - own
    misfits = {
        name: reason
        for name, k in kernels.items()
        if name not in dense and (reason := structure.misfit(k.shape, k.axes.structured))
    }
    if misfits and on_misfit == "raise":
        raise ValueError(f"`structure` {structure} does not fit {listed(misfits)}.")
    if misfits and len(misfits) < len(kernels):
        warnings.warn(
            f"`structure` {structure} does not fit {listed(misfits)}; they stay dense.",
            stacklevel=3,
        )
    left_alone |= misfits
    kernels = {name: k for name, k in kernels.items() if name not in misfits}
    if not kernels:
        raise ValueError(
            f"`model` {model.name!r} has nothing to make sparse: "
            + (f"left alone {listed(left_alone)}." if left_alone else "it has no kernels.")
        )
    if own_sparsities:
        shares = {}
        for key, value in sparsity.items():
            named = matching("sparsity", model, variables, (key,), left_alone)
            shares |= dict.fromkeys(named - excluded, 1.0 - value)
    elif isinstance(structure, NM):
        shares = {name: 1.0 - sparsity for name in kernels if name not in excluded}
    else:
        shares = _shares(kernels, excluded, sparsity, distribution)
    targets = {}
    for name in kernels:
        share = shares.get(name, 1.0)
        # N:M masks cannot be full.
        free = name in dense or (isinstance(structure, NM) and share == 1.0)
        targets[name] = KernelTarget(share, Unstructured() if free else structure)
    ones = {
        name: targets[name].structure.ones(k.shape, targets[name].density)
        for name, k in kernels.items()
    }
    empty = {name: "" for name in kernels if not ones[name]}
    if empty:
        warnings.warn(
            f"At `sparsity` {sparsity} no weight is left in {listed(empty)}, and none will grow "
            "there: exclude them, or choose a lower sparsity"
            + ("." if own_sparsities or distribution == "erk" else " or distribution 'erk'."),
            stacklevel=3,
        )
    return kernels, targets, left_alone


def _shares(kernels, excluded, sparsity, distribution):
    """Return `{name: density}` of the kernels that are not excluded."""
    sizes = {name: math.prod(k.variable.shape) for name, k in kernels.items()}
    total = sum(sizes.values())
    free = total - sum(sizes[name] for name in excluded)
    if excluded and sparsity and sparsity * total >= free:
        raise ValueError(
            f"`sparsity` of {sparsity} cannot be reached with {len(excluded)} kernels excluded: "
            f"the others hold only {free / total:.4f} of the weights; choose a lower sparsity."
        )
    if not free:
        return {}
    shapes = {
        name: k.axes.as_matrix(k.shape) for name, k in kernels.items() if name not in excluded
    }
    return densities(shapes, sparsity * total / free, distribution)


def _check_structure(structure, sparsity, distribution, on_misfit):
    if not isinstance(structure, Unstructured):
        raise ValueError(
            f"`structure` must be `Blocks(size)`, `NM(n, m)` or None; received {structure!r}."
        )
    if on_misfit not in ("warn", "raise"):
        raise ValueError(f"`on_misfit` must be 'warn' or 'raise'; received {on_misfit!r}.")
    if isinstance(structure, NM):
        exact = 1.0 - structure.n / structure.m
        asked = set(sparsity.values()) if isinstance(sparsity, dict) else {sparsity}
        if any(abs(value - exact) > 1e-9 for value in asked if value):
            raise ValueError(
                f"`sparsity` must be {exact:g} with {structure.n}:{structure.m}, which fixes it "
                f"for every kernel; received {sparsity}."
            )
        if not isinstance(sparsity, dict) and distribution != "uniform":
            raise ValueError(
                f"`distribution` must be 'uniform' with {structure.n}:{structure.m}, which gives "
                f"every kernel the same density; received {distribution!r}."
            )
