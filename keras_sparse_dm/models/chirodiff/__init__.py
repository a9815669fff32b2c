"""ChiroDiff: the denoiser of sketches, and three loops for its GRUs.

Keras's own loop works everywhere. These loops replace it where it is slow, with equal numbers up to
rounding:

| module | use | differs from Keras's loop in |
|---|---|---|
| `gru_for_sampling` | forward passes on a CPU | a few points share each product; skips padding |
| `gru_for_training` | training on a CPU | the same, with a gradient of its own |
| `gru_for_litert` | `.tflite` files | all points share a product; operations suit LiteRT |
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, submod_attrs={"denoiser": ["ChiroDiff"]})
