"""Registry of the methods of sparse training: facts that need no Keras.

Another method is a class, as in `methods.py`, and a line here.
"""

import re
from typing import NamedTuple

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.places import load_place

# A user's own method: `package.module:Class`.
_PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class MethodFacts(NamedTuple):
    """Facts about a method, for the command line, tables and figures.

    Attributes:
        place: Module and class, `"module:Class"`; None for dense training.
        title: Title in tables and figures.
        colour: Colour of its lines in figures.
        marker: Marker of its points in figures.
        exchanges: True for a method whose updates exchange weights, at a prune rate.
        prunes: True for a method that starts dense and prunes while it trains.
    """

    place: str | None
    title: str
    colour: str
    marker: str
    exchanges: bool = True
    prunes: bool = False

    @property
    def changes_masks(self):
        """True for a method that changes masks while it trains."""
        return self.exchanges or self.prunes


_OURS = "keras_sparse_dm.sparsity.methods"
# Colours of Okabe and Ito, which colour-blind readers can tell apart.
METHODS = {
    "rigl": MethodFacts(f"{_OURS}:RigL", "RigL-DM", "#D55E00", "s"),
    "magran": MethodFacts(f"{_OURS}:MagRan", "MagRan-DM", "#009E73", "^"),
    "set": MethodFacts(f"{_OURS}:SET", "SET-DM", "#CC79A7", "v"),
    "snfs": MethodFacts(f"{_OURS}:SNFS", "SNFS-DM", "#E69F00", "P"),
    "gmp": MethodFacts(f"{_OURS}:GMP", "GMP", "#56B4E9", "X", exchanges=False, prunes=True),
    "static": MethodFacts(f"{_OURS}:Static", "Static-DM", "#0072B2", "o", exchanges=False),
    "dense": MethodFacts(None, "Dense", "#000000", "D", exchanges=False),
}


def facts_of(name):
    """Return the `MethodFacts` of a registered method, or of a user's `package.module:Class`.

    Raises:
        ValueError: for a name that is neither.
    """
    if name in METHODS:
        return METHODS[name]
    if not _PLACE.fullmatch(name):
        raise ValueError(
            f"must be one of {', '.join(METHODS)} or package.module:Class; received {name!r}."
        )
    return MethodFacts(name, name.rpartition(":")[2], "#999999", "h")


def load_method(name):
    """Return the class of a method.

    Args:
        name: As in `facts_of`, not `"dense"`.

    Raises:
        ValueError: for a name that is not known.
        SettingsError: for a class that cannot be imported.
    """
    try:
        return load_place(facts_of(name).place)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"{name!r} cannot be imported: {error}.") from error
