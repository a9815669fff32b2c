"""Sparse tensors in the FlatBuffer of a `.tflite` file.

The toolkit itself encodes sparse float32 tensors. Its sparse quantized tensors are of no use:
LiteRT refuses the files or computes wrong numbers (TensorFlow 2.21). This module encodes those
tensors, in the same format.
"""

import numpy as np

from keras_sparse_dm.export.tflite.flatbuffer import schema

# Smaller constants are not worth the bookkeeping.
_FEWEST = 256


def encode_sparse(model):
    """Encode float16 and int8 kernels that are mostly zeros as sparse tensors.

    Adds operators that unpack them when the file is loaded. They turn the int8 weights of a layer
    that computes in floats into floats, and copy those of a fully connected layer that computes in
    integers once more: LiteRT's XNNPACK would take them for constants and fail to prepare them.

    Args:
        model: The `ModelT` to change.
    """
    kinds = {schema.TensorType.FLOAT16: np.float16, schema.TensorType.INT8: np.int8}
    fully_connected = schema.BuiltinOperator.FULLY_CONNECTED
    uses = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            uses[tensor.buffer] = uses.get(tensor.buffer, 0) + 1
    for graph in model.subgraphs:
        unpacking = []
        for index in range(len(graph.tensors)):
            tensor = graph.tensors[index]
            data = model.buffers[tensor.buffer].data
            if data is None or tensor.type not in kinds or tensor.sparsity is not None:
                continue
            values = np.asarray(data, np.uint8).view(kinds[tensor.type])
            values = values.reshape([int(n) for n in tensor.shape])
            if values.ndim < 2 or values.size < _FEWEST or uses[tensor.buffer] > 1:
                continue
            if not _are_kernels(model, graph, index):
                continue
            sparsity, nonzero = _compressed_rows(values)
            if _bytes(sparsity) + nonzero.nbytes >= values.nbytes:
                continue
            unpacked = _copy_of(graph, tensor)
            model.buffers[tensor.buffer].data = nonzero.view(np.uint8)
            tensor.sparsity = sparsity
            # The unpacked tensor has it already.
            tensor.quantization = None
            unpacking.append(_operator(model, schema.BuiltinOperator.DENSIFY, index, unpacked))
            as_float = copied = None
            for operator in graph.operators:
                inputs = [int(i) for i in operator.inputs]
                if index not in inputs:
                    continue
                target = unpacked
                if tensor.type == schema.TensorType.INT8 and _computes_in_floats(graph, operator):
                    if as_float is None:
                        as_float = _copy_of(graph, graph.tensors[unpacked])
                        graph.tensors[as_float].type = schema.TensorType.FLOAT32
                        graph.tensors[as_float].quantization = None
                        code = schema.BuiltinOperator.DEQUANTIZE
                        unpacking.append(_operator(model, code, unpacked, as_float))
                    target = as_float
                    if hasattr(operator.builtinOptions, "asymmetricQuantizeInputs"):
                        operator.builtinOptions.asymmetricQuantizeInputs = False
                elif tensor.type == schema.TensorType.INT8 and _is(
                    model, operator, fully_connected
                ):
                    if copied is None:
                        copied = _copy_of(graph, graph.tensors[unpacked])
                        unpacking.append(
                            _operator(model, schema.BuiltinOperator.RESHAPE, unpacked, copied)
                        )
                        shape = np.array(tensor.shape, np.int32)
                        unpacking[-1].builtinOptions.newShape = shape
                    target = copied
                operator.inputs = np.array([target if i == index else i for i in inputs], np.int32)
        graph.operators = unpacking + graph.operators


