"""FLOPs of one forward pass, from the shapes that go through a model's layers."""

import contextlib
import inspect
import math
from dataclasses import dataclass, field

import keras
import numpy as np

from keras_sparse_dm._keras import flatten_layers, own_variables
from keras_sparse_dm.layers.kernel_mask import KernelAxes
from keras_sparse_dm.layers.masked import MaskedKernels, own_kernels, twin_class
from keras_sparse_dm.layers.shared_copy import shared_copy
from keras_sparse_dm.sparsity.kernels import masked_kernels

# Their weights scale, shift or are looked up: left out by convention, as biases are.
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
# Operations of `keras.ops` that multiply and add, as they are called in a functional model.
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
class CountedKernel:
    """One kernel of a model, sparse or not.

    Attributes:
        name: The variable's path, made unique within the model; a sparse kernel's is that of
            `sparsity_report`.
        kernel: The `keras.Variable`.
        mask: Its boolean mask variable; None for the kernel of a layer that is not sparse.
        axes: `KernelAxes`, what its axes stand for.
        asked: Density that `sparsify` asked for, or None.
        layer: The layer that owns it.
    """

    name: str
    kernel: keras.Variable
    mask: keras.Variable | None
    axes: KernelAxes
    asked: float | None
    layer: keras.layers.Layer

    @property
    def size(self):
        """Number of weights, pruned ones included."""
        return math.prod(self.kernel.shape)


@dataclass(frozen=True)
class AttentionFlops:
    """Products of activations with each other in one attention layer, 2 FLOPs per multiply-add.

    Attributes:
        scores: Of queries with keys.
        values: Of the scores with the values.
    """

    scores: float = 0
    values: float = 0


@dataclass(frozen=True, eq=False)
class ForwardFlops:
    """What one forward pass of one example takes, 2 FLOPs per multiply-add.

    Attributes:
        kernels: `{kernel name: FLOPs}`, as if it were dense; 0 for one that is not applied.
        attention: `[(layer, AttentionFlops)]` of the layers that multiply activations.
        not_counted: `{layer name: reason}` of what multiplies, or may, and is not in the count.
    """

    kernels: dict
    attention: list = field(default_factory=list)
    not_counted: dict = field(default_factory=dict)


def kernel_flops(model, inputs):
    """Counts the FLOPs of each kernel in one forward pass of one example, as if it were dense.

    Nothing is computed, and variables that hold no value yet get none: a network's cost is
    known from its shapes alone.

    Args:
        model: A built `keras.Model`, sparse or not.
        inputs: An example, or shapes, as in `cost`.

    Returns:
        `{kernel name: FLOPs}`, 2 per multiply-add; a kernel that is not applied is left out.

    Raises:
        ValueError: as `forward_flops`.
    """
    flops = forward_flops(model, inputs).kernels
    return {name: count for name, count in flops.items() if count}


