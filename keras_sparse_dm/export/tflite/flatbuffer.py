"""What the converter leaves to do in a `.tflite` file: names, metadata, and some sparse tensors.

The file is a FlatBuffer, whose schema comes with LiteRT. The toolkit encodes sparse float32
tensors itself. Of quantized ones it makes files that LiteRT computes nonsense with or refuses
(TensorFlow 2.21), so those are encoded here, in the same format.
"""

import json
import zlib

import numpy as np

METADATA = "keras_sparse_dm"
# In the metadata; the check sum is that of the file with zeros in its place.
_CHECKSUM = b'"crc32": "'
_NO_CHECKSUM = b"00000000"
# Constants of fewer numbers are not worth the words around them.
_FEWEST = 256


def schema():
    """The module of the file format's classes.

    Raises:
        ImportError: without LiteRT, telling how to install it.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        raise ImportError(
            "TFLite files are read, written and run by LiteRT, which is not installed: "
            "pip install ai-edge-litert"
        ) from None
    return schema_py_generated


def check_json(metadata):
    """Checks that metadata can be written.

    Raises:
        ValueError: for what JSON cannot hold.
    """
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`metadata` must be what JSON can write: {error}.") from None


def parse(content):
    """Returns the `ModelT` in the bytes of a file."""
    s = schema()
    return s.ModelT.InitFromObj(s.Model.GetRootAsModel(content, 0))


def serialize(model, metadata):
    """Returns the bytes of a file that holds a `ModelT` and metadata.

    Args:
        model: The `ModelT`; it gets the metadata.
        metadata: Dictionary that JSON can write.
    """
    import flatbuffers

    s = schema()
    text = _CHECKSUM.decode() + _NO_CHECKSUM.decode() + '", ' + json.dumps(metadata)[1:]
    buffer = s.BufferT()
    buffer.data = np.frombuffer(("{" + text).encode(), np.uint8)
    model.buffers.append(buffer)
    entry = s.MetadataT()
    entry.name, entry.buffer = METADATA, len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]

    class AlignedBuffer(s.BufferT):
        # Kernels read tensors in place, 16 bytes at a time, as the schema demands.
        def Pack(self, builder):
            if self.data is not None:
                data = np.asarray(self.data, np.uint8)
                builder.StartVector(1, len(data), 16)
                builder.head -= len(data)
                builder.Bytes[builder.head : builder.head + len(data)] = data.tobytes()
                offset = builder.EndVector()
            s.BufferStart(builder)
            if self.data is not None:
                s.BufferAddData(builder, offset)
            return s.BufferEnd(builder)

    for buffer in model.buffers:
        buffer.__class__ = AlignedBuffer
    size = sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    builder = flatbuffers.Builder(size + 2**16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    content = builder.Output()
    place = content.rindex(_CHECKSUM) + len(_CHECKSUM)
    content[place : place + 8] = b"%08x" % zlib.crc32(content)
    return bytes(content)


def read_metadata(content, name):
    """Returns the metadata that `serialize` has put into a file.

    Args:
        content: The file's bytes.
        name: What errors call it.

    Raises:
        ValueError: if it has none, or not one byte is as it was written.
    """
    if content[4:8] != b"TFL3":
        raise ValueError(f"{name} is no TFLite file, or its beginning is damaged.")
    place = content.rfind(_CHECKSUM) + len(_CHECKSUM)
    if place < len(_CHECKSUM):
        raise ValueError(
            f"{name} was not written by this package's `to_tflite`, or is cut short: its metadata "
            "are missing."
        )
    blank = content[:place] + _NO_CHECKSUM + content[place + 8 :]
    if content[place : place + 8] != b"%08x" % zlib.crc32(blank):
        raise ValueError(f"{name} is damaged: its check sum does not fit. Export it again.")
    begin = place - len(_CHECKSUM) - 1
    metadata, _ = json.JSONDecoder().raw_decode(content[begin:].decode("utf-8", "ignore"))
    del metadata["crc32"]
    return metadata


def name_signature(model, inputs, outputs, key):
    """Gives a file a signature, by which inputs and outputs have names.

    Args:
        model: The `ModelT`, with one main subgraph.
        inputs: Names of its inputs, which their tensors have, too.
        outputs: Names of its outputs, in their order.
        key: Name of the signature.
    """
    s = schema()
    graph = model.subgraphs[0]

    def entry(name, tensor):
        result = s.TensorMapT()
        result.name, result.tensorIndex = name, int(tensor)
        return result

    tensors = {graph.tensors[i].name.decode().split(":")[0]: i for i in graph.inputs}
    signature = s.SignatureDefT()
    signature.signatureKey = key
    signature.subgraphIndex = 0
    signature.inputs = [entry(name, tensors[name]) for name in inputs]
    signature.outputs = [entry(*pair) for pair in zip(outputs, graph.outputs, strict=True)]
    model.signatureDefs = [signature]


def strip_names(model):
    """Removes the names of all tensors but inputs and outputs, which nothing reads."""
    for graph in model.subgraphs:
        used = {int(i) for i in (*graph.inputs, *graph.outputs)}
        for i, tensor in enumerate(graph.tensors):
            if i not in used:
                tensor.name = None


def sparse_tensors(content):
    """Which tensors of a file are sparse.

    Args:
        content: The file's bytes.

    Returns:
        List of `(shape, block)`: the tensor's dense shape, outputs first, and how many weights a
        block holds, 1 where every weight is for itself.
    """
    found = []
    for graph in parse(content).subgraphs:
        for tensor in graph.tensors:
            if tensor.sparsity is None:
                continue
            rank, block = len(tensor.shape), 1
            for dimension in tensor.sparsity.dimMetadata[rank:]:
                block *= dimension.denseSize
            found.append((tuple(int(n) for n in tensor.shape), block))
    return found


def encode_sparse(model):
    """Encodes kernels that are mostly zeros as sparse tensors, and has them unpacked when loaded.

    Integer weights of a layer that computes in floats become floats when they are unpacked. Those
    of a fully connected layer that computes in integers are copied once more. LiteRT's XNNPACK
    takes them for constants otherwise, and then fails to prepare them.

    Args:
        model: The `ModelT`, whose float16 and int8 kernels are encoded.
    """
    s = schema()
    kinds = {s.TensorType.FLOAT16: np.float16, s.TensorType.INT8: np.int8}
    fully_connected = s.BuiltinOperator.FULLY_CONNECTED
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
            # The unpacked tensor has it; the packed one would only write it once more.
            tensor.quantization = None
            unpacking.append(_operator(model, s.BuiltinOperator.DENSIFY, index, unpacked))
            as_float = copied = None
            for operator in graph.operators:
                inputs = [int(i) for i in operator.inputs]
                if index not in inputs:
                    continue
                target = unpacked
                if tensor.type == s.TensorType.INT8 and _computes_in_floats(graph, operator):
                    if as_float is None:
                        as_float = _copy_of(graph, graph.tensors[unpacked])
                        graph.tensors[as_float].type = s.TensorType.FLOAT32
                        graph.tensors[as_float].quantization = None
                        code = s.BuiltinOperator.DEQUANTIZE
                        unpacking.append(_operator(model, code, unpacked, as_float))
                    target = as_float
                    if hasattr(operator.builtinOptions, "asymmetricQuantizeInputs"):
                        operator.builtinOptions.asymmetricQuantizeInputs = False
                elif tensor.type == s.TensorType.INT8 and _is(model, operator, fully_connected):
                    if copied is None:
                        copied = _copy_of(graph, graph.tensors[unpacked])
                        unpacking.append(
                            _operator(model, s.BuiltinOperator.RESHAPE, unpacked, copied)
                        )
                        shape = np.array(tensor.shape, np.int32)
                        unpacking[-1].builtinOptions.newShape = shape
                    target = copied
                operator.inputs = np.array([target if i == index else i for i in inputs], np.int32)
        graph.operators = unpacking + graph.operators


def _compressed_rows(values):
    """Encodes an array: dense in all axes but the last, of which nonzero places are listed.

    Returns:
        `(SparsityParametersT, nonzero values)`.
    """
    s = schema()
    rows = values.reshape(-1, values.shape[-1])
    present = rows != 0
    if not present.any():
        # A tensor without a value would not be taken for a constant.
        present[0, 0] = True
    segments = np.append(0, np.cumsum(present.sum(1)))
    indices = np.nonzero(present)[1]
    dimensions = []
    for size in values.shape[:-1]:
        dense = s.DimensionMetadataT()
        dense.format, dense.denseSize = s.DimensionType.DENSE, size
        dimensions.append(dense)
    last = s.DimensionMetadataT()
    last.format, last.denseSize = s.DimensionType.SPARSE_CSR, 0
    last.arraySegmentsType, last.arraySegments = _index_vector(segments)
    last.arrayIndicesType, last.arrayIndices = _index_vector(indices)
    sparsity = s.SparsityParametersT()
    sparsity.traversalOrder = np.arange(values.ndim, dtype=np.int32)
    sparsity.dimMetadata = [*dimensions, last]
    return sparsity, rows[present]


def _index_vector(values):
    """The type and vector of the fewest bytes that hold whole numbers."""
    s = schema()
    largest = int(values.max(initial=0))
    for limit, kind, vector, dtype in (
        (2**8, s.SparseIndexVector.Uint8Vector, s.Uint8VectorT(), np.uint8),
        (2**16, s.SparseIndexVector.Uint16Vector, s.Uint16VectorT(), np.uint16),
        (2**31, s.SparseIndexVector.Int32Vector, s.Int32VectorT(), np.int32),
    ):
        if largest < limit:
            vector.values = values.astype(dtype)
            return kind, vector
    raise ValueError(f"{largest} is too many numbers for one sparse tensor.")


def _bytes(sparsity):
    last = sparsity.dimMetadata[-1]
    return last.arraySegments.values.nbytes + last.arrayIndices.values.nbytes


def _copy_of(graph, tensor):
    """Adds a tensor like another one, dense and without data; returns its index."""
    s = schema()
    copy = s.TensorT()
    copy.shape, copy.type, copy.quantization = tensor.shape, tensor.type, tensor.quantization
    copy.hasRank = tensor.hasRank
    # The first buffer of every file is empty.
    copy.buffer = 0
    graph.tensors.append(copy)
    return len(graph.tensors) - 1


def _operator(model, code, source, target):
    """Makes an operator of one input and one output."""
    s = schema()
    codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
    if code not in codes:
        entry = s.OperatorCodeT()
        entry.builtinCode = entry.deprecatedBuiltinCode = code
        # Of DEQUANTIZE the second version takes int8, and the third float16.
        entry.version = 3 if code == s.BuiltinOperator.DEQUANTIZE else 1
        model.operatorCodes.append(entry)
        codes.append(code)
    operator = s.OperatorT()
    operator.opcodeIndex = codes.index(code)
    operator.inputs = np.array([source], np.int32)
    operator.outputs = np.array([target], np.int32)
    options = {
        s.BuiltinOperator.RESHAPE: (s.BuiltinOptions.ReshapeOptions, s.ReshapeOptionsT),
        s.BuiltinOperator.DENSIFY: (s.BuiltinOptions.DensifyOptions, s.DensifyOptionsT),
        s.BuiltinOperator.DEQUANTIZE: (s.BuiltinOptions.DequantizeOptions, s.DequantizeOptionsT),
    }
    operator.builtinOptionsType, make = options[code]
    operator.builtinOptions = make()
    return operator


def _are_kernels(model, graph, index):
    """Whether a constant, or the floats made of it, are the kernels of layers and nothing else.

    XNNPACK unpacks a sparse constant for itself, and it runs these layers; what others read, such
    as the state that a loop starts from, nobody would unpack.
    """
    s = schema()
    layers = (s.BuiltinOperator.FULLY_CONNECTED, s.BuiltinOperator.CONV_2D)
    for operator in graph.operators:
        if index not in operator.inputs:
            continue
        if _is(model, operator, s.BuiltinOperator.DEQUANTIZE):
            if not _are_kernels(model, graph, operator.outputs[0]):
                return False
        elif not any(_is(model, operator, c) for c in layers) or operator.inputs[1] != index:
            return False
    return True


def _is(model, operator, code):
    entry = model.operatorCodes[operator.opcodeIndex]
    return max(entry.builtinCode, entry.deprecatedBuiltinCode) == code


def _computes_in_floats(graph, operator):
    """Whether an operator that has integer weights gets and gives floats."""
    s = schema()
    kinds = {graph.tensors[int(operator.inputs[0])].type, graph.tensors[operator.outputs[0]].type}
    return kinds == {s.TensorType.FLOAT32}
