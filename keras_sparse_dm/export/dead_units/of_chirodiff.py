"""Dead and constant units of ChiroDiff's GRUs and of its first linear layer."""

import numpy as np
from keras.ops import convert_to_numpy as to_numpy

from keras_sparse_dm.export.dead_units.kept_units import KernelParts, at_least, row
from keras_sparse_dm.models import ChiroDiff


def smaller_chirodiff(network):
    """Return a smaller `ChiroDiff`, rows of a `DeadUnits` table, and a dictionary of no reasons."""
    pairs = [(layer.forward_layer.cell, layer.backward_layer.cell) for layer in network.recurrent]
    projection, noise = network.output_projection, network.noise_projection
    # Forwards from the points: the units that are always zero.
    zeros, varying = [], np.ones(pairs[0][0].kernel.shape[0], "bool")
    for pair in pairs:
        zeros.append([_zero_units(cell, varying) for cell in pair])
        varying = ~np.concatenate(zeros[-1])
    kernel, noise_kernel = to_numpy(projection.kernel), to_numpy(noise.kernel)
    constant = ~np.any(kernel[varying], axis=0)
    # Backwards from the noise: the units with an effect.
    width = kernel.shape[1]
    live = np.any(noise_kernel[:width], axis=1)
    needed = live & ~constant
    keep = at_least(needed, 1)
    rows = [(projection.name, keep, live)]
    kept, used = [], np.any(kernel[:, needed], axis=1)
    for pair, zero in zip(reversed(pairs), reversed(zeros), strict=True):
        units = pair[0].units
        lives = [
            _live_units(to_numpy(cell.recurrent_kernel), half)
            for cell, half in zip(pair, (used[:units], used[units:]), strict=True)
        ]
        needed = [one & ~other for one, other in zip(lives, zero, strict=True)]
        number = max(1, *(int(one.sum()) for one in needed))
        kept.insert(0, [at_least(one, number) for one in needed])
        name = network.recurrent[len(pairs) - len(kept)].name
        rows[:0] = [
            (f"{name}/{direction}", *facts)
            for direction, *facts in zip(("forward", "backward"), kept[0], lives, strict=True)
        ]
        used = np.any(
            [
                np.any(to_numpy(cell.kernel)[:, np.tile(one, 3)], axis=1)
                for cell, one in zip(pair, needed, strict=True)
            ],
            axis=0,
        )
    config = network.get_config() | {
        "units": [int(pair[0].sum()) for pair in kept],
        "projection_units": int(keep.sum()),
    }
    smaller = ChiroDiff.from_config(config)
    smaller.time_frequencies.assign(network.time_frequencies)
    fill = KernelParts(network, smaller)
    inputs = np.ones(pairs[0][0].kernel.shape[0], "bool")
    for pair, layer, keeps in zip(pairs, smaller.recurrent, kept, strict=True):
        new_pair = (layer.forward_layer.cell, layer.backward_layer.cell)
        for cell, new, of_units in zip(pair, new_pair, keeps, strict=True):
            gates = np.tile(of_units, 3)
            fill(cell.kernel, new.kernel, inputs, gates)
            fill(cell.recurrent_kernel, new.recurrent_kernel, of_units, gates)
            new.bias.assign(to_numpy(cell.bias)[:, gates])
        inputs = np.concatenate(keeps)
    bias = to_numpy(projection.bias)
    fill(projection.kernel, smaller.output_projection.kernel, inputs, keep)
    smaller.output_projection.bias.assign(bias[keep])
    time = np.ones(network.time_features, "bool")
    everything = np.ones(noise_kernel.shape[1], "bool")
    fill(noise.kernel, smaller.noise_projection.kernel, np.concatenate([keep, time]), everything)
    gone = constant & ~keep
    folded = bias[gone].astype("float64") @ noise_kernel[:width][gone]
    smaller.noise_projection.bias.assign(to_numpy(noise.bias) + folded)
    return smaller, [row(*values) for values in rows], {}


def _zero_units(cell, varying):
    """Find the units of a GRU whose state stays at its initial zero.

    The state moves towards the candidate, tanh of its inputs. If those are zero the state stays
    zero, whatever the gates are.

    Args:
        cell: A `GRUCell`.
        varying: Boolean array of the inputs, False for those that are always zero.

    Returns:
        Boolean array of the units.
    """
    begin = 2 * cell.units
    zero = ~np.any(to_numpy(cell.kernel)[varying, begin:], axis=0)
    zero &= ~np.any(to_numpy(cell.bias)[..., begin:].reshape(-1, cell.units), axis=0)
    recurrent = to_numpy(cell.recurrent_kernel)[:, begin:]
    while True:
        fewer = zero & ~np.any(recurrent[~zero], axis=0)
        if np.array_equal(fewer, zero):
            return zero
        zero = fewer


def _live_units(recurrent_kernel, used):
    """Find the units of a GRU that later layers read, or that such units depend on."""
    leads_to = np.any(recurrent_kernel.reshape(len(used), 3, len(used)), axis=1)
    while True:
        more = used | np.any(leads_to[:, used], axis=1)
        if np.array_equal(more, used):
            return used
        used = more
