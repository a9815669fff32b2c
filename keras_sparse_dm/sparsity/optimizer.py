"""`SparseOptimizer`, the one place where training becomes sparse."""

import weakref
from dataclasses import replace

import keras
from keras import ops

from keras_sparse_dm import _keras
from keras_sparse_dm.layers.guard import guard, guarded, sparse_training
from keras_sparse_dm.renamed import old_method
from keras_sparse_dm.seeds import seed_generator
from keras_sparse_dm.sparsity.grow_warmup import check_grow_warmup, warm_up
from keras_sparse_dm.sparsity.inner_optimizer import (
    MIXING,
    apply_masked,
    check_inner,
    is_one_of,
    on_tensorflow,
    slots,
)
from keras_sparse_dm.sparsity.kernels import check_weights, masked_kernels
from keras_sparse_dm.sparsity.methods import get_method
from keras_sparse_dm.sparsity.options import SparsityOptions
from keras_sparse_dm.sparsity.state import SparsityState
from keras_sparse_dm.sparsity.topology_update import ACTIVE_AT_START, EVER_ACTIVE, masked
from keras_sparse_dm.sparsity.updates import Updates
from keras_sparse_dm.sparsity.wrapper import OptimizerWrapper, serialized


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class SparseOptimizer(OptimizerWrapper):
    """Optimizer wrapper that trains a sparse model sparsely.

    Each step masks the gradients before the wrapped optimizer gets them, so moments, weight decay
    and gradient clipping never see a pruned weight. On due steps, a topology update follows the
    optimizer update (paper, Algorithm 2) in the same compiled function, with the unmasked gradient.
    `tf.distribute.MirroredStrategy` sums unmasked gradients once, so all replicas get equal masks.

    `DynamicSparsity` installs the wrapper for `fit`; use `sparse_optimizer` for other loops.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, built or not.
        method, seed, **options: Arguments of `SparsityOptions`.
        schedule: As in `SparsityOptions`, or None for the static method.
        name: Optional name.

    Raises:
        ValueError: as `SparsityOptions`, or for an optimizer that cannot train sparsely (Ftrl,
            MultiOptimizer, and Adafactor with `epsilon_1` below 1e-16).
    """

    def __init__(
        self, inner_optimizer, method="rigl", schedule=None, seed=None, name=None, **options
    ):
        check_inner(inner_optimizer)
        method = get_method(method)
        if schedule is None:
            if method.dynamic:
                raise ValueError(f"`schedule` must be given for method {method.name!r}.")
            schedule = "constant"
        options = SparsityOptions(method, schedule=schedule, seed=seed, **options)
        if options.grow_warmup:
            check_grow_warmup(inner_optimizer)
        super().__init__(inner_optimizer, name or "sparse_optimizer")
        self._options = options
        self._seed_generator = seed_generator(options.seed, "growth")
        _keras.track(self, self._seed_generator.state)
        self._state = None
        self._kernels = ()
        self._model = lambda: None
        # Keys of kernels with full masks, and everything that a compiled step depends on.
        self._full, self._traced = set(), None
        self._checked = False

    def configure(self, options):
        """Change all options except the seed; return True if they differ from before."""
        before, options = self._options, replace(options, seed=self._options.seed)
        if options.grow_warmup:
            check_grow_warmup(self.inner_optimizer)
        self._options = options
        changed = options != before
        other_method = options.get_config()["method"] != before.get_config()["method"]
        # Accumulated gradients belong to an update that may no longer take place.
        if self.built and changed and (options.method.gradient != "momentum" or other_method):
            self._state.clear_gradients()
        return changed

    def build(self, variables):
        if self.built:
            return
        variables = list(variables)
        if not self.inner_optimizer.built:
            self.inner_optimizer.build(variables)
        keys = [_keras.variable_key(self, v) for v in variables]
        self._state = SparsityState.create(self, variables, keys)
        super().build(variables)
        self._add_kernels()

    def _add_kernels(self):
        """Add the state of kernels that are sparse now, so that it can be loaded from files."""
        trained = {_keras.variable_key(self, v): v for v in _keras.trained_variables(self)}
        kernels = {key: v for key, v in trained.items() if guarded(v) is not None}
        self._state.add_kernels(self, kernels, self._options)
        if any(self._state.kernels[key].slots is None for key in kernels):
            known = slots(self.inner_optimizer, list(trained.values()))
            for key, found in zip(trained, known, strict=True):
                if key in kernels:
                    self._state.kernels[key].slots = found
        self._state.track_masks(self, [guarded(v).mask for v in kernels.values()])

    def check_trains(self, model, names=None):
        """Raise a ValueError if this optimizer was not built for a model's variables.

        Args:
            model: The `keras.Model`.
            names: Names of the variables that it has to train; all trainable ones by default.
        """
        if self.built:
            index = self._state.index
            unknown = [
                v.path
                for v in model.trainable_variables
                if (names is None or v.path in names) and _keras.variable_key(self, v) not in index
            ]
            if unknown:
                raise ValueError(
                    "The optimizer was built for other variables and does not train "
                    f"{', '.join(unknown)}: compile the model again with a new optimizer."
                )
        elif self.inner_optimizer.built:
            # This raises Keras's own error.
            _keras.check_known(self.inner_optimizer, model.trainable_variables)

    def attach(self, model, masks_changed=False):
        """Attach the optimizer to the masks of a built model.

        Args:
            model: The built `keras.Model` whose trainable variables this optimizer trains.
            masks_changed: True if new masks were drawn after the optimizer's state was created;
                the state of pruned weights is then cleared.

        Raises:
            ValueError: if the model has no trainable sparse kernel or no pruned weight, the method
                does not support the masks' structure, the optimizer was built for other variables,
                weights do not fit their mask, or the number of a mask's ones has changed.
        """
        kernels = [k for k in masked_kernels(model) if k.kernel.trainable]
        if not kernels:
            raise ValueError(
                f"Model {model.name!r} has no trainable sparse kernel: call "
                "`keras_sparse_dm.sparsify(model, sparsity)`."
            )
        ones = {self._key(k): int(ops.sum(ops.cast(k.mask, "int32"))) for k in kernels}
        full = {self._key(k) for k in kernels if ones[self._key(k)] == k.size}
        method = self._options.method
        if not masks_changed and len(full) == len(kernels) and not method.dense_to_sparse:
            raise ValueError(
                f"Nothing is pruned in model {model.name!r}: call `keras_sparse_dm.sparsify(model, "
                "sparsity)` with a sparsity above 0 first. If it is part of a model that is sparse "
                "elsewhere, its masks are full, and it trains with the plain optimizer."
            )
        for k in kernels:
            guard(k.kernel, k.record)
        # New masks may be for another method, which the next `fit` sets.
        self._checked = not masks_changed
        if self._checked:
            self._options.check_kernels(kernels)
        fresh = not self.built
        self.check_trains(model)
        self.build(model.trainable_variables)
        if fresh:
            self._options.check_not_done(kernels, [ones[self._key(k)] for k in kernels])
        traced = [(self._key(k), k.target) for k in kernels], full
        if traced != self._traced:
            # The compiled step is for other kernels or structures.
            model.train_function = None
        self._kernels, self._full, self._traced = tuple(kernels), full, traced
        self._model = weakref.ref(model)
        for k in kernels:
            k.record.optimizers.add(self)
            k.record.ones_vary = self._options.ones_vary
        self._add_kernels()
        known = self._state.counts("mask_ones")
        if fresh or masks_changed:
            known = dict.fromkeys(known, -1)
            self._state.start.assign(ops.copy(self.inner_optimizer.iterations))
        # Kernels that are frozen now, or trained for the first time, have no number to compare.
        differ = [k.name for k in kernels if known[self._key(k)] not in (-1, ones[self._key(k)])]
        # If updates change the numbers, a callback may have restored an earlier mask.
        if differ and not self._options.ones_vary:
            raise ValueError(
                "The number of ones in the masks differs from this optimizer's state: "
                f"{', '.join(differ)}. Call `sparsify` after loading, or compile again."
            )
        if not masks_changed:
            check_weights(kernels)
        for k in kernels:
            if known[self._key(k)] < 0:
                self._state.begin(self._key(k), k.mask)
        self._state.set_mask_ones(ones)
        self.clear_pruned()

    def sync_masks_with_weights(self):
        """Adapt masks and state after something else has written the model's weights.

        Call it after `set_weights`, or after a callback has restored an earlier epoch. Masks
        become those of the weights, and the state of pruned weights becomes zero.

        Raises:
            ValueError: for weights with more nonzeros than the mask may have ones.
        """
        check_weights(self._kernels)
        self.clear_pruned()

    weights_were_put_back = old_method("weights_were_put_back", sync_masks_with_weights)

    def mask_has_changed(self, kernel):
        """Clear the state of pruned weights after something else has changed a kernel's mask."""
        for k in self._kernels:
            if k.kernel is kernel:
                self._clear(k)
                if self._options.ones_vary:
                    ones = ops.sum(ops.cast(k.mask, "int32"))
                    self._state.set_mask_ones({self._key(k): ones})

    def clear_pruned(self):
        """Set pruned weights and their state to zero."""
        for k in self._kernels:
            k.kernel.assign(masked(k.mask, k.kernel))
            self._clear(k)

    def _clear(self, k):
        for slot in self.state_of(k.kernel):
            slot.assign(masked(k.mask, slot))

    def apply(self, grads, trainable_variables=None):
        if not self._kernels:
            raise ValueError(
                "This SparseOptimizer is not attached to a model: pass the DynamicSparsity "
                "callback to `fit`, or call `optimizer.attach(model)`."
            )
        if trainable_variables is None:
            trainable_variables = _keras.trained_variables(self)
        if not self._checked:
            self._options.check_kernels(self._kernels)
            self._checked = True
        # Sum before masking, so that one sum serves both uses; a conditional cannot contain a sum.
        grads = on_tensorflow("sum_over_replicas", list)(list(grads))
        pairs = list(zip(trainable_variables, grads, strict=True))
        dense = {_keras.variable_key(self, v): g for v, g in pairs if g is not None}
        # Masks of kernels that this step does not train stay unchanged.
        trained = {key: k for k in self._kernels if (key := self._key(k)) in dense}
        options, mixing = self._options, is_one_of(self.inner_optimizer, MIXING)
        if options.grow_warmup:
            steps = ops.cast(self.iterations, "int32") + 1
            learning_rate = ops.convert_to_tensor(self.learning_rate)
        for k in trained.values():
            if keras.backend.backend() == "jax" and len(k.record.optimizers) > 1:
                # Another optimizer may have changed the mask since.
                self._clear(k)
        # Skip masks that are full and stay full.
        full = () if options.ones_vary else self._full
        masks = {key: k.mask for key, k in trained.items() if key not in full}
        with sparse_training():
            apply_masked(self.inner_optimizer, pairs, masks)
        if not (mixing or options.method.dynamic):
            return

        def after_step(gradients):
            if mixing:
                self.clear_pruned()
            if options.grow_warmup:
                for key, k in trained.items():
                    state = self._state.kernels[key]
                    warm_up(self.inner_optimizer, k, state, steps, learning_rate)
            if options.method.dynamic:
                batches = ops.cast(_keras.batches_seen(self.inner_optimizer), "int32")
                self.updates(trained).after_batch(gradients, batches, self.accumulation_steps)

        once = on_tensorflow("once_for_all_replicas", lambda function, tensors: function(tensors))
        once(after_step, {key: dense[key] for key in trained} if options.method.gradient else {})

    def updates(self, kernels):
        """Return the `Updates` of the kernels that a step trains, `{key: MaskedKernel}`."""
        final = self._options.final_sparsity(self._kernels)
        return Updates(self._options, self._state, kernels, self._full, self._seed_generator, final)

    def attached_model(self):
        """Return the attached `keras.Model` or None; Keras would save what a property returns."""
        return self._model()

    @property
    def kernels(self):
        """Tuple of `MaskedKernel`, the attached kernels."""
        return self._kernels

    @property
    def topology_updates(self):
        """Number of topology updates so far."""
        return int(ops.convert_to_numpy(self._state.updates)) if self.built else 0

    @property
    def steps_since_start(self):
        """Number of optimizer steps since the masks were drawn, from which schedules count."""
        return self.steps - int(ops.convert_to_numpy(self._state.start))

    @property
    def options(self):
        """The `SparsityOptions`."""
        return self._options

    @property
    def method(self):
        """The `SparsityMethod`."""
        return self._options.method

    def exchanged(self, kernels=None):
        """Return `{kernel name: number of weights that the last update exchanged}`.

        Args:
            kernels: As in `mask_ones`.
        """
        return self._by_kernel("exchanged", kernels)

    def mask_ones(self, kernels=None):
        """Return `{kernel name: number of ones that the mask must have}`.

        Args:
            kernels: List of `MaskedKernel`, of which unknown ones are ignored; the attached ones
                by default.
        """
        counts = self._by_kernel("mask_ones", kernels)
        return {name: ones for name, ones in counts.items() if ones >= 0}

    def _by_kernel(self, which, kernels):
        if not self.built:
            return {}
        counts = self._state.counts(which)
        kernels = self._kernels if kernels is None else kernels
        return {k.name: counts[key] for k in kernels if (key := self._key(k)) in counts}

    def history(self, kernel):
        """Return `(active at the start, ever active)`, boolean arrays of a kernel's shape.

        The start is when the optimizer was first attached. Returns None for an unknown kernel.
        """
        state = self._state_of(kernel)
        if state is None:
            return None
        bits = ops.convert_to_numpy(state.history)
        return bits & ACTIVE_AT_START > 0, bits & EVER_ACTIVE > 0

    def state_of(self, kernel):
        """List the wrapped optimizer's per-weight variables of a kernel; empty if unknown."""
        state = self._state_of(kernel)
        return [] if state is None else list(state.slots.values())

    def _state_of(self, kernel):
        key = _keras.variable_key(self, kernel)
        return self._state.kernels.get(key) if self.built else None

    def _key(self, k):
        return _keras.variable_key(self, k.kernel)

    def save_own_variables(self, store):
        # The wrapped optimizer saves its own variables under `inner_optimizer`.
        store["seed_state"] = ops.convert_to_numpy(self._seed_generator.state)
        if self.built:
            # A callback may have restored weights; adapt the masks before both are saved.
            for k in self._kernels:
                k.record.follow(k.kernel)
            self._state.save(store)

    def load_own_variables(self, store):
        # Version 0.1 numbered its variables; the third is the seed's state.
        seed = "seed_state" if "seed_state" in store.keys() else "2"
        if seed in store.keys():
            self._seed_generator.state.assign(store[seed])
        if self.built:
            self._state.load(store)

    def get_config(self):
        return {
            "name": self.name,
            "inner_optimizer": serialized(self.inner_optimizer),
            **self._options.get_config(),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        name = config.pop("name", None)
        inner = keras.saving.deserialize_keras_object(
            config.pop("inner_optimizer"), custom_objects=custom_objects
        )
        options = SparsityOptions.from_config(config, custom_objects)
        return cls(inner, name=name, **vars(options))
