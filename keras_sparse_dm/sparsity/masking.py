"""Finding a model's kernels, and making them sparse."""

import contextlib
import difflib
import fnmatch
import math
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import keras
from keras import ops

from keras_sparse_dm.layers.masked import (
    KernelAxes,
    KernelTarget,
    own_kernels,
    parts,
    target_of,
)
from keras_sparse_dm.layers.restoring import turn_sparse
from keras_sparse_dm.seeds import seed_generator
from keras_sparse_dm.sparsity.distributions import check_sparsity_value, densities
from keras_sparse_dm.sparsity.structures import NM, Unstructured

_NAMES_SHOWN = 20


@dataclass(frozen=True, eq=False)
class MaskedKernel:
    """One sparse kernel of a model.

    Attributes:
        name: The variable's path, made unique within the model.
        kernel: The `keras.Variable`.
        mask: Its boolean mask variable, True where a weight is active.
        axes: `KernelAxes`, what its axes stand for.
        target: `KernelTarget`, what its mask was asked to be.
    """

    name: str
    kernel: keras.Variable
    mask: keras.Variable
    axes: KernelAxes = KernelAxes()
    target: KernelTarget = KernelTarget()

    @property
    def size(self):
        """Number of weights, pruned ones included."""
        return math.prod(self.kernel.shape)


def masked_kernels(model):
    """Lists the sparse kernels of a model, each once, in the order of its variables.

    Args:
        model: A `keras.Model` or `keras.Layer`.

    Returns:
        List of `MaskedKernel`.
    """
    found, axes = {}, {}
    for layer in model._flatten_layers():
        for kernel, mask in getattr(layer, "masks", ()):
            found.setdefault(id(kernel), (kernel, mask))
        axes |= {id(kernel): a for kernel, a in own_kernels(layer).values()}
    named = _named(model, [kernel for kernel, _ in found.values()])
    return [
        MaskedKernel(
            name,
            *found[id(kernel)],
            axes.get(id(kernel), KernelAxes()),
            target_of(kernel),
        )
        for name, kernel in named.items()
    ]


