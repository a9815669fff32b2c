"""Dead and constant units of `Sequential` and functional models."""

from dataclasses import dataclass, field, replace

import keras
import numpy as np
from keras.ops import convert_to_numpy as to_numpy

from keras_sparse_dm._keras import graph_nodes
from keras_sparse_dm.export.dead_units.kept_units import KernelParts, at_least, row
from keras_sparse_dm.layers.masked import TWINS

# Layers that process each channel separately.
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


@dataclass(eq=False)
class _Producer:
    """A `Dense` or convolution layer of a graph, whose units can be removed.

    Attributes:
        layer: The layer.
        source: `_Channels` of its inputs, or None if no producer's units lead there.
        consumers: List of `(_Producer, _Channels)`: the layers that read its units, and the form in
            which the units arrive there.
        reason: Reason to keep all its units, or None.
        keep, live: Boolean arrays of its units.
        leads_to: Boolean array (inputs, units), True for an active weight.
        sums: Array (inputs, units), effect on each unit of an input that is 1 in the whole window.
    """

    layer: keras.layers.Layer
    source: "object"
    consumers: list = field(default_factory=list)
    reason: str | None = None
    keep: np.ndarray | None = None
    live: np.ndarray | None = None

    def __post_init__(self):
        kernel = to_numpy(self.layer.kernel).astype("float64")
        window = tuple(range(kernel.ndim - 2))
        self.leads_to = np.any(kernel, axis=window)
        self.sums = np.sum(kernel, axis=window)

    @property
    def sees_inputs_alone(self):
        """True if the layer does not pad its inputs with zeros."""
        return isinstance(self.layer, keras.layers.Dense) or (
            self.layer.padding == "valid" or set(self.layer.kernel_size) == {1}
        )

    def takes_constants(self, channels):
        """Tell for each channel whether a constant can move into the bias, or has no effect."""
        unused = ~np.any(self.leads_to.reshape(channels.repeats, len(channels.values), -1), (0, 2))
        if self.sees_inputs_alone and self.layer.use_bias:
            return np.ones_like(unused)
        return unused | (channels.values == 0)


@dataclass(frozen=True, eq=False)
class _Channels:
    """Units of a producer at some point on their way to its consumers.

    Attributes:
        producer: The `_Producer`.
        constant: Boolean array, True for units with one value at all positions and for all inputs.
        values: Array of these values, zero for the other units.
        repeats: Number of copies of the units along the last axis, more than 1 after `Flatten`.
    """

    producer: _Producer
    constant: np.ndarray
    values: np.ndarray
    repeats: int = 1

    def through(self, function):
        """Return these units after an elementwise function."""
        return replace(self, values=np.where(self.constant, function(self.values), 0.0))


def smaller_graph(model):
    """Return a smaller model, rows of a `DeadUnits` table, and `{layer: reason to keep units}`."""
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
    """Tell whether a layer processes each channel of inputs of a shape separately."""
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
    """Return the `_Channels` of a producer's outputs."""
    layer, source = producer.layer, producer.source
    rows, units = producer.leads_to.shape
    bias = to_numpy(layer.bias).astype("float64") if layer.use_bias else np.zeros(units)
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
    """Return the `_Channels` after a layer that processes each channel separately."""
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
    return lambda values: to_numpy(function(keras.ops.convert_to_tensor(values, "float32")))


def _normalization(layer):
    """Return each channel's factor and offset of a batch normalization outside training."""
    mean, variance = to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)
    scale = 1.0 / np.sqrt(variance.astype("float64") + layer.epsilon)
    if layer.scale:
        scale = scale * to_numpy(layer.gamma)
    return scale, (to_numpy(layer.beta) if layer.center else 0.0) - mean * scale


def _choose(producer):
    """Decide which units of a producer to keep, after those of all its consumers."""
    units = producer.leads_to.shape[1]
    producer.live, constant = np.zeros(units, "bool"), np.ones(units, "bool")
    if producer.reason is not None:
        producer.live[:], constant[:] = True, False
    for consumer, channels in producer.consumers:
        leads_to = np.any(consumer.leads_to[:, consumer.keep], axis=1)
        producer.live |= np.any(leads_to.reshape(channels.repeats, units), axis=0)
        constant &= channels.constant & consumer.takes_constants(channels)
    producer.keep = at_least(producer.live & ~constant, 1)


def _rebuilt(model, producers, normalizations):
    config = model.get_config()
    for entry in config["layers"]:
        # It holds the shapes of the larger model.
        entry.pop("build_config", None)
        producer = producers.get(entry["config"].get("name"))
        if producer is not None:
            inputs = _kept_inputs(producer)
            if not (inputs.all() and producer.keep.all()):
                entry["config"].pop("mask_targets", None)
            size = "units" if isinstance(producer.layer, keras.layers.Dense) else "filters"
            entry["config"][size] = int(producer.keep.sum())
    smaller = type(model).from_config(config)
    fill = KernelParts(model, smaller)
    for old in model.layers:
        new = smaller.get_layer(old.name)
        if old.name in producers:
            producer = producers[old.name]
            fill(old.kernel, new.kernel, _kept_inputs(producer), producer.keep)
            if old.use_bias:
                new.bias.assign((to_numpy(old.bias) + _folded(producer))[producer.keep])
        elif old.name in normalizations:
            for one, other in zip(old.variables, new.variables, strict=True):
                other.assign(to_numpy(one)[normalizations[old.name].keep])
        else:
            for one, other in zip(old.variables, new.variables, strict=True):
                other.assign(one)
    rows = [row(name, p.keep, p.live) for name, p in producers.items() if p.reason is None]
    return smaller, rows, {name: p.reason for name, p in producers.items() if p.reason}


def _kept_inputs(producer):
    if producer.source is None:
        return np.ones(producer.leads_to.shape[0], "bool")
    return np.tile(producer.source.producer.keep, producer.source.repeats)


def _folded(producer):
    """Return the effect of removed constants on a producer's units, for its bias."""
    source = producer.source
    if source is None:
        return 0.0
    gone = ~source.producer.keep & source.constant
    return np.tile(np.where(gone, source.values, 0.0), source.repeats) @ producer.sums
