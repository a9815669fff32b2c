"""Units that pruning left without use, cut out for real: a smaller model with the same answers.

A unit is dead where no active weight leads from it to an output of the model, and constant where
no active weight leads to it. A dead one is left out. So is a constant one, whose value goes into
the biases of the layers after it.
"""

import contextlib
from dataclasses import dataclass, field, replace

import keras
import numpy as np

from keras_sparse_dm._keras import graph_nodes
from keras_sparse_dm.diffusion import DiffusionModel
from keras_sparse_dm.layers.masked import TWINS
from keras_sparse_dm.models import ChiroDiff
from keras_sparse_dm.sparsity.kernels import masked_kernels

# What is done to each channel alone.
_IDENTITIES = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.GaussianNoise,
    keras.layers.GaussianDropout,
    keras.layers.UpSampling1D,
    keras.layers.UpSampling2D,
)
_POOLINGS = (
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
)
_ACTIVATIONS = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU)
_ELEMENTWISE = {
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("sigmoid", "log_sigmoid", "hard_sigmoid", "hard_silu", "tanh", "hard_tanh", "softplus"),
    *("softsign", "exponential"),
}


@dataclass(frozen=True)
class DeadUnits:
    """What `remove_dead_units` has removed; prints as a table.

    Attributes:
        layers: Tuple of `(layer, units before, units after, dead, constant)`, of all layers whose
            units could be removed, `dead` and `constant` of the removed ones. A layer keeps one
            unit, and the two directions of a bidirectional one keep as many as each other.
        parameters_before, parameters_after: Trainable parameters of the network.
        left_alone: `{layer: reason}` of those whose units cannot be removed.
        largest_difference: Between the answers of both models to the example; None without one.
    """

    layers: tuple
    parameters_before: int
    parameters_after: int
    left_alone: dict = field(default_factory=dict)
    largest_difference: float | None = None

    @property
    def removed(self):
        """Number of units that were removed."""
        return sum(before - after for _, before, after, _, _ in self.layers)

    def __str__(self):
        rows = [("layer", "units", "left", "dead", "constant"), *self.layers]
        widths = [max(len(str(row[i])) for row in rows) for i in range(5)]
        lines = [
            "  ".join(
                f"{str(cell):{'<' if i == 0 else '>'}{w}}" for i, (cell, w) in enumerate(cells)
            )
            for cells in (list(zip(row, widths, strict=True)) for row in rows)
        ]
        lines.append(f"parameters: {self.parameters_before:,}, left {self.parameters_after:,}")
        lines += [f"{name} left alone: {reason}" for name, reason in self.left_alone.items()]
        return "\n".join(lines)


def remove_dead_units(model, example=None):
    """Makes a smaller model without the units that pruning left without use.

    The answers are the same but for the order in which floats are added up. Taken are

    - `ChiroDiff`, or a `DiffusionModel` of one: the units of its GRUs and of the layer after them.
      A GRU's unit is dead where its outgoing weights, to the later layers and to units that are
      not dead themselves, are all pruned; it is constant, and zero, where no active weight leads
      to its candidate state and that has no bias, for the state begins at zero. (With a bias, it
      changes from step to step.)
    - `Sequential` and functional models: the units of `Dense`, and the filters of `Conv1D` and
      `Conv2D` without groups, wherever only activations that work element by element, batch
      normalization, pooling, upsampling, dropout and `Flatten` come before the next such layers.
      A constant that is not zero needs a bias in the layers after it, and is kept before a
      convolution that pads with zeros.

    Of a `DiffusionModel` averaged (EMA) weights are used where there are any. Sparse layers stay
    sparse, with what is left of their masks; the model is not compiled.

    Args:
        model: A built `keras.Model`, which is left as it is.
        example: Inputs, as the model is called on them, for which both models are to answer the
            same; None for no such check.

    Returns:
        `(smaller model, DeadUnits)`.

    Raises:
        ValueError: for a model of another kind, or one that is not built.
        ArithmeticError: if the answers to the example differ by more than 1e-4 of the largest.

    Example:

    >>> smaller, removed = remove_dead_units(model)
    >>> print(removed)
    """
    if not model.built:
        raise ValueError(f"`model` {model.name!r} must be built: call it on a batch first.")
    diffusion = type(model) is DiffusionModel
    network = model.denoiser if diffusion else model
    make_smaller = _smaller_graph
    if isinstance(network, ChiroDiff):
        make_smaller = _smaller_chirodiff
    elif graph_nodes(network) is None:
        raise ValueError(
            "`model` must be a ChiroDiff, a DiffusionModel of one, or a Sequential or functional "
            f"model; received a {type(network).__name__}, whose structure this does not know."
        )
    with model.averaged_weights() if diffusion else contextlib.nullcontext():
        smaller, layers, left_alone = make_smaller(network)
        difference = None if example is None else _difference(network, smaller, example)
    before, after = (
        sum(int(np.prod(v.shape)) for v in m.trainable_variables) for m in (network, smaller)
    )
    if diffusion:
        smaller = DiffusionModel(smaller, model.noise_schedule, seed=model.seed)
    return smaller, DeadUnits(tuple(layers), before, after, left_alone, difference)


