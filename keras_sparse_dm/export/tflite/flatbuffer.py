"""The bytes of a `.tflite` file: signature, names of tensors, metadata and checksum.

The file is a FlatBuffer, whose schema comes with LiteRT.
"""

import json
import zlib

import flatbuffers
import numpy as np

from keras_sparse_dm.lazy import lazy_module

# Classes of the file format.
schema = lazy_module("ai_edge_litert.schema_py_generated")

METADATA = "keras_sparse_dm"
# Part of the metadata. The checksum is that of the file with zeros in its place.
_CHECKSUM = b'"crc32": "'
_NO_CHECKSUM = b"00000000"


def check_json(metadata):
    """Check that JSON can hold the metadata.

    Raises:
        ValueError: if it cannot.
    """
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`metadata` must be what JSON can write: {error}.") from None


def parse(content):
    """Return the `ModelT` in the bytes of a file."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def serialize(model, metadata):
    """Return the bytes of a file that holds a `ModelT` and metadata.

    Args:
        model: The `ModelT`; this function adds the metadata to it.
        metadata: Dictionary that JSON can write.
    """
    text = _CHECKSUM.decode() + _NO_CHECKSUM.decode() + '", ' + json.dumps(metadata)[1:]
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(("{" + text).encode(), np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA, len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]

    class AlignedBuffer(schema.BufferT):
        # LiteRT reads tensors in place, 16 bytes at a time; the schema demands this alignment.
        def Pack(self, builder):
            if self.data is not None:
                data = np.asarray(self.data, np.uint8)
                builder.StartVector(1, len(data), 16)
                builder.head -= len(data)
                builder.Bytes[builder.head : builder.head + len(data)] = data.tobytes()
                offset = builder.EndVector()
            schema.BufferStart(builder)
            if self.data is not None:
                schema.BufferAddData(builder, offset)
            return schema.BufferEnd(builder)

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
    """Return the metadata that `serialize` wrote into a file.

    Args:
        content: The file's bytes.
        name: Name of the file in errors.

    Raises:
        ValueError: if the file has no metadata, or any byte differs from what was written.
    """
    if content[4:8] != b"TFL3":
        raise ValueError(f"{name} is not a TFLite file, or its beginning is damaged.")
    place = content.rfind(_CHECKSUM) + len(_CHECKSUM)
    if place < len(_CHECKSUM):
        raise ValueError(
            f"{name} was not written by this package's `to_tflite`, or is cut short: it has no "
            "metadata."
        )
    blank = content[:place] + _NO_CHECKSUM + content[place + 8 :]
    if content[place : place + 8] != b"%08x" % zlib.crc32(blank):
        raise ValueError(f"{name} is damaged: its checksum does not match. Export it again.")
    begin = place - len(_CHECKSUM) - 1
    metadata, _ = json.JSONDecoder().raw_decode(content[begin:].decode("utf-8", "ignore"))
    del metadata["crc32"]
    return metadata


def name_signature(model, inputs, outputs, key):
    """Add a signature, which names the inputs and outputs of a file.

    Args:
        model: The `ModelT`, with one main subgraph.
        inputs: Names of the inputs, which are also those of their tensors.
        outputs: Names of the outputs, in order.
        key: Name of the signature.
    """
    graph = model.subgraphs[0]

    def entry(name, tensor):
        result = schema.TensorMapT()
        result.name, result.tensorIndex = name, int(tensor)
        return result

    tensors = {graph.tensors[i].name.decode().split(":")[0]: i for i in graph.inputs}
    signature = schema.SignatureDefT()
    signature.signatureKey = key
    signature.subgraphIndex = 0
    signature.inputs = [entry(name, tensors[name]) for name in inputs]
    signature.outputs = [entry(*pair) for pair in zip(outputs, graph.outputs, strict=True)]
    model.signatureDefs = [signature]


def strip_names(model):
    """Remove the names of all tensors but inputs and outputs; nothing reads them."""
    for graph in model.subgraphs:
        used = {int(i) for i in (*graph.inputs, *graph.outputs)}
        for i, tensor in enumerate(graph.tensors):
            if i not in used:
                tensor.name = None
