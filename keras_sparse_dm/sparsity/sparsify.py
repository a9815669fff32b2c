"""`sparsify`: make a model sparse."""

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
    """Make a model sparse: draw the masks and zero what they prune (paper, section 3.1).

    Takes any built Keras 3 model: its dense, convolution, recurrent and attention layers
    become sparse layers where they stand, and those of `keras_sparse_dm.layers` are sparse
    layers already. Each kernel gets its density from the distribution, a mask with
    `round(density * size)` ones placed uniformly at random (or where its largest weights
    are, by `masks`), and keeps its values at those places. On a model that is sparse already
    the masks are drawn anew, over the kernels as they are: trained weights outside the new
    masks are lost, and those new in them start at zero. A training step that you compiled
    yourself is to be compiled again. Train it afterwards with the `DynamicSparsity` callback,
    which keeps pruned weights at zero.

    Biases, normalization and embeddings are never pruned. Frozen, LoRA-enabled and quantized
    layers are left alone, and so are kernels of layers that have no sparse twin; the report
    lists them with the reason, and the sparsity counts without them. The input axis along
    which a structure lies is the last one that is summed over: for the output projection of
    attention, that of a single head.

    Args:
        model: A built `keras.Model`.
        sparsity: Share of all weights in the sparse kernels that is pruned, in [0, 1). Or a
            dictionary that gives single kernels their own, from layers, names or patterns (as
            in `exclude`) to sparsities: the last entry that matches a kernel decides, and a
            kernel that none matches stays dense; `distribution` then has no say.
        distribution: `"erk"`, `"er"`, `"uniform"`, or a function of a kernel's shape; see
            `densities`.
        seed: Integer for the draw of the masks; None for a random one.
        exclude: Layers, names of layers or kernels, patterns with wildcards as in
            `"*/attention_output/*"`, or compiled regular expressions, searched for in the
            kernels' names: kernels that stay dense. What they would have given up, the others
            give up instead. Layers without a kernel may be among them, as in `model.layers[:9]`.
        include: The same for the only kernels to make sparse; None for all. The others are
            left alone.
        structure: `Blocks(size)` or `NM(n, m)`, along the kernels' input axis; None for
            single weights. N:M needs distribution `"uniform"` and sparsity `1 - n / m`.
        on_misfit: What to do with kernels whose input axis the structure does not divide:
            `"warn"` leaves them alone and says so, `"raise"` raises.
        dense_start: Whether to leave all weights active for now and only record what is
            asked, for a method that prunes while it trains (`"gmp"`).
        masks: `"random"`, as in the paper, for a model that is trained sparsely from its first
            step; `"magnitude"` keeps the largest weights of each kernel, for a model that is
            trained already. A warning says so where random masks meet trained weights.

    Returns:
        The `SparsityReport` of the model.

    Raises:
        TypeError: if `model` is no Keras model or layer.
        ValueError: for a sparsity outside [0, 1), an unknown distribution, a model that is
            not built or has nothing to make sparse, something in `exclude`, `include` or
            `sparsity` that matches nothing, or a sparsity that cannot be reached with what is
            excluded. Whatever is raised, the model is as it was.

    Example:

    >>> model = keras.applications.MobileNetV3Small(weights=None)
    >>> print(sparsify(model, 0.8, exclude=["conv", "*expanded_conv/*"]))
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
            f"`model` {model.name!r} is trained ({trained}), and random masks prune its weights "
            'whatever they are worth: use masks="magnitude" to keep the largest.',
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
    # All that train these kernels have state of what is pruned now.
    optimizers = {o for k in kernels.values() if (r := guarded(k.variable)) for o in r.optimizers}
    optimizers |= {innermost_sparse_optimizer(model)} - {None}
    for optimizer in optimizers:
        optimizer.check_trains(optimizer.attached_model() or model, kernels)
    unguarded = any(guarded(k.variable) is None for k in kernels.values())
    # Nothing has been changed up to here, and nothing below fails for its arguments.
    turn_sparse(model, list({id(k.layer): k.layer for k in kernels.values()}.values()))
    records = {id(k.kernel): k.record for k in masked_kernels(model)}
    for name, k in kernels.items():
        record = records[id(k.variable)]
        record.ones_vary = dense_start
        record.ask(k.variable, targets[name])
        record.mask.assign(drawn[name])
        k.variable.assign(ops.where(drawn[name], k.variable, ops.zeros_like(k.variable)))
    if unguarded:
        # A step that was compiled before does not know the guards.
        model.train_function = None
    for optimizer in optimizers:
        optimizer.attach(optimizer.attached_model() or model, masks_changed=True)
    return sparsity_report(model, left_alone=left_alone)


def to_plain(model):
    """Turn a sparse model into the same model of plain Keras layers.

    Kernels keep their values, zeros included, so predictions are equal, and `get_weights` is
    that of a model that was never sparse. Masks are dropped, and so is a `SparseOptimizer`: the
    model keeps the optimizer inside, and training it is dense from then on.

    Args:
        model: A built `keras.Model`; it and all layers in it stay the same objects.

    Returns:
        The model.

    Raises:
        TypeError: if `model` is no Keras model or layer.

    Example:

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
    """Return why a model seems to be trained, or None.

    An optimizer has taken steps, or a layer with a kernel to prune, or a normalization layer, has
    biases or statistics that differ from what they start as.
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
                    return f"{variable.path} is not what it starts as"
    return None


def _plan(model, sparsity, distribution, exclude, include, structure, on_misfit):
    """Decide what each kernel's mask is to be; see `sparsify` for the arguments.

    Returns:
        `({name: Candidate}, {name: KernelTarget}, {name: reason})`: the kernels to make sparse,
        what their masks are to be, and what is left alone.
    """
    kernels, left_alone, variables = candidates(model)
    own_sparsities = isinstance(sparsity, dict)
    if include is not None:
        included = matching("include", model, variables, include, left_alone)
        left_alone |= {name: "not included" for name in kernels if name not in included}
        kernels = {name: k for name, k in kernels.items() if name in included}
    excluded = matching("exclude", model, variables, exclude) & set(kernels)
    # What is to stay dense needs no structure.
    dense = set(excluded)
    if own_sparsities:
        own = matching("sparsity", model, variables, tuple(sparsity))
        if any(sparsity.values()) and not own:
            raise ValueError(f"`sparsity` names only layers without a kernel: {list(sparsity)}.")
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
        # N:M has no dense masks.
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
            "there: exclude them, or ask for less"
            + ("." if own_sparsities or distribution == "erk" else ", or for distribution 'erk'."),
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
            f"the others hold {free / total:.4f} of the weights, and it must be below that."
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
