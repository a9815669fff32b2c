"""Topology updates during training: accumulated gradients, due steps, assignments."""

import contextlib
from dataclasses import dataclass

import keras
from keras import ops

from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.masks.select import count
from keras_sparse_dm.sparsity.conditional import assign_if
from keras_sparse_dm.sparsity.options import SparsityOptions
from keras_sparse_dm.sparsity.state import SparsityState
from keras_sparse_dm.sparsity.topology_update import exchange, new_units, new_units_among

tensorflow = lazy_module("keras_sparse_dm.sparsity.tensorflow")


@dataclass(frozen=True, eq=False)
class Updates:
    """Topology updates of one optimizer.

    Attributes:
        options: `SparsityOptions`.
        state: `SparsityState`.
        kernels: `{key: MaskedKernel}` of the kernels that the step trains.
        full: Keys of the kernels whose masks are full.
        seed: `keras.random.SeedGenerator` for methods that draw.
        final_sparsity: Final sparsity of a method that starts dense, None for other methods.
    """

    options: SparsityOptions
    state: SparsityState
    kernels: dict
    full: set
    seed: keras.random.SeedGenerator
    final_sparsity: float | None = None

    def after_batch(self, gradients, batches, accumulation_steps):
        """Accumulate dense gradients if the options ask for it, and update on due steps.

        Args:
            gradients: `{key: dense gradient}` of this batch; empty if the method needs none.
            batches: Scalar integer, number of batches so far, including this one.
            accumulation_steps: Number of batches per optimizer step.
        """
        method, schedule, state = self.options.method, self.options.schedule, self.state
        step = (batches + accumulation_steps - 1) // accumulation_steps
        step = step - ops.cast(state.start, "int32")
        due, rate = schedule(step)
        due = ops.logical_and(due, batches % accumulation_steps == 0)
        kept = {key: s.gradient for key, s in state.kernels.items() if s.gradient is not None}
        if method.gradient == "momentum":
            decay = method.momentum
            share = (1.0 - decay) / accumulation_steps
            # Decay once per step; the step's other batches only add to the mean.
            if accumulation_steps > 1:
                decay = ops.where(batches % accumulation_steps == 1, decay, 1.0)
            for key, gradient in gradients.items():
                mean = kept[key]
                mean.assign(decay * mean + share * ops.cast(gradient, "float32"))
            gradients = kept
        elif kept:
            near = due
            for i in range(self.options.gradient_steps):
                near = ops.logical_or(near, schedule(step + i)[0])
            batches_per_update = self.options.gradient_steps * accumulation_steps
            dense = gradients

            def add():
                for key, gradient in dense.items():
                    gradient = ops.cast(gradient, "float32")
                    kept[key].assign_add(gradient / batches_per_update)

            assign_if(near, add, list(kept.values()))
            gradients = kept
        steps = batches // accumulation_steps
        assign_if(due, lambda: self.update(gradients, rate, steps), self._assigned())

    def update(self, gradients, rate, steps):
        """Update the topology now.

        Args:
            gradients: `{key: dense gradient}`; empty if the method needs none.
            rate: Share of the active weights to exchange; for a method that starts dense, the
                sparsity to reach.
            steps: Scalar integer, number of optimizer steps so far.
        """
        method, state = self.options.method, self.state
        changing = self._changing()
        if not changing:
            return
        if self.options.competition == "kernel":

            def units_of(key, k):
                gradient = gradients.get(key)
                return new_units(k, method, gradient, rate, self.seed, self.final_sparsity)
        else:
            among = new_units_among(
                list(changing.values()),
                method,
                [gradients.get(key) for key in changing],
                rate,
                self.seed,
            )
            units = dict(zip(changing, among, strict=True))

            def units_of(key, k):
                return units[key]

        exchanged, ones, done = {}, {}, []
        for key, k in changing.items():
            # One kernel after another, so that only one kernel's temporaries take memory.
            with _after(done):
                new = self._exchange(key, k, units_of(key, k), steps)
            exchanged[key], ones[key], done = count(new.grown), new.ones, [new.history]
        state.set_exchanged(exchanged)
        if self.options.ones_vary:
            state.set_mask_ones(ones)
        if method.gradient == "step":
            state.clear_gradients()
        state.updates.assign_add(1)

    def _changing(self):
        """Return `{key: MaskedKernel}` of the kernels whose masks can change."""
        options = self.options
        if options.competition == "global":
            # A kernel whose target is a full mask keeps all its weights.
            stay = {key for key, k in self.kernels.items() if k.target.density == 1.0} & self.full
        else:
            # A full mask stays full: only the weights it drops could grow.
            stay = set() if options.method.dense_to_sparse else self.full
        return {key: k for key, k in self.kernels.items() if key not in stay}

    def _assigned(self):
        """List the variables that `update` may assign."""
        state, changing = self.state, self._changing()
        variables = [state.updates, state.exchanged, state.mask_ones, self.seed.state]
        for key, k in changing.items():
            variables += [k.kernel, k.mask, *self._slots(key, k)]
            variables += state.kernels[key].variables().values()
        return variables

    def _slots(self, key, k):
        """List the optimizer state of a kernel that an update sets to zero."""
        slots = list(self.state.kernels[key].slots.values())
        if keras.backend.backend() != "jax":
            # Other optimizers of the kernel hold state of it too. A step on JAX cannot assign it:
            # there, each optimizer clears its own before it steps.
            for optimizer in k.record.optimizers:
                slots += [v for v in optimizer.state_of(k.kernel) if all(v is not s for s in slots)]
        return slots

    def _exchange(self, key, k, units, steps):
        """Assign a kernel's new units, and return the `Exchange`."""
        own, slots = self.state.kernels[key], self._slots(key, k)
        # Compute everything before the first assignment.
        new = exchange(k, units, slots, own.history, self.options.grow_init, self.seed)
        k.kernel.assign(new.weights)
        for slot, value in zip(slots, new.slots, strict=True):
            slot.assign(value)
        if own.grown_at is not None:
            before = ops.convert_to_tensor(own.grown_at)
            own.grown_at.assign(ops.where(new.grown, steps, before))
        own.history.assign(new.history)
        k.mask.assign(new.mask)
        return new


def _after(tensors):
    """Context whose operations run after those of tensors, if the backend may reorder them."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    return tensorflow.after(tensors)
