"""ChiroDiff: the denoiser of sketches, and the loops that its GRUs run in."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, submod_attrs={"denoiser": ["ChiroDiff"]})