def _difference(model, smaller, example):
    """Largest difference of two models' answers."""
    wanted, found = (
        [_numpy(answer) for answer in keras.tree.flatten(m(example, training=False))]
        for m in (model, smaller)
    )
    difference = max(float(np.max(np.abs(a - b))) for a, b in zip(wanted, found, strict=True))
    largest = max(float(np.max(np.abs(answer))) for answer in wanted)
    if not difference <= 1e-4 * max(1.0, largest):
        raise ArithmeticError(
            f"The smaller model answers the example otherwise, by up to {difference:.3g}."
        )
    return difference


# ChiroDiff -------------------------------------------------------------------------------------


def _smaller_chirodiff(network):
    pairs = [(layer.forward_layer.cell, layer.backward_layer.cell) for layer in network.recurrent]
    projection, noise = network.output_projection, network.noise_projection
    # From the points on: which units are always zero.
    zeros, varying = [], np.ones(pairs[0][0].kernel.shape[0], "bool")
    for pair in pairs:
        zeros.append([_zero_units(cell, varying) for cell in pair])
        varying = ~np.concatenate(zeros[-1])
    kernel, noise_kernel = _numpy(projection.kernel), _numpy(noise.kernel)
    constant = ~np.any(kernel[varying], axis=0)
    # From the noise back: which ones are of use.
    width = kernel.shape[1]
    live = np.any(noise_kernel[:width], axis=1)
    needed = live & ~constant
    keep = _at_least(needed, 1)
    rows = [(projection.name, keep, live)]
    kept, used = [], np.any(kernel[:, needed], axis=1)
    for pair, zero in zip(reversed(pairs), reversed(zeros), strict=True):
        units = pair[0].units
        lives = [
            _live_units(_numpy(cell.recurrent_kernel), half)
            for cell, half in zip(pair, (used[:units], used[units:]), strict=True)
        ]
        needed = [one & ~other for one, other in zip(lives, zero, strict=True)]
        number = max(1, *(int(one.sum()) for one in needed))
        kept.insert(0, [_at_least(one, number) for one in needed])
        name = network.recurrent[len(pairs) - len(kept)].name
        rows[:0] = [
            (f"{name}/{direction}", *facts)
            for direction, *facts in zip(("forward", "backward"), kept[0], lives, strict=True)
        ]
        used = np.any(
            [
                np.any(_numpy(cell.kernel)[:, np.tile(one, 3)], axis=1)
                for cell, one in zip(pair, needed, strict=True)
            ],
            axis=0,
        )
    config = network.get_config() | {
        "units": [int(pair[0].sum()) for pair in kept],
        "projection_units": int(keep.sum()),
    }
    smaller = ChiroDiff.from_config(config)
    smaller.time_frequencies.assign(network.time_frequencies)
    fill = _Filling(network, smaller)
    inputs = np.ones(pairs[0][0].kernel.shape[0], "bool")
    for pair, layer, keeps in zip(pairs, smaller.recurrent, kept, strict=True):
        new_pair = (layer.forward_layer.cell, layer.backward_layer.cell)
        for cell, new, of_units in zip(pair, new_pair, keeps, strict=True):
            gates = np.tile(of_units, 3)
            fill(cell.kernel, new.kernel, inputs, gates)
            fill(cell.recurrent_kernel, new.recurrent_kernel, of_units, gates)
            new.bias.assign(_numpy(cell.bias)[:, gates])
        inputs = np.concatenate(keeps)
    bias = _numpy(projection.bias)
    fill(projection.kernel, smaller.output_projection.kernel, inputs, keep)
    smaller.output_projection.bias.assign(bias[keep])
    time = np.ones(network.time_features, "bool")
    everything = np.ones(noise_kernel.shape[1], "bool")
    fill(noise.kernel, smaller.noise_projection.kernel, np.concatenate([keep, time]), everything)
    gone = constant & ~keep
    folded = bias[gone].astype("float64") @ noise_kernel[:width][gone]
    smaller.noise_projection.bias.assign(_numpy(noise.bias) + folded)
    return smaller, [_row(*row) for row in rows], {}


