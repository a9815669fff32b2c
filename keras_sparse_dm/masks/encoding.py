"""Masks as few bytes: one bit per weight, or the numbers of the active weights.

Both lengths follow from the number of weights and the number of ones alone, wherever the ones
lie. Bits fill each byte from its lowest to its highest.
"""

import math

import numpy as np

ENCODINGS = ("bitmask", "elias_fano")


def bitmask_bytes(size):
    """Bytes of a mask of `size` weights with one bit for each."""
    return math.ceil(size / 8)


def elias_fano_bytes(size, ones):
    """Bytes of the numbers of `ones` active among `size` weights, as Elias-Fano code.

    The code (Elias 1974; Fano 1971) of an ascending sequence writes the `low` lowest bits of
    each number as they are, and the rest in unary: about `2 + log2(size / ones)` bits for each.
    """
    if not ones:
        return 0
    low = _low_bits(size, ones)
    return math.ceil(ones * low / 8) + math.ceil(_unary_bits(size, ones, low) / 8)


def smallest_encoding(size, ones):
    """Return `(name, bytes)` of the encoding that takes fewer bytes."""
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
    """Decode what `encode_mask` returns.

    Args:
        data: uint8 array.
        encoding: As it was encoded.
        size: Number of weights.
        ones: Number of active ones.

    Returns:
        Boolean array of shape (size,).

    Raises:
        ValueError: for an unknown encoding, or data that are not those of such a mask.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"`encoding` must be one of {ENCODINGS}; received {encoding!r}.")
    data = np.asarray(data, "uint8")
    wanted = bitmask_bytes(size) if encoding == "bitmask" else elias_fano_bytes(size, ones)
    if len(data) != wanted:
        raise ValueError(
            f"A mask of {size} weights, {ones} of them active, has {wanted} bytes as {encoding}; "
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
        raise ValueError(f"Weight number {numbers[-1]} is not one of {size}.")
    return numbers


def _low_bits(size, ones):
    return (size // ones).bit_length() - 1


def _unary_bits(size, ones, low):
    return ones + ((size - 1) >> low) + 1
