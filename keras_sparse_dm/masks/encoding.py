"""Compact encodings of masks: one bit per weight, or the indices of the active weights.

The length depends only on the number of weights and the number of ones. Bits fill each byte from
the lowest to the highest.
"""

import math

import numpy as np

from keras_sparse_dm.checks import one_of

ENCODINGS = ("bitmask", "elias_fano")


def bitmask_bytes(size):
    """Return the bytes of a mask of `size` weights with one bit each."""
    return math.ceil(size / 8)


def elias_fano_bytes(size, ones):
    """Return the bytes of the indices of `ones` active among `size` weights in Elias-Fano code.

    The code of an ascending sequence (Elias 1974; Fano 1971) stores the `low` lowest bits of each
    number in binary and the rest in unary, about `2 + log2(size / ones)` bits per number.
    """
    if not ones:
        return 0
    low = _low_bits(size, ones)
    return math.ceil(ones * low / 8) + math.ceil(_unary_bits(size, ones, low) / 8)


def smallest_encoding(size, ones):
    """Return `(name, bytes)` of the shorter encoding."""
    by_bitmask, by_numbers = bitmask_bytes(size), elias_fano_bytes(size, ones)
    if by_numbers < by_bitmask:
        return "elias_fano", by_numbers
    return "bitmask", by_bitmask


def encode_mask(mask, encoding):
    """Encode a boolean array, flattened in C order.

    Args:
        mask: Boolean array.
        encoding: `"bitmask"` or `"elias_fano"`.

    Returns:
        uint8 array.
    """
    mask = np.asarray(mask, "bool").ravel()
    if encoding == "bitmask":
        return np.packbits(mask, bitorder="little")
    numbers = np.flatnonzero(mask)
    ones = len(numbers)
    if not ones:
        return np.zeros(0, "uint8")
    low = _low_bits(mask.size, ones)
    low_bits = (numbers[:, None] >> np.arange(low)) & 1
    unary = np.zeros(_unary_bits(mask.size, ones, low), "uint8")
    unary[(numbers >> low) + np.arange(ones)] = 1
    return np.concatenate(
        [
            np.packbits(low_bits.astype("uint8").ravel(), bitorder="little"),
            np.packbits(unary, bitorder="little"),
        ]
    )


def decode_mask(data, encoding, size, ones):
    """Decode a mask from `encode_mask`.

    Args:
        data: uint8 array.
        encoding: `"bitmask"` or `"elias_fano"`.
        size: Number of weights.
        ones: Number of active weights.

    Returns:
        Boolean array of shape (size,).

    Raises:
        ValueError: for an unknown encoding, or data that do not encode such a mask.
    """
    one_of("`encoding`", encoding, ENCODINGS)
    data = np.asarray(data, "uint8")
    wanted = bitmask_bytes(size) if encoding == "bitmask" else elias_fano_bytes(size, ones)
    if len(data) != wanted:
        raise ValueError(
            f"A mask of {size} weights, {ones} of them active, takes {wanted} bytes as {encoding}; "
            f"received {len(data)}."
        )
    if encoding == "bitmask":
        mask = np.unpackbits(data, count=size, bitorder="little").view("bool")
    else:
        mask = np.zeros(size, "bool")
        if ones:
            mask[_numbers(data, size, ones)] = True
    if np.count_nonzero(mask) != ones:
        raise ValueError(f"A mask must have {ones} ones; it has {np.count_nonzero(mask)}.")
    return mask


def _numbers(data, size, ones):
    low = _low_bits(size, ones)
    split = math.ceil(ones * low / 8)
    low_bits = np.unpackbits(data[:split], count=ones * low, bitorder="little")
    low_parts = low_bits.reshape(ones, low) @ (1 << np.arange(low))
    count = _unary_bits(size, ones, low)
    high_parts = np.flatnonzero(np.unpackbits(data[split:], count=count, bitorder="little"))
    if len(high_parts) != ones:
        raise ValueError(f"A mask must have {ones} ones; it has {len(high_parts)}.")
    numbers = ((high_parts - np.arange(ones)) << low) | low_parts
    if numbers[-1] >= size:
        raise ValueError(f"A mask of {size} weights must not mark weight {numbers[-1]}.")
    return numbers


def _low_bits(size, ones):
    return (size // ones).bit_length() - 1


def _unary_bits(size, ones, low):
    return ones + ((size - 1) >> low) + 1