def _zero_units(cell, varying):
    """Units of a GRU whose state is zero at all times, as it is before the first.

    The state moves towards a candidate, tanh of what comes in; without that it stays. What its
    gates say is of no matter then.

    Args:
        cell: A `GRUCell`.
        varying: Boolean array of the inputs, False where they are zero at all times.
    """
    begin = 2 * cell.units
    zero = ~np.any(_numpy(cell.kernel)[varying, begin:], axis=0)
    zero &= ~np.any(_numpy(cell.bias)[..., begin:].reshape(-1, cell.units), axis=0)
    recurrent = _numpy(cell.recurrent_kernel)[:, begin:]
    while True:
        fewer = zero & ~np.any(recurrent[~zero], axis=0)
        if np.array_equal(fewer, zero):
            return zero
        zero = fewer


def _live_units(recurrent_kernel, used):
    """Units of a GRU that are used after it, or by units that are."""
    leads_to = np.any(recurrent_kernel.reshape(len(used), 3, len(used)), axis=1)
    while True:
        more = used | np.any(leads_to[:, used], axis=1)
        if np.array_equal(more, used):
            return used
        used = more


# Sequential and functional models --------------------------------------------------------------


@dataclass(eq=False)
class _Producer:
    """A `Dense` or convolution layer of a graph.

    Attributes:
        layer: The layer.
        source: `_Channels` that it is applied to, or None for those that stay as they are.
        consumers: List of those that are applied to its units, with the `_Channels` they get.
        reason: Why its units must stay, or None.
        keep, live: Boolean arrays of its units.
    """

    layer: keras.layers.Layer
    source: "object"
    consumers: list = field(default_factory=list)
    reason: str | None = None
    keep: np.ndarray | None = None
    live: np.ndarray | None = None

    def __post_init__(self):
        kernel = _numpy(self.layer.kernel).astype("float64")
        window = tuple(range(kernel.ndim - 2))
        self.leads_to = np.any(kernel, axis=window)
        # What an input that is the same in the whole window adds to each unit.
        self.sums = np.sum(kernel, axis=window)

    @property
    def sees_inputs_alone(self):
        """Whether no zeros are put around its inputs."""
        return isinstance(self.layer, keras.layers.Dense) or (
            self.layer.padding == "valid" or set(self.layer.kernel_size) == {1}
        )

    def takes_constants(self, channels):
        """Which channels' constants it can do without, for its bias or because they are zero."""
        unused = ~np.any(self.leads_to.reshape(channels.repeats, len(channels.values), -1), (0, 2))
        if self.sees_inputs_alone and self.layer.use_bias:
            return np.ones_like(unused)
        return unused | (channels.values == 0)


@dataclass(frozen=True, eq=False)
class _Channels:
    """The units of a producer, on their way to its consumers.

    Attributes:
        producer: The `_Producer`.
        constant: Boolean array of the units that are the same everywhere for all inputs.
        values: Their values; zero of the others.
        repeats: How often they follow each other on the last axis, after `Flatten`.
    """

    producer: _Producer
    constant: np.ndarray
    values: np.ndarray
    repeats: int = 1

    def through(self, function):
        return replace(self, values=np.where(self.constant, function(self.values), 0.0))


