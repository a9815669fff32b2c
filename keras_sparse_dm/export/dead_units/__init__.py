"""Removal of the units that pruning left without use: a smaller model with the same outputs.

A unit is dead if no path of active weights leads from it to an output of the model, and constant if
none leads to it from an input. Dead units are left out. So are constant ones; their values go into
the biases of the next layers.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__, submod_attrs={"remove": ["DeadUnits", "remove_dead_units"]}
)
