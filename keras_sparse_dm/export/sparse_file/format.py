"""Bytes of a sparse checkpoint: header, checksums and tensors."""

import hashlib
import json
import math

import ml_dtypes  # noqa: F401  # adds bfloat16 to NumPy
import numpy as np

from keras_sparse_dm.masks.encoding import bitmask_bytes

FORMAT = "keras_sparse_dm.sparse"
FORMAT_VERSION = 2
NO_CHECKSUM = "0" * 32
_HEADER_BEGINS = b'{"__metadata__":{"header_checksum":"'
# The limit of safetensors.
_LONGEST_HEADER = 100_000_000
TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


class Damaged(ValueError):
    """Error for a file whose bytes differ from those that were written."""

    def __init__(self, path, what):
        super().__init__(
            f"{path} is damaged ({what}): copy it again from where it came from, or save the "
            "model again."
        )


def checksum(*parts):
    """Return the checksum of bytes in one or several parts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def write(path, content, tensors):
    """Write a file tensor by tensor, and the header last, into the space left for it.

    Args:
        path: The file.
        content: The header's content without the checksums.
        tensors: `{name: (dtype, shape, function that returns the data)}`.
    """
    # Large elements come first, so that all tensors are aligned.
    names = sorted(tensors, key=lambda name: -np.dtype(tensors[name][0]).itemsize)
    entries, end = {}, 0
    for name in names:
        dtype, shape, _ = tensors[name]
        begin, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        entries[name] = {
            "dtype": TYPES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    checksums = dict.fromkeys(names, NO_CHECKSUM)
    length = len(header_bytes(content, checksums, entries))
    with open(path, "wb") as file:
        file.seek(8 + length)
        for name in names:
            dtype, shape, data = tensors[name]
            array = np.asarray(data(), order="C")
            if (array.dtype, array.shape) != (np.dtype(dtype), shape):
                raise ValueError(f"{name} has changed while the model was being saved.")
            data = array.reshape(-1).view("uint8")
            checksums[name] = checksum(data)
            file.write(data)
        file.seek(0)
        file.write(sealed(header_bytes(content, checksums, entries)))


def header_bytes(content, checksums, entries):
    """Return the header's bytes, with zeros for its own checksum."""
    metadata = {
        "header_checksum": NO_CHECKSUM,
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "content": _json(content | {"checksums": checksums}),
    }
    header = _json({"__metadata__": metadata} | entries).encode()
    return header + b" " * (-len(header) % 8)


def sealed(header):
    """Return the beginning of the file: the header with its length and its checksum."""
    beginning = len(header).to_bytes(8, "little")
    return beginning + _with_checksum(header, checksum(beginning, header))


def read_content(path):
    """Read and check a file's header.

    Returns:
        Dictionary of its content, with `"format_version"` and with `"tensor_bytes"` by name.

    Raises:
        ValueError: for a file of another kind, a damaged header, or a newer version.
    """
    if not path.is_file():
        raise ValueError(f"`path` must be an existing file; received {path}.")
    size = path.stat().st_size
    with open(path, "rb") as file:
        beginning = file.read(8)
        length = int.from_bytes(beginning, "little")
        if len(beginning) < 8 or not 2 <= length <= _LONGEST_HEADER:
            raise _of_another_kind(path)
        header = file.read(length)
    if len(header) < length:
        if header.startswith(_HEADER_BEGINS):
            raise Damaged(path, "it ends within its header")
        raise _of_another_kind(path)
    ours = header.startswith(_HEADER_BEGINS)
    begin = len(_HEADER_BEGINS)
    stated = header[begin : begin + len(NO_CHECKSUM)]
    if ours and checksum(beginning, _with_checksum(header, NO_CHECKSUM)).encode() != stated:
        raise Damaged(path, "its header has changed")
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", {})
        found = metadata.get("format") == FORMAT
    except (AttributeError, UnicodeDecodeError, ValueError):
        found = False
    if not ours or not found:
        raise _of_another_kind(path)
    # The checksum has shown that the rest of the header is intact.
    number = int(metadata["format_version"])
    if number > FORMAT_VERSION:
        raise ValueError(
            f"{path} has version {number} of the format, and this keras_sparse_dm reads up to "
            f"version {FORMAT_VERSION}: upgrade it (pip install --upgrade keras_sparse_dm)."
        )
    content = json.loads(metadata["content"])
    offsets = {name: entry["data_offsets"] for name, entry in entries.items()}
    end = 8 + length + max((end for _, end in offsets.values()), default=0)
    if size != end:
        raise Damaged(path, f"it has {size} bytes and must have {end}")
    content["tensor_bytes"] = {name: end - begin for name, (begin, end) in offsets.items()}
    content["format_version"] = number
    return content


def bit_planes(array, planes):
    """Return the lowest bits of small numbers as `planes` masks of one bit per element."""
    flat = array.ravel().astype("uint8")
    return np.concatenate(
        [np.zeros(0, "uint8")]
        + [np.packbits((flat >> plane) & 1, bitorder="little") for plane in range(planes)]
    )


def from_bit_planes(data, planes, shape):
    """Return the array of a shape from its `bit_planes`."""
    size = math.prod(shape)
    array = np.zeros(size, "uint8")
    for plane, bits in enumerate(data.reshape(planes, bitmask_bytes(size))):
        array |= np.unpackbits(bits, count=size, bitorder="little") << plane
    return array.reshape(shape)


def _json(value):
    return json.dumps(value, separators=(",", ":"))


def _with_checksum(header, digits):
    begin = len(_HEADER_BEGINS)
    return header[:begin] + digits.encode() + header[begin + len(digits) :]


def _of_another_kind(path):
    return ValueError(
        f"{path} is no file of `keras_sparse_dm.export.save_sparse`, or its beginning is damaged. "
        "Files of `model.save` are read by `keras.models.load_model`, those of other programs "
        "by `keras_sparse_dm.convert.load_pytorch`."
    )
