"""The paper's grid of runs, its tables and its figures."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={"paper": ["PAPER_COSTS", "PAPER_SETTINGS"], "paper_fids": ["PAPER_FIDS"]},
)