def _named(model, variables):
    """Returns `{unique name: variable}` in the order of the model's variables."""
    order = {id(variable): i for i, variable in enumerate(model.variables)}
    named = {}
    for variable in sorted(variables, key=lambda v: order[id(v)]):
        # Keras gives two layers of one name the same path.
        name, number = variable.path, 0
        while name in named:
            number += 1
            name = f"{variable.path}_{number}"
        named[name] = variable
    return named


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
):
    """Makes a model sparse: draws the masks and zeroes what they prune (paper, section 3.1).

    Takes any built Keras 3 model: its dense, convolution, recurrent and attention layers
    become sparse layers where they stand, and those of `keras_sparse_dm.layers` are sparse
    layers already. Each kernel gets its density from the distribution, a mask with
    `round(density * size)` ones placed uniformly at random, and keeps its values at those
    places. On a model that is sparse already the masks are drawn anew, over the kernels as
    they are: trained weights outside the new masks are lost, and those new in them start at
    zero. A training step that you compiled yourself is to be compiled again. Train it
    afterwards with the `DynamicSparsity` callback, which keeps pruned weights at zero.

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

    Returns:
        The `SparsityReport` of the model.

    Raises:
        TypeError: if `model` is no Keras model or layer.
        ValueError: for a sparsity outside [0, 1), an unknown distribution, a model that is
            not built or has nothing to make sparse, something in `exclude`, `include` or
            `sparsity` that matches nothing, or a sparsity that cannot be reached with what is
            excluded. The model is then as it was.

    Example:

    >>> model = keras.applications.MobileNetV3Small(weights=None)
    >>> print(sparsify(model, 0.8, exclude=["conv", "*expanded_conv/*"]))
    """
    from keras_sparse_dm.sparsity.report import sparsity_report

    check_is_layer(model)
    structure = Unstructured() if structure is None else structure
    own_sparsities = isinstance(sparsity, dict)
    if own_sparsities:
        sparsity = {key: check_sparsity_value(value) for key, value in sparsity.items()}
    else:
        sparsity = check_sparsity_value(sparsity)
    _check_structure(structure, sparsity, distribution, on_misfit)
    if not model.built:
        raise ValueError(
            f"`model` must be built before it is made sparse; {model.name!r} is not. Call it on "
            "a batch, or give it an `Input`."
        )
    kernels, left_alone, variables = _candidates(model)
    if include is not None:
        included = _matching("include", model, variables, include, left_alone)
        left_alone |= {name: "not included" for name in kernels if name not in included}
        kernels = {name: k for name, k in kernels.items() if name in included}
    excluded = _matching("exclude", model, variables, exclude) & set(kernels)
    # What is to stay dense needs no structure.
    dense = set(excluded)
    if own_sparsities:
        own = _matching("sparsity", model, variables, tuple(sparsity))
        if any(sparsity.values()) and not own:
            raise ValueError(f"`sparsity` names only layers without a kernel: {list(sparsity)}.")
        dense |= set(kernels) - own
    misfits = {
        name: reason
        for name, k in kernels.items()
        if name not in dense
        and (reason := structure.misfit(tuple(k.variable.shape), k.axes.structured))
    }
    if misfits and on_misfit == "raise":
        raise ValueError(f"`structure` {structure} does not fit {_listed(misfits)}.")
    if misfits and len(misfits) < len(kernels):
        warnings.warn(
            f"`structure` {structure} does not fit {_listed(misfits)}; they stay dense.",
            stacklevel=2,
        )
    left_alone |= misfits
    kernels = {name: k for name, k in kernels.items() if name not in misfits}
    if not kernels:
        raise ValueError(
            f"`model` {model.name!r} has nothing to make sparse: "
            + (f"left alone {_listed(left_alone)}." if left_alone else "it has no kernels.")
        )
    if own_sparsities:
        shares = {}
        for key, value in sparsity.items():
            named = _matching("sparsity", model, variables, (key,), left_alone)
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
        name: targets[name].structure.ones(tuple(k.variable.shape), targets[name].density)
        for name, k in kernels.items()
    }
    empty = {name: "" for name in kernels if not ones[name]}
    if empty:
        warnings.warn(
            f"At `sparsity` {sparsity} no weight is left in {_listed(empty)}, and none will grow "
            "there: exclude them, or ask for less"
            + ("." if own_sparsities or distribution == "erk" else ", or for distribution 'erk'."),
            stacklevel=2,
        )
    generator = seed_generator(seed, "masks")

    # Nothing has been changed up to here.
    turn_sparse(model, list({id(k.layer): k.layer for k in kernels.values()}.values()))
    masks = {id(k.kernel): k.mask for k in masked_kernels(model)}
    for name, k in kernels.items():
        mask, shape = masks[id(k.variable)], tuple(k.variable.shape)
        target = k.variable.constraint.target = targets[name]
        if dense_start or ones[name] == math.prod(shape):
            mask.assign(ops.ones(shape, "bool"))
        else:
            axis = k.axes.structured
            mask.assign(target.structure.random_mask(shape, target.density, generator, axis))
        k.variable.assign(ops.where(mask, k.variable, ops.zeros_like(k.variable)))
    # All that trained these kernels have state of what is pruned now.
    optimizers = {o for k in kernels.values() for o in k.variable.constraint.optimizers}
    optimizers |= {innermost_sparse_optimizer(model)} - {None}
    for optimizer in optimizers:
        optimizer.attach(optimizer.attached_model() or model, masks_changed=True)
    return sparsity_report(model, left_alone=left_alone)


def check_is_layer(model):
    """Raises a TypeError for what is no Keras model or layer."""
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"`model` must be a keras.Model; received {model!r}.")


def what_is_left_alone(model):
    """Returns `{kernel name: reason}` of a model's kernels that are dense and cannot be sparse."""
    sparse = {k.name for k in masked_kernels(model)}
    return {name: why for name, why in _candidates(model)[1].items() if name not in sparse}


