"""Independent random streams from one seed."""

import numbers
import zlib

import keras
import numpy as np


def seed_generator(seed, role):
    """Return the `keras.random.SeedGenerator` for one purpose.

    Generators for different purposes are independent even with equal seeds: masks and growth, for
    example, must not use the same random numbers.

    Args:
        seed: Integer, 0 or more; None for a random seed.
        role: Name of the purpose.

    Raises:
        ValueError: if `seed` is neither None nor an integer of 0 or more.
    """
    if seed is None:
        return keras.random.SeedGenerator()
    whole = isinstance(seed, numbers.Real) and not isinstance(seed, bool) and seed % 1 == 0
    if not whole or seed < 0:
        raise ValueError(f"`seed` must be None or an integer, 0 or more; received {seed!r}.")
    sequence = np.random.SeedSequence([int(seed), zlib.crc32(role.encode())])
    return keras.random.SeedGenerator(int(sequence.generate_state(1)[0]) >> 1)