def forward_flops(model, inputs):
    """Counts what one forward pass of one example takes, layer by layer; computes nothing.

    Counted are the kernels of all layers that are sparse or have a sparse twin, among them
    everything in `keras.layers` that is dense, a convolution, recurrent or multi-head
    attention, and the products within attention. What else multiplies is named in
    `not_counted`, as far as a layer or its weights show it; products that a `call` of one's own
    makes without weights cannot be seen.

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
            f"`model` {model.name!r} must be built, so that its kernels are there to count; "
            "call it on an example, or `model.build(input_shape)`, first."
        )
    example = example_inputs(model, inputs)
    sizes = [np.shape(leaf)[0] for leaf in keras.tree.flatten(example) if np.ndim(leaf)]
    batch_size = sizes[0] if sizes else 1
    kernels = counted_kernels(model)
    record = _Record(model)
    read = _trace(record.model, example)

    unseen = read - set(record.kernels)

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


def counted_kernels(model):
    """Lists the kernels whose FLOPs are counted, each once, in the order of the variables.

    Args:
        model: A built `keras.Model`, sparse or not.

    Returns:
        List of `CountedKernel`.
    """
    sparse = {id(k.kernel): k for k in masked_kernels(model)}
    names = {k.name for k in sparse.values()}
    order = {id(variable): i for i, variable in enumerate(model.variables)}
    found = {}
    for layer in flatten_layers(model):
        if not _is_packed(layer):
            for kernel, axes in own_kernels(layer).values():
                found.setdefault(id(kernel), (kernel, axes, layer))
    kernels = []
    for key in sorted(found, key=order.__getitem__):
        kernel, axes, layer = found[key]
        masked = sparse.get(key)
        name, number = kernel.path, 0
        while masked is None and name in names:
            number += 1
            name = f"{kernel.path}_{number}"
        names.add(name)
        kernels.append(
            CountedKernel(
                name=name if masked is None else masked.name,
                kernel=kernel,
                mask=None if masked is None else masked.mask,
                axes=axes,
                asked=None if masked is None else masked.target.density,
                layer=layer,
            )
        )
    return kernels


def example_inputs(model, inputs):
    """Returns inputs in which shapes are replaced by zeros of that shape.

    Args:
        model: The `keras.Model` that they are for; one with symbolic inputs says their types.
        inputs: Arrays or tensors, shapes, or tuples, lists and dictionaries of these. A shape is
            a tuple or list of integers, the batch axis first, which may be None and is 1 then;
            or a `keras.KerasTensor` or `tf.TensorSpec`. Where neither the model nor it gives a
            type, a shape of the batch axis alone stands for integers, as timesteps and lengths
            are, and any other for floats.

    Raises:
        ValueError: for a shape with unknown axes beside the batch axis.
    """

    def marked(value):
        if isinstance(value, keras.KerasTensor) or type(value).__name__ == "TensorSpec":
            return _Shape(value.shape, getattr(value.dtype, "name", value.dtype))
        if isinstance(value, dict):
            return {key: marked(v) for key, v in value.items()}
        if not isinstance(value, (tuple, list)):
            return value
        if value and all(n is None or isinstance(n, (int, np.integer)) for n in value):
            return _Shape(value)
        return type(value)(marked(v) for v in value)

    structure = marked(inputs)
    leaves = keras.tree.flatten(structure)
    symbolic = keras.tree.flatten(getattr(model, "inputs", None) or [])
    types = [tensor.dtype for tensor in symbolic]
    if len(types) != len(leaves):
        types = [None] * len(leaves)
    leaves = [
        leaf.zeros(dtype) if isinstance(leaf, _Shape) else leaf
        for leaf, dtype in zip(leaves, types, strict=True)
    ]
    return keras.tree.pack_sequence_as(structure, leaves)


class _Shape:
    """Stands for an input of which only the shape is given."""

    def __init__(self, shape, dtype=None):
        self.shape = tuple(shape)
        self.dtype = dtype

    def zeros(self, dtype=None):
        shape = (1, *self.shape[1:]) if self.shape[:1] == (None,) else self.shape
        if any(n is None or n < 1 for n in shape):
            raise ValueError(
                "`inputs` must have known shapes with all axes 1 or longer, the batch axis first; "
                f"received {self.shape}."
            )
        dtype = self.dtype or dtype or ("int32" if len(shape) == 1 else "float32")
        # NumPy has not all types of floats, and layers cast theirs.
        return np.zeros(shape, "float32" if "float" in dtype else dtype)


def _trace(model, inputs):
    """Call a model without computing anything, where the backend can.

    Returns:
        Set of the `id` of the variables that were read.
    """
    scope = _Reads(initialize_variables=False)

    def call():
        with scope:
            return model(inputs)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.function(call).get_concrete_function()
    else:
        call()
    return scope.read


class _Reads(keras.StatelessScope):
    """Scope that notes the variables that are read; nothing that is assigned in it remains."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.read = set()

    def get_current_value(self, variable):
        self.read.add(id(variable))
        return super().get_current_value(variable)


class _Record:
    """Sums what the calls of a model's layers multiply, on a copy of the model.

    Attributes:
        model: The copy to call.
        kernels: `{id(kernel): FLOPs}` of all examples of the batch.
        attention: `{id(layer): (layer, [scores, values])}`, likewise.
    """

    def __init__(self, model):
        self.kernels = {}
        self.attention = {}
        self._times = 1
        self.model, copies = shared_copy(model)
        self._originals = {id(new): layer for layer, new in copies.items()}
        self._counted = set()
        rules = _attention_rules()
        for layer in copies.values():
            if isinstance(layer, keras.layers.RNN):
                self._observe(layer, self._recurrent)
            elif not _is_packed(layer) and own_kernels(layer):
                self._observe(layer, self._with_kernels)
            for kind, rule in rules:
                if isinstance(layer, kind):
                    self._observe(layer, self._attention(rule))

    def _observe(self, layer, hook):
        """Make a layer of the copy call `hook` before each call; what it returns is entered."""
        # What Keras calls.
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
        # The first argument, whatever its name.
        shape = _known_shape(layer, (*args, *kwargs.values())[0])
        kernels = [kernel for kernel, _ in own_kernels(layer).values()]
        for kernel, times in zip(kernels, _applications(layer, shape), strict=True):
            count = 2 * math.prod(kernel.shape) * times * shape[0] * self._times
            self.kernels[id(kernel)] = self.kernels.get(id(kernel), 0) + count

    def _recurrent(self, layer, args, kwargs):
        # The cell is called in a loop, or not at all where all of it is one fused operation:
        # one step is counted apart, and what happens in the layer's own call is not.
        sequences = (*args, *kwargs.values())[0]
        shape = _known_shape(layer, keras.tree.flatten(sequences)[0])
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
        """Context in which every call counts so often."""
        before, self._times = self._times, times
        try:
            yield
        finally:
            self._times = before


