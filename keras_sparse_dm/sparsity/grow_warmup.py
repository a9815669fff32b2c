"""Adam's bias correction counted from each weight's growth (SMET, arXiv 2606.00888)."""

import keras
from keras import ops


def check_grow_warmup(optimizer):
    """Raise a ValueError unless the optimizer is Adam or derives from it."""
    if not isinstance(optimizer, keras.optimizers.Adam):
        raise ValueError(
            "`grow_warmup` counts the bias correction of Adam and AdamW; received optimizer "
            f"{type(optimizer).__name__}, which has another or none."
        )


def warm_up(optimizer, k, state, steps, learning_rate):
    """Correct a step of Adam so that its bias correction counts from each weight's growth.

    Args:
        optimizer: A `keras.optimizers.Adam` that has just been applied.
        k: `MaskedKernel`.
        state: Its `KernelState`.
        steps: Number of the step that this batch belongs to, from 1.
        learning_rate: The learning rate of this step.
    """
    more = step_difference(optimizer, state.slots, state.grown_at, steps, learning_rate)
    # With gradient accumulation, only some batches complete a step.
    stepped = ops.equal(ops.cast(optimizer.iterations, "int32"), steps)
    more = ops.where(stepped, ops.cast(more, k.kernel.dtype), 0)
    own = k.kernel.constraint.constraint or (lambda w: w)
    k.kernel.assign(own(k.kernel + more))
    if optimizer.use_ema:
        # The average already includes Adam's uncorrected step.
        share = ops.where(ops.equal(steps, 1), 1.0, 1.0 - optimizer.ema_momentum)
        state.slots["average"].assign_add(more * ops.cast(share, more.dtype))


def step_difference(optimizer, slots, grown_at, steps, learning_rate):
    """Return the correction to a step of Adam that counts each weight's own steps.

    Adam moves a weight by `-alpha(t) m / (sqrt(v) + epsilon)`. The factor `alpha(t) = lr sqrt(1 -
    beta_2^t) / (1 - beta_1^t)` corrects moments that started at zero at step 0 (Kingma & Ba
    2015). The moments of a weight that grew at step s started at zero then, so its factor is
    `alpha(t - s)`.

    Args:
        optimizer: A `keras.optimizers.Adam` that has just stepped.
        slots: `{name: variable}` of its state of the kernel.
        grown_at: Step s at which each weight grew, an integer array of the kernel's shape.
        steps: Number of steps t so far, this one included.
        learning_rate: The learning rate of this step.

    Returns:
        Float array of the kernel's shape; zero for weights that are active since the start.
    """
    m = ops.convert_to_tensor(slots["momentum"])
    v = ops.convert_to_tensor(slots["velocity_hat" if optimizer.amsgrad else "velocity"])
    grown_at = ops.convert_to_tensor(grown_at)

    def alpha(t):
        t = ops.cast(t, m.dtype)
        beta_1, beta_2 = (ops.cast(b, m.dtype) for b in (optimizer.beta_1, optimizer.beta_2))
        correction = ops.sqrt(1 - ops.power(beta_2, t)) / (1 - ops.power(beta_1, t))
        return ops.cast(learning_rate, m.dtype) * correction

    steps = ops.cast(steps, "int32")
    # At least one step, for weights that have not moved since they grew.
    own_steps = ops.maximum(steps - grown_at, 1)
    more = m * (alpha(steps) - alpha(own_steps)) / (ops.sqrt(v) + optimizer.epsilon)
    # Exactly zero for the others: powers of arrays and of scalars may round differently.
    return ops.where(grown_at > 0, more, ops.zeros((), m.dtype))