def build_optimizer(model):
    """Makes the variables of a compiled model's optimizer, if they are not made yet.

    While the first training step is traced, they would be made too, but by tracing it twice.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        strategy = getattr(model, "distribute_strategy", None)
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            optimizer.build(model.trainable_variables)


def innermost_optimizer(model):
    """Returns the optimizer of a model that does the updates, below all that wrap it, or None."""
    optimizer = getattr(model, "optimizer", None)
    while getattr(optimizer, "inner_optimizer", None) is not None:
        optimizer = optimizer.inner_optimizer
    return optimizer


def innermost_sparse_optimizer(model):
    """Returns the model's `SparseOptimizer`, under loss scaling too, or None."""
    from keras_sparse_dm.sparsity.optimizer import SparseOptimizer

    optimizer = getattr(model, "optimizer", None)
    while optimizer is not None and not isinstance(optimizer, SparseOptimizer):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return optimizer


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A kernel that can be sparse, and the layer to turn sparse for it."""

    variable: keras.Variable
    axes: KernelAxes
    layer: keras.layers.Layer


def _candidates(model):
    """Returns `{name: _Candidate}`, `{name: reason}` left alone, `{name: variable}` of both."""
    layers = model._flatten_layers()
    # A projection of an attention layer, or the cell of a recurrent one, is turned with it.
    owners = {id(part): layer for layer in layers for part in parts(layer)}
    found, reasons, others = {}, {}, {}
    for layer in layers:
        kernels = own_kernels(layer)
        for variable, axes in kernels.values():
            if id(variable) not in found:
                owner = owners.get(id(layer), layer)
                found[id(variable)] = _Candidate(variable, axes, owner)
                reasons[id(variable)] = _left_alone(layer, variable)
        mine = {id(variable) for variable, _ in kernels.values()}
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            kernel_like = "kernel" in variable.name and len(variable.shape) > 1
            if kernel_like and id(variable) not in mine and variable.dtype != "bool":
                # What LoRA and quantization add to a kernel has the kernel's reason.
                reason = _left_alone(layer, variable) if kernels else None
                reason = reason or f"{type(layer).__name__} has no sparse twin"
                others[id(variable)] = (variable, reason)
    others = {key: value for key, value in others.items() if key not in found}
    named = _named(
        model, [c.variable for c in found.values()] + [variable for variable, _ in others.values()]
    )
    kernels, left_alone = {}, {}
    for name, variable in named.items():
        reason = reasons[id(variable)] if id(variable) in found else others[id(variable)][1]
        if reason:
            left_alone[name] = reason
        else:
            kernels[name] = found[id(variable)]
    return kernels, left_alone, named


def _left_alone(layer, variable):
    """Returns why a kernel is not made sparse, or None."""
    if getattr(layer, "quantization_mode", None) is not None:
        return f"quantized ({layer.quantization_mode})"
    if not keras.backend.is_float_dtype(variable.dtype):
        return f"of type {variable.dtype}"
    if getattr(layer, "lora_enabled", False):
        return "LoRA-enabled"
    if not variable.trainable:
        return "frozen"
    return None


def _shares(kernels, excluded, sparsity, distribution):
    """Returns `{name: density}` of the kernels that are not excluded."""
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
        name: k.axes.as_matrix(tuple(k.variable.shape))
        for name, k in kernels.items()
        if name not in excluded
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


def _matching(argument, model, variables, items, left_alone=None):
    """Returns the names of the kernels that layers, names or patterns match.

    Raises a ValueError where one matches nothing, or, given what is left alone, nothing else.
    A layer of the model that has no kernel matches, and adds none.
    """
    if isinstance(items, (str, keras.layers.Layer, re.Pattern)) or not isinstance(items, Iterable):
        items = (items,)
    layers = list(model._flatten_layers())
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
                f"or kernels; nothing matches {item!r}. Kernels: {_listed(dict.fromkeys(names))}."
            )
        if left_alone and found and all(name in left_alone for name in found):
            reasons = {name: left_alone[name] for name in found}
            raise ValueError(
                f"`{argument}` names what cannot be made sparse by {item!r}: {_listed(reasons)}."
            )
        names |= found - set(left_alone or ())
    return names


def _listed(names):
    """Lists names, with the reason of each where there is one, as far as they can be read."""
    shown = [f"{name} ({why})" if why else name for name, why in names.items()][:_NAMES_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