def _known_shape(layer, tensor):
    shape = tuple(tensor.shape)
    if None in shape:
        raise ValueError(
            f"`inputs` must determine the shapes in all layers; {layer.name!r} "
            f"({type(layer).__name__}) receives {shape}, which is not known before it is computed."
        )
    return shape


def _applications(layer, shape):
    """How often each kernel of a layer, sparse or not, is applied to one example."""
    if isinstance(layer, keras.layers.EinsumDense):
        # Once for each place along the axes that are not the kernel's.
        ((kernel, axes),) = own_kernels(layer).values()
        return [math.prod(shape[1:]) // math.prod(kernel.shape[axis] for axis in axes.inputs)]
    if isinstance(layer, MaskedKernels):
        return layer.kernel_applications(shape)
    # A twin reads only what the plain layer has too.
    return twin_class(type(layer)).kernel_applications(layer, shape)


def _is_packed(layer):
    """Whether a layer is quantized so that its kernels do not show how many weights they have."""
    mode = getattr(layer, "quantization_mode", None)
    return mode is not None and mode not in ("int8", "float8") and bool(own_kernels(layer))


def _attention_rules():
    """Lists `(layer class, rule)`: what of activations with each other a call multiplies.

    A rule takes the layer and its call's arguments by name, and returns the multiply-adds of
    the scores and of the values, of all examples.
    """
    from keras_sparse_dm.models import autoencoder, unet

    return [
        (keras.layers.MultiHeadAttention, _multi_head_attention),
        (keras.layers.GroupQueryAttention, _grouped_query_attention),
        (keras.layers.Attention, _dot_product_attention),
        (unet.AttentionBlock, _attention_block),
        (autoencoder._AttentionBlock, _attention_block),
    ]


def _multi_head_attention(layer, arguments):
    query = _known_shape(layer, arguments["query"])
    value = _known_shape(layer, arguments["value"])
    axes = layer.attention_axes or tuple(range(1, len(query) - 1))
    axes = [axis % len(query) for axis in ((axes,) if isinstance(axes, int) else axes)]
    # All positions of the query, each with those of the values along the axes attended to.
    pairs = math.prod(query[:-1]) * math.prod(value[axis] for axis in axes) * layer.num_heads
    return pairs * layer.key_dim, pairs * layer.value_dim


def _grouped_query_attention(layer, arguments):
    query = _known_shape(layer, arguments["query"])
    value = _known_shape(layer, arguments["value"])
    products = math.prod(query[:-1]) * value[1] * layer.num_query_heads * layer.head_dim
    return products, products


def _dot_product_attention(layer, arguments):
    if not _is_dot_product(layer):
        return 0, 0
    query, value, *key = (_known_shape(layer, x) for x in arguments["inputs"])
    pairs = math.prod(query[:-1]) * value[-2]
    return pairs * query[-1], pairs * value[-1]


def _is_dot_product(layer):
    """Whether a `keras.layers.Attention` scores by products, and not by sums."""
    additive = isinstance(layer, keras.layers.AdditiveAttention)
    return layer.score_mode == "dot" and not additive


def _attention_block(layer, arguments):
    batch_size, height, width, channels = _known_shape(layer, arguments["x"])
    products = batch_size * (height * width) ** 2 * channels
    return products, products


def _not_counted(model, unseen):
    """Return `{layer name: reason}` of what multiplies, or may, and is not counted.

    Args:
        unseen: List of `CountedKernel`, those that were read outside of any observed call.
    """
    reasons = {}

    def add(name, reason):
        reasons[name] = f"{reasons[name]}, {reason}" if name in reasons else reason

    for layer in flatten_layers(model):
        kind = type(layer).__name__
        name = getattr(layer, "path", None) or layer.name
        if _is_packed(layer):
            add(name, f"{kind}, quantized ({layer.quantization_mode})")
            continue
        if getattr(layer, "lora_enabled", False):
            add(name, f"{kind}: weights of LoRA")
        if isinstance(layer, keras.layers.Dot):
            add(name, f"{kind}: multiplies activations")
        if isinstance(layer, keras.layers.Attention) and not _is_dot_product(layer):
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
    """Whether the weights of a layer are known to be no kernels; not of a class of one's own."""
    from keras_sparse_dm.models import blocks, chirodiff

    # The only weight that is ChiroDiff's own are the frequencies of its time features.
    kinds = (*_LEFT_OUT, keras.layers.Attention, blocks.GroupNorm, chirodiff.ChiroDiff)
    return type(layer) in kinds
