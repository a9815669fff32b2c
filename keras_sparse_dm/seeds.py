"""Independent random streams from one seed."""

import numbers
import zlib

import keras
import numpy as np


def seed_generator(seed, role):
    """Return the `keras.random.SeedGenerator` of one role under a seed.

    What is drawn for different roles is independent although the seed is the same: the same
    numbers must not draw the masks and grow the weights.

    Args:
        seed: Integer, 0 or more; None for a random one.
        role: Name of what the numbers are for.

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