def _smaller_graph(model):
    nodes = graph_nodes(model)
    operations = [id(node.operation) for node in nodes]
    kernels = [id(v) for node in nodes for v in getattr(node.operation, "variables", ())]
    producers, normalizations = [], {}
    channels = {}
    for node in nodes:
        layer = node.operation
        inputs = [channels.get(id(tensor)) for tensor in node.input_tensors]
        once = operations.count(id(layer)) == 1 and all(
            kernels.count(id(v)) == 1 for v in getattr(layer, "variables", ())
        )
        after = None
        if once and _is_producer(layer):
            producer = _Producer(layer, inputs[0])
            producers.append(producer)
            if inputs[0] is not None:
                inputs[0].producer.consumers.append((producer, inputs[0]))
            if _is_elementwise(layer.activation):
                after = _constants(producer)
            else:
                producer.reason = f"its activation {_name(layer.activation)} mixes units"
        elif (
            once
            and len(inputs) == 1
            and inputs[0] is not None
            and _is_channelwise(layer, node.input_tensors[0].shape, inputs[0].repeats)
        ):
            after = _passed(layer, inputs[0], node.input_tensors[0].shape)
            if isinstance(layer, keras.layers.BatchNormalization):
                normalizations[layer.name] = inputs[0].producer
        else:
            for one in inputs:
                _leave_alone(one, f"followed by {type(layer).__name__} {layer.name!r}")
        if after is not None:
            channels[id(node.outputs[0])] = after
    for tensor in model.outputs:
        _leave_alone(channels.get(id(tensor)), "an output of the model")
    for producer in reversed(producers):
        _choose(producer)
    return _rebuilt(model, {p.layer.name: p for p in producers}, normalizations)


def _is_producer(layer):
    classes = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)
    if type(layer) not in (*classes, *(TWINS[cls] for cls in classes)):
        return False
    if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
        return False
    return getattr(layer, "groups", 1) == 1 and _channels_last(layer)


def _is_channelwise(layer, shape, repeats):
    """Whether a layer, on inputs of that shape, works on each channel alone."""
    cls = type(layer)
    if cls is keras.layers.BatchNormalization:
        return layer.axis in (-1, len(shape) - 1) and repeats == 1
    if cls is keras.layers.Flatten:
        return None not in shape[1:] and _channels_last(layer)
    if cls is keras.layers.Activation:
        return _is_elementwise(layer.activation)
    known = (*_IDENTITIES, *_POOLINGS, *_ACTIVATIONS)
    return cls in known and _channels_last(layer)


def _channels_last(layer):
    return getattr(layer, "data_format", None) in (None, "channels_last")


def _is_elementwise(activation):
    name = _name(activation)
    return name in _ELEMENTWISE and getattr(keras.activations, name, None) is activation


def _name(activation):
    return getattr(activation, "__name__", type(activation).__name__)


def _leave_alone(channels, reason):
    if channels is not None:
        channels.producer.reason = channels.producer.reason or reason


def _constants(producer):
    """Returns the `_Channels` that a producer gives."""
    layer, source = producer.layer, producer.source
    rows, units = producer.leads_to.shape
    bias = _numpy(layer.bias).astype("float64") if layer.use_bias else np.zeros(units)
    known, values = np.zeros(rows, "bool"), np.zeros(rows)
    if source is not None:
        known = np.tile(source.constant, source.repeats)
        values = np.tile(source.values, source.repeats)
    constant = ~np.any(producer.leads_to[~known], axis=0)
    if not producer.sees_inputs_alone:
        constant &= ~np.any(producer.leads_to[known & (values != 0)], axis=0)
    before = bias + values @ producer.sums
    return _Channels(producer, constant, before).through(_applied(layer.activation))


def _passed(layer, channels, shape):
    """Returns the `_Channels` after a layer that works on each channel alone."""
    if isinstance(layer, keras.layers.Flatten):
        return replace(channels, repeats=channels.repeats * int(np.prod(shape[1:-1])))
    if isinstance(layer, keras.layers.BatchNormalization):
        scale, offset = _normalization(layer)
        return channels.through(lambda values: values * scale + offset)
    if isinstance(layer, keras.layers.Activation):
        return channels.through(_applied(layer.activation))
    if isinstance(layer, _ACTIVATIONS):
        return channels.through(_applied(layer))
    return channels


