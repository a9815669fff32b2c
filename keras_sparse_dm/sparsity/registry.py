"""Registry of the methods of sparse training: facts that need no Keras.

Another method is a class, as in `methods.py`, and a line here.
"""

import importlib
import re
from typing import NamedTuple

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


_OURS = "keras_sparse_dm.sparsity.methods"
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
        ValueError: for a name that is not known, or a class that cannot be imported.
    """
    module, _, cls = facts_of(name).place.partition(":")
    try:
        return getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}.") from error
