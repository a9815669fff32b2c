"""FLOPs of one forward pass, counted from the shapes of the layers' inputs."""

import contextlib
import inspect
import math
from dataclasses import dataclass, field

import keras
import numpy as np

from keras_sparse_dm._keras import flatten_layers, own_variables
from keras_sparse_dm.layers.masked import MaskedKernels, own_kernels, twin_class
from keras_sparse_dm.layers.shared_copy import shared_copy
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.metrics.costs.attention import (
    AttentionFlops,
    attention_rules,
    is_dot_product,
    known_shape,
)
from keras_sparse_dm.metrics.costs.example_inputs import example_inputs
from keras_sparse_dm.metrics.costs.kernels import counted_kernels, is_packed
from keras_sparse_dm.models import ChiroDiff, blocks

jax = lazy_module("jax")
tf = lazy_module("tensorflow")

# Weights of these layers scale, shift or are looked up; by convention they are not counted.
_LEFT_OUT = (
    keras.layers.BatchNormalization,
    keras.layers.Embedding,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
    keras.layers.RMSNormalization,
    keras.layers.SpectralNormalization,
)
# Classes of the `keras.ops` operations in a functional model that multiply and add.
_MULTIPLYING_OPERATIONS = {
    "Conv",
    "ConvTranspose",
    "DepthwiseConv",
    "Dot",
    "DotProductAttention",
    "Einsum",
    "Inner",
    "Matmul",
    "SeparableConv",
    "Tensordot",
    "Vdot",
}


@dataclass(frozen=True, eq=False)
class ForwardFlops:
    """FLOPs of one forward pass of one example, 2 per multiply-add.

    Attributes:
        kernels: `{kernel name: FLOPs}` with dense kernels; 0 for a kernel that is not applied.
        attention: `[(layer, AttentionFlops)]` of the layers that multiply activations.
        not_counted: `{layer name: reason}` of layers whose products, if any, are not counted.
    """

    kernels: dict
    attention: list = field(default_factory=list)
    not_counted: dict = field(default_factory=dict)


def kernel_flops(model, inputs):
    """Count the FLOPs of each kernel, taken as dense, in one forward pass of one example.

    Follows shapes only: computes nothing and does not initialize variables.

    Args:
        model: A built `keras.Model`, sparse or not.
        inputs: An example, or shapes, as in `cost`.

    Returns:
        `{kernel name: FLOPs}`, 2 per multiply-add, without kernels that are not applied.

    Raises:
        ValueError: as `forward_flops`.
    """
    flops = forward_flops(model, inputs).kernels
    return {name: count for name, count in flops.items() if count}


def forward_flops(model, inputs):
    """Count the FLOPs of one forward pass of one example without computing it.

    Counts the kernels of all layers that are sparse or have a sparse twin (in `keras.layers` the
    dense, convolution, recurrent and multi-head attention layers), and the products within
    attention. `not_counted` names other layers that have weights or operations which may
    multiply. Products without weights in the `call` of a custom layer stay unseen.

    Args:
        model: A built `keras.Model`, sparse or not.
        inputs: An example, or shapes, as in `cost`.

    Returns:
        A `ForwardFlops`.

    Raises:
        ValueError: for a model that is not built, a shape that is not known, or a layer whose
            input has an unknown shape.
    """
    if not model.built:
        raise ValueError(
            f"`model` {model.name!r} must be built, so that it has kernels to count; "
            "call it on an example, or `model.build(input_shape)`, first."
        )
    example = example_inputs(model, inputs)
    sizes = [np.shape(leaf)[0] for leaf in keras.tree.flatten(example) if np.ndim(leaf)]
    batch_size = sizes[0] if sizes else 1
    kernels = counted_kernels(model)
    record = _Record(model)
    unseen = _trace(record.model, example) - set(record.kernels)

    def of_one(count):
        return count // batch_size if count % batch_size == 0 else count / batch_size

    return ForwardFlops(
        kernels={k.name: of_one(record.kernels.get(id(k.kernel), 0)) for k in kernels},
        attention=[
            (layer, AttentionFlops(of_one(scores), of_one(values)))
            for layer, (scores, values) in record.attention.values()
        ],
        not_counted=_not_counted(model, [k for k in kernels if id(k.kernel) in unseen]),
    )


def _trace(model, inputs):
    """Call a model; on TensorFlow and JAX, only trace the call.

    Returns:
        Set of the `id` of each variable that was read.
    """
    scope = _Reads(initialize_variables=False)

    def call():
        with scope:
            return model(inputs)

    if keras.backend.backend() == "tensorflow":
        tf.function(call).get_concrete_function()
    elif keras.backend.backend() == "jax":
        jax.eval_shape(call)
    else:
        call()
    return scope.read


