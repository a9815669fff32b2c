"""Checks of arguments that all parts of the package share."""

import re

import numpy as np
import pytest

from keras_sparse_dm.checks import whole_number, whole_numbers


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3), np.uint8(3)])
def test_whole_numbers_of_any_type_become_ints(value):
    assert type(whole_number("`n`", value, 3)) is int
    assert whole_number("`n`", value, 3) == 3
    whole_numbers("`n`", [value, 4], 3)


@pytest.mark.parametrize("value", [2, 3.5, True, "3", None, np.nan, np.inf, [3], "many"])
def test_other_values_are_refused_by_name(value):
    received = re.escape(f"received {value!r}.")
    with pytest.raises(ValueError, match=f"^`n` must be a whole number, 3 or more; {received}$"):
        whole_number("`n`", value, 3)
    several = re.escape(f"received {(4, value)!r}.")
    with pytest.raises(ValueError, match=f"^`n` must be .*, each 3 or more; {several}$"):
        whole_numbers("`n`", (4, value), 3)


def test_none_at_all_is_refused():
    with pytest.raises(ValueError, match=r"`n` must be one or more whole .*; received \[\]\.$"):
        whole_numbers("`n`", [], 1)