def _applied(function):
    return lambda values: _numpy(function(keras.ops.convert_to_tensor(values, "float32")))


def _normalization(layer):
    """Factor and offset of each channel, outside training."""
    mean, variance = _numpy(layer.moving_mean), _numpy(layer.moving_variance)
    scale = 1.0 / np.sqrt(variance.astype("float64") + layer.epsilon)
    if layer.scale:
        scale = scale * _numpy(layer.gamma)
    return scale, (_numpy(layer.beta) if layer.center else 0.0) - mean * scale


def _choose(producer):
    """Decides which units of a producer stay, when that of all after it is decided."""
    units = producer.leads_to.shape[1]
    producer.live, constant = np.zeros(units, "bool"), np.ones(units, "bool")
    if producer.reason is not None:
        producer.live[:], constant[:] = True, False
    for consumer, channels in producer.consumers:
        leads_to = np.any(consumer.leads_to[:, consumer.keep], axis=1)
        producer.live |= np.any(leads_to.reshape(channels.repeats, units), axis=0)
        constant &= channels.constant & consumer.takes_constants(channels)
    producer.keep = _at_least(producer.live & ~constant, 1)


def _rebuilt(model, producers, normalizations):
    config = model.get_config()
    for entry in config["layers"]:
        # That of the shapes before.
        entry.pop("build_config", None)
        producer = producers.get(entry["config"].get("name"))
        if producer is not None:
            inputs = _kept_inputs(producer)
            if not (inputs.all() and producer.keep.all()):
                entry["config"].pop("mask_targets", None)
            size = "units" if isinstance(producer.layer, keras.layers.Dense) else "filters"
            entry["config"][size] = int(producer.keep.sum())
    smaller = type(model).from_config(config)
    fill = _Filling(model, smaller)
    for old in model.layers:
        new = smaller.get_layer(old.name)
        if old.name in producers:
            producer = producers[old.name]
            fill(old.kernel, new.kernel, _kept_inputs(producer), producer.keep)
            if old.use_bias:
                new.bias.assign((_numpy(old.bias) + _folded(producer))[producer.keep])
        elif old.name in normalizations:
            for one, other in zip(old.variables, new.variables, strict=True):
                other.assign(_numpy(one)[normalizations[old.name].keep])
        else:
            for one, other in zip(old.variables, new.variables, strict=True):
                other.assign(one)
    rows = [_row(name, p.keep, p.live) for name, p in producers.items() if p.reason is None]
    return smaller, rows, {name: p.reason for name, p in producers.items() if p.reason}


def _kept_inputs(producer):
    if producer.source is None:
        return np.ones(producer.leads_to.shape[0], "bool")
    return np.tile(producer.source.producer.keep, producer.source.repeats)


def _folded(producer):
    """What the constants before a producer that were removed add to its units."""
    source = producer.source
    if source is None:
        return 0.0
    gone = ~source.producer.keep & source.constant
    return np.tile(np.where(gone, source.values, 0.0), source.repeats) @ producer.sums


# Both ------------------------------------------------------------------------------------------


class _Filling:
    """Puts parts of a model's kernels, and of their masks, into a smaller model."""

    def __init__(self, model, smaller):
        self._masks = {id(k.kernel): k.mask for m in (model, smaller) for k in masked_kernels(m)}

    def __call__(self, kernel, new, inputs, outputs):
        """Keeps inputs and outputs, the last two axes, where boolean arrays are True."""
        new.assign(_numpy(kernel)[..., inputs, :][..., outputs])
        if id(new) in self._masks:
            mask = _numpy(self._masks[id(kernel)])
            self._masks[id(new)].assign(mask[..., inputs, :][..., outputs])


def _at_least(needed, number):
    """Adds units to those that are needed, the first ones, until there are so many."""
    keep = needed.copy()
    keep[np.flatnonzero(~needed)[: max(0, number - int(needed.sum()))]] = True
    return keep


def _row(name, keep, live):
    return name, len(keep), int(keep.sum()), int(np.sum(~keep & ~live)), int(np.sum(~keep & live))


def _numpy(value):
    return keras.ops.convert_to_numpy(value)