class _Reads(keras.StatelessScope):
    """Scope that records which variables are read, and drops what is assigned to them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.read = set()

    def get_current_value(self, variable):
        self.read.add(id(variable))
        return super().get_current_value(variable)


class _Record:
    """Counts the products of every call of a layer, on a copy of the model.

    Attributes:
        model: The copy to call.
        kernels: `{id(kernel): FLOPs}`, summed over the examples of the batch.
        attention: `{id(layer): (layer, [score FLOPs, value FLOPs])}`, summed likewise.
    """

    def __init__(self, model):
        self.kernels = {}
        self.attention = {}
        self._times = 1
        self.model, copies = shared_copy(model)
        self._originals = {id(new): layer for layer, new in copies.items()}
        self._counted = set()
        rules = attention_rules()
        for layer in copies.values():
            if isinstance(layer, keras.layers.RNN):
                self._observe(layer, self._recurrent)
            elif not is_packed(layer) and own_kernels(layer):
                self._observe(layer, self._with_kernels)
            for kind, rule in rules:
                if isinstance(layer, kind):
                    self._observe(layer, self._attention(rule))

    def _observe(self, layer, hook):
        """Make a layer of the copy run each call in the context that `hook` returns."""
        # Keras calls another method of quantized layers.
        quantized = getattr(layer, "quantization_mode", None) is not None
        name = "quantized_call" if quantized else "call"
        call = getattr(layer, name)

        def observed_call(*args, **kwargs):
            if not self._times:
                return call(*args, **kwargs)
            with hook(layer, args, kwargs) or contextlib.nullcontext():
                return call(*args, **kwargs)

        vars(layer)[name] = observed_call
        self._counted.add(id(layer))

    def _with_kernels(self, layer, args, kwargs):
        # The layer's input is the first argument; its name differs between layers.
        shape = known_shape(layer, (*args, *kwargs.values())[0])
        kernels = [kernel for kernel, _ in own_kernels(layer).values()]
        for kernel, times in zip(kernels, _applications(layer, shape), strict=True):
            count = 2 * math.prod(kernel.shape) * times * shape[0] * self._times
            self.kernels[id(kernel)] = self.kernels.get(id(kernel), 0) + count

    def _recurrent(self, layer, args, kwargs):
        # The layer calls its cell in a loop, or not at all if one fused operation does it all.
        # So count one step of the cell here, times the number of steps, and nothing in the call.
        sequences = (*args, *kwargs.values())[0]
        shape = known_shape(layer, keras.tree.flatten(sequences)[0])
        cells = {id(part) for part in flatten_layers(layer.cell)}
        if cells & self._counted:
            with self._counting(self._times * shape[1]):
                step = keras.tree.map_structure(lambda x: x[:, 0], sequences)
                layer.cell(step, layer.get_initial_state(shape[0]))
        return self._counting(0)

    def _attention(self, rule):
        def hook(layer, args, kwargs):
            arguments = inspect.signature(type(layer).call).bind(layer, *args, **kwargs).arguments
            products = rule(layer, arguments)
            original = self._originals[id(layer)]
            _, totals = self.attention.setdefault(id(layer), (original, [0, 0]))
            for i, count in enumerate(products):
                totals[i] += 2 * count * self._times

        return hook

    @contextlib.contextmanager
    def _counting(self, times):
        """Context in which every call counts `times` times."""
        before, self._times = self._times, times
        try:
            yield
        finally:
            self._times = before


def _applications(layer, shape):
    """List how often each kernel of a layer, sparse or not, is applied to one example."""
    if isinstance(layer, keras.layers.EinsumDense):
        # Once for each position along the axes that the kernel does not have.
        ((kernel, axes),) = own_kernels(layer).values()
        return [math.prod(shape[1:]) // math.prod(kernel.shape[axis] for axis in axes.inputs)]
    if isinstance(layer, MaskedKernels):
        return layer.kernel_applications(shape)
    # The method of a twin uses attributes of the plain layer only.
    return twin_class(type(layer)).kernel_applications(layer, shape)


def _not_counted(model, unseen):
    """Return `{layer name: reason}` of layers whose products, if any, are not counted.

    Args:
        unseen: List of `CountedKernel`, those that were read outside of any observed call.
    """
    reasons = {}

    def add(name, reason):
        reasons[name] = f"{reasons[name]}, {reason}" if name in reasons else reason

    for layer in flatten_layers(model):
        kind = type(layer).__name__
        name = getattr(layer, "path", None) or layer.name
        if is_packed(layer):
            add(name, f"{kind}, quantized ({layer.quantization_mode})")
            continue
        if getattr(layer, "lora_enabled", False):
            add(name, f"{kind}: weights of LoRA")
        if isinstance(layer, keras.layers.Dot):
            add(name, f"{kind}: multiplies activations")
        if isinstance(layer, keras.layers.Attention) and not is_dot_product(layer):
            add(name, f"{kind}: additive scores")
            continue
        for operation in getattr(layer, "operations", ()):
            multiplies = type(operation).__name__ in _MULTIPLYING_OPERATIONS
            if multiplies and not isinstance(operation, keras.layers.Layer):
                add(operation.name, f"{type(operation).__name__}: multiplies activations")
        if own_kernels(layer) or _is_left_out(layer):
            continue
        shapes = [
            f"{v.name} {'x'.join(map(str, v.shape)) or 'scalar'}"
            for v in own_variables(layer)
            if keras.backend.is_float_dtype(v.dtype) and v.name != "rnn_state"
        ]
        if shapes:
            add(name, f"{kind}: {', '.join(shapes)}")
    for kernel in unseen:
        name = getattr(kernel.layer, "path", None) or kernel.layer.name
        add(name, f"{type(kernel.layer).__name__}: called through no attribute of its model")
    return reasons


def _is_left_out(layer):
    """Tell if a layer's class is known to have no kernels; False for custom classes."""
    # ChiroDiff's only weights of its own are the frequencies of its time features.
    kinds = (*_LEFT_OUT, keras.layers.Attention, blocks.GroupNorm, ChiroDiff)
    return type(layer) in kinds
