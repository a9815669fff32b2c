import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_sparse_dm.masks.encoding import (
    ENCODINGS,
    bitmask_bytes,
    decode_mask,
    elias_fano_bytes,
    encode_mask,
    smallest_encoding,
)


@st.composite
def masks(draw):
    size = draw(st.integers(1, 400))
    density = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 2**32))).random(size) < density


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(mask=masks())
def test_decoding_gives_the_mask_back(encoding, mask):
    ones = int(mask.sum())
    data = encode_mask(mask, encoding)
    wanted = bitmask_bytes if encoding == "bitmask" else lambda n: elias_fano_bytes(n, ones)
    assert data.dtype == "uint8" and len(data) == wanted(mask.size)
    np.testing.assert_array_equal(decode_mask(data, encoding, mask.size, ones), mask)
    with pytest.raises(ValueError):
        decode_mask(np.append(data, np.uint8(0)), encoding, mask.size, ones)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(mask=masks(), flip=st.integers(0, 10**6))
def test_data_of_another_mask_are_no_mask_of_as_many_ones(encoding, mask, flip):
    """A changed bit gives a mask with as many ones, or a ValueError, and no other error."""
    data, ones = encode_mask(mask, encoding), int(mask.sum())
    if len(data):
        data[flip % len(data)] ^= 1 << flip % 8
        try:
            assert decode_mask(data, encoding, mask.size, ones).sum() == ones
        except ValueError:
            pass


def test_the_code_of_numbers_is_that_of_the_definition():
    # 3 of 20: 20 // 3 = 6, so the two lowest bits as they are.
    mask = np.zeros(20, "bool")
    mask[[2, 7, 13]] = True
    low = "01" + "11" + "10"  # of 2, 3, 1, the lowest bit first
    # 0, 1, 3 in unary: a one at 0 + 0, 1 + 1 and 3 + 2.
    high = "10100100"
    wanted = [int(low[::-1], 2), int(high[::-1], 2)]
    assert encode_mask(mask, "elias_fano").tolist() == wanted


def test_which_is_smaller():
    size = 10_000
    for density in (0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.9):
        ones = round(size * density)
        name, length = smallest_encoding(size, ones)
        assert name == ("elias_fano" if density < 0.25 else "bitmask")
        # A mask with that many ones holds at least so much information, and little more.
        entropy = size * -(density * math.log2(density) + (1 - density) * math.log2(1 - density))
        assert entropy / 8 * 0.99 < length < max(size / 8, entropy / 8 * 1.15) + 1
    assert smallest_encoding(size, 0) == ("elias_fano", 0)