def _compressed_rows(values):
    """Encode an array densely in all axes but the last, and list the nonzero places of that one.

    Returns:
        `(SparsityParametersT, nonzero values)`.
    """
    rows = values.reshape(-1, values.shape[-1])
    present = rows != 0
    if not present.any():
        # LiteRT does not take a tensor without values for a constant.
        present[0, 0] = True
    segments = np.append(0, np.cumsum(present.sum(1)))
    indices = np.nonzero(present)[1]
    dimensions = []
    for size in values.shape[:-1]:
        dense = schema.DimensionMetadataT()
        dense.format, dense.denseSize = schema.DimensionType.DENSE, size
        dimensions.append(dense)
    last = schema.DimensionMetadataT()
    last.format, last.denseSize = schema.DimensionType.SPARSE_CSR, 0
    last.arraySegmentsType, last.arraySegments = _index_vector(segments)
    last.arrayIndicesType, last.arrayIndices = _index_vector(indices)
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder = np.arange(values.ndim, dtype=np.int32)
    sparsity.dimMetadata = [*dimensions, last]
    return sparsity, rows[present]


def _index_vector(values):
    """Return the smallest vector that holds some whole numbers, and its type."""
    largest = int(values.max(initial=0))
    for limit, kind, vector, dtype in (
        (2**8, schema.SparseIndexVector.Uint8Vector, schema.Uint8VectorT(), np.uint8),
        (2**16, schema.SparseIndexVector.Uint16Vector, schema.Uint16VectorT(), np.uint16),
        (2**31, schema.SparseIndexVector.Int32Vector, schema.Int32VectorT(), np.int32),
    ):
        if largest < limit:
            vector.values = values.astype(dtype)
            return kind, vector
    raise ValueError(f"A sparse tensor can hold at most {2**31 - 1} numbers; received {largest}.")


def _bytes(sparsity):
    last = sparsity.dimMetadata[-1]
    return last.arraySegments.values.nbytes + last.arrayIndices.values.nbytes


def _copy_of(graph, tensor):
    """Add a tensor like another one, dense and without data, and return its index."""
    copy = schema.TensorT()
    copy.shape, copy.type, copy.quantization = tensor.shape, tensor.type, tensor.quantization
    copy.hasRank = tensor.hasRank
    # The first buffer of every file is empty.
    copy.buffer = 0
    graph.tensors.append(copy)
    return len(graph.tensors) - 1


def _operator(model, code, source, target):
    """Return a new operator of one input and one output."""
    codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
    if code not in codes:
        entry = schema.OperatorCodeT()
        entry.builtinCode = entry.deprecatedBuiltinCode = code
        # Version 2 of DEQUANTIZE takes int8, version 3 float16.
        entry.version = 3 if code == schema.BuiltinOperator.DEQUANTIZE else 1
        model.operatorCodes.append(entry)
        codes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = codes.index(code)
    operator.inputs = np.array([source], np.int32)
    operator.outputs = np.array([target], np.int32)
    options = {
        schema.BuiltinOperator.RESHAPE: (
            schema.BuiltinOptions.ReshapeOptions,
            schema.ReshapeOptionsT,
        ),
        schema.BuiltinOperator.DENSIFY: (
            schema.BuiltinOptions.DensifyOptions,
            schema.DensifyOptionsT,
        ),
        schema.BuiltinOperator.DEQUANTIZE: (
            schema.BuiltinOptions.DequantizeOptions,
            schema.DequantizeOptionsT,
        ),
    }
    operator.builtinOptionsType, make = options[code]
    operator.builtinOptions = make()
    return operator


def _are_kernels(model, graph, index):
    """Tell whether only layers read a constant, or the floats made of it, and only as their kernel.

    XNNPACK runs these layers and unpacks their sparse constants. Nothing would unpack a constant
    that other operators read, such as the initial state of a loop.
    """
    layers = (schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.CONV_2D)
    for operator in graph.operators:
        if index not in operator.inputs:
            continue
        if _is(model, operator, schema.BuiltinOperator.DEQUANTIZE):
            if not _are_kernels(model, graph, operator.outputs[0]):
                return False
        elif not any(_is(model, operator, c) for c in layers) or operator.inputs[1] != index:
            return False
    return True


def _is(model, operator, code):
    entry = model.operatorCodes[operator.opcodeIndex]
    return max(entry.builtinCode, entry.deprecatedBuiltinCode) == code


def _computes_in_floats(graph, operator):
    """Tell whether an operator with integer weights has float inputs and outputs."""
    kinds = {graph.tensors[int(operator.inputs[0])].type, graph.tensors[operator.outputs[0]].type}
    return kinds == {schema.TensorType.FLOAT32}
