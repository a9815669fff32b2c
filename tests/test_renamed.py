"""Old names of arguments work and warn."""

import inspect

import pytest

from keras_sparse_dm.export import representative_data, to_tflite
from keras_sparse_dm.renamed import old_argument
from keras_sparse_dm.runs.export import export_run


@old_argument("colour", "color")
def paint(color="red", *, coats=1):
    """Return the arguments."""
    return color, coats


def test_an_old_argument_works_and_warns():
    assert paint("blue") == paint(color="blue") == ("blue", 1)
    with pytest.warns(DeprecationWarning, match="`colour` of `paint` is now `color`; the old"):
        assert paint(colour="blue", coats=2) == ("blue", 2)
    with pytest.raises(TypeError, match="takes `color` alone"):
        paint(color="blue", colour="blue")


@pytest.mark.parametrize(
    ("function", "new"),
    [
        (to_tflite, "part"),
        (representative_data, "part"),
        (export_run, "part"),
        (export_run, "keep_dead_units"),
    ],
)
def test_signatures_show_the_present_name(function, new):
    assert new in inspect.signature(function).parameters


@pytest.mark.parametrize(("old", "new"), [("what", "part"), ("dead_units", "keep_dead_units")])
def test_old_arguments_of_export_run(old, new):
    # A failure after the warning shows that the argument was accepted.
    with (
        pytest.warns(DeprecationWarning, match=f"`{old}` of `export_run` is now `{new}`"),
        pytest.raises(TypeError, match="NoneType"),
    ):
        export_run(None, None, (), **{old: None})
