"""`SparseOptimizer`: the one place where training becomes sparse training."""

import contextlib
import numbers
import threading
import warnings
import weakref

import keras
from keras import ops

from keras_sparse_dm.layers.masked import SparseTrainingOnly, strategy_of
from keras_sparse_dm.seeds import seed_generator
from keras_sparse_dm.sparsity.masking import masked_kernels
from keras_sparse_dm.sparsity.methods import get_method
from keras_sparse_dm.sparsity.structures import NM
from keras_sparse_dm.sparsity.topology import drop_weakest, top_k_masks

# Ftrl divides by state that is zero where weights are pruned, and MultiOptimizer keeps state
# where it is not found.
UNSUPPORTED = ("Ftrl", "MultiOptimizer")
# Their update of a weight depends on the others too, so that pruned weights have to be put
# back to zero after it.
MIXING = ("Muon",)
# Per-weight variables that hold nothing from one step to the next.
SCRATCH = {"Adafactor": ("_v",)}
# Adafactor divides the mean squares of a row and a column by their product; where both are
# pruned whole, only this keeps it from 0 / 0.
ADAFACTOR_EPSILON = 1e-16

COMPETITION = ("kernel", "global")
GROW_INIT = ("zeros", "normal")
_ACTIVE_AT_START, _EVER_ACTIVE = 1, 2


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class SparseOptimizer(keras.optimizers.Optimizer):
    """Wraps an optimizer so that it trains a sparse model sparsely.

    Each step masks the gradients before the wrapped optimizer sees them, so that moments,
    weight decay and gradient clipping never see a pruned weight. On steps that the schedule
    calls due, the topology is updated after the optimizer (paper, Algorithm 2), with the
    unmasked gradient of that same step, inside the same compiled function. Under
    `tf.distribute.MirroredStrategy` the unmasked gradients are summed over the replicas once,
    and every replica gets the same masks.

    `DynamicSparsity` installs it for `fit`, and `sparse_optimizer` makes it for everything
    else; neither a custom training loop nor `train_on_batch` needs to make it by hand.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, built or not.
        method: A name in `METHODS` or a `SparsityMethod`.
        schedule: A `PruningSchedule` of tensorflow_model_optimization that says when the
            topology changes and by what share; None with the static method. Steps are
            the optimizer's updates: with gradient accumulation, one for several batches.
        seed: Integer seed of the methods that draw; None for a random one.
        competition: `"kernel"`: every kernel grows as many weights as it dropped. `"global"`:
            all kernels compete for what all have dropped, so that densities shift among them.
            Needs the memory of all scores at once.
        grow_init: What grown weights start from: `"zeros"`, as in RigL, or `"normal"`, drawn
            with the standard deviation of the kernel's active weights.
        gradient_steps: Over how many optimizer steps, up to the update's, the dense gradient is
            averaged; 1 or more, and no more than lie between two updates. Above 1 it costs
            memory of the kernels' size.
        name: Optional name.

    Raises:
        ValueError: for an unknown method or option, a dynamic method without a schedule, or an
            optimizer that cannot train sparsely (Ftrl, MultiOptimizer, and Adafactor with
            `epsilon_1` below 1e-16).
    """

    def __init__(
        self,
        inner_optimizer,
        method="rigl",
        schedule=None,
        seed=None,
        competition="kernel",
        grow_init="zeros",
        gradient_steps=1,
        name=None,
    ):
        if not isinstance(inner_optimizer, keras.optimizers.Optimizer):
            raise ValueError(
                "`inner_optimizer` must be a keras.optimizers.Optimizer; received "
                f"{inner_optimizer!r}."
            )
        if getattr(inner_optimizer, "inner_optimizer", None) is not None:
            raise ValueError(
                f"`inner_optimizer` must not wrap another; received {inner_optimizer!r}. Put "
                "loss scaling outside: LossScaleOptimizer(SparseOptimizer(...))."
            )
        if _is_one_of(inner_optimizer, UNSUPPORTED):
            raise ValueError(
                f"`inner_optimizer` must update each weight from its own gradient and state; "
                f"{type(inner_optimizer).__name__} does not, and would let pruned weights change. "
                "Use AdamW, Adam, SGD, RMSprop, Lion or another."
            )
        epsilon = getattr(inner_optimizer, "epsilon_1", 1.0)
        if _is_one_of(inner_optimizer, ("Adafactor",)) and epsilon < ADAFACTOR_EPSILON:
            raise ValueError(
                "`inner_optimizer` Adafactor divides 0 by 0 where a row and a column of a kernel "
                f"are pruned, unless `epsilon_1` is at least {ADAFACTOR_EPSILON}; received "
                f"epsilon_1={epsilon}."
            )
        super().__init__(learning_rate=0.0, name=name or "sparse_optimizer")
        self.inner_optimizer = inner_optimizer
        self._set_options(method, schedule, competition, grow_init, gradient_steps)
        self._seed = seed
        self._seed_generator = seed_generator(seed, "growth")
        self._track_variable(self._seed_generator.state)
        self._updates = self.add_variable((), dtype="int", name="topology_updates")
        # The schedule counts its steps from where the masks were drawn.
        self._start = self.add_variable((), dtype="int", name="start")
        self._kernels = ()
        self._model = lambda: None
        # Names of those whose masks are full.
        self._full = set()
        self._index = {}
        # By the key of the kernel: which weights were ever active, and dense gradients.
        self._history = {}
        self._gradients = {}
        self._checked = False
        self._work = _Work()

    def _set_options(self, method, schedule, competition, grow_init, gradient_steps):
        method = get_method(method)
        check_options(method, schedule, competition, grow_init, gradient_steps)
        self._method, self._schedule = method, schedule
        self._competition, self._grow_init = competition, grow_init
        self._gradient_steps = int(gradient_steps)

    def configure(
        self, method, schedule, competition="kernel", grow_init="zeros", gradient_steps=1
    ):
        """Changes the method and its options; returns whether they differ from before."""
        before = self.get_config()
        self._set_options(method, schedule, competition, grow_init, gradient_steps)
        after = self.get_config()
        changed = {key for key in before if before[key] != after[key]} - {"inner_optimizer"}
        if changed and self._method.gradient != "momentum" or "method" in changed:
            # What was added up was meant for an update that may not come now.
            self._clear_gradients()
        return bool(changed)

    def build(self, variables):
        if self.built:
            return
        if not self.inner_optimizer.built:
            self.inner_optimizer.build(variables)
        # One entry per trainable variable, so that the shapes are known before a model is
        # attached; -1 and 0 for variables without a mask.
        shape = (len(variables),)
        self._mask_ones = self.add_variable(
            shape, initializer=keras.initializers.Constant(-1), dtype="int32", name="mask_ones"
        )
        self._exchanged = self.add_variable(shape, dtype="int32", name="exchanged")
        super().build(variables)
        self._index = {self._var_key(v): i for i, v in enumerate(variables)}
        self._add_state()

    def _add_state(self):
        """Adds what is missing of the state per sparse kernel, and removes what is not used."""
        sparse = [
            v for v in self._trainable_variables if isinstance(v.constraint, SparseTrainingOnly)
        ]
        for v in sparse:
            if self._var_key(v) not in self._history:
                with strategy_of(v):
                    self._history[self._var_key(v)] = self.add_variable(
                        v.shape, dtype="uint8", name=f"history_{v.name}"
                    )
        wanted = {self._var_key(v): v for v in sparse} if self._keeps_gradients() else {}
        for key in set(self._gradients) - set(wanted):
            self._untrack_variable(self._gradients.pop(key))
        for key, v in wanted.items():
            if key not in self._gradients:
                with strategy_of(v):
                    self._gradients[key] = self.add_variable(
                        v.shape, dtype="float32", name=f"dense_gradient_{v.name}"
                    )

    def _keeps_gradients(self):
        if self._method.gradient == "momentum":
            return True
        return self._method.gradient == "step" and self._batches_per_update() > 1

    def _batches_per_update(self):
        """Number of batches whose dense gradients are averaged for an update."""
        return self._gradient_steps * self._accumulation_steps

    @property
    def _accumulation_steps(self):
        return self.inner_optimizer.gradient_accumulation_steps or 1

    def attach(self, model, masks_changed=False):
        """Tells the optimizer which variables of a built model have masks.

        Args:
            model: The built `keras.Model` whose trainable variables this optimizer trains.
            masks_changed: True where the masks were drawn anew since the optimizer's state
                was made; the state of pruned weights is then cleared.

        Raises:
            ValueError: if the model has no trainable sparse kernel or nothing in it is pruned,
                the method does not go with the masks' structure, the optimizer was built for
                other variables, or a mask does not have as many ones as when this optimizer
                first met it.
        """
        kernels = [k for k in masked_kernels(model) if k.kernel.trainable]
        if not kernels:
            raise ValueError(
                f"Model {model.name!r} has no trainable sparse kernel: call "
                "`keras_sparse_dm.sparsify(model, sparsity)`."
            )
        dense = all(bool(ops.all(k.mask)) for k in kernels)
        if not masks_changed and dense and not self._method.dense_to_sparse:
            raise ValueError(
                f"Nothing is pruned in model {model.name!r}: call `keras_sparse_dm.sparsify(model, "
                "sparsity)` with a sparsity above 0 first. If it is part of a model that is sparse "
                "elsewhere, its masks are full, and it trains with the plain optimizer."
            )
        # Masks drawn anew may be for another method, which comes with the next `fit`.
        self._checked = not masks_changed
        if self._checked:
            self._check_method(kernels)
        fresh = not self.built
        if fresh:
            self.build(model.trainable_variables)
        unknown = [k.name for k in kernels if self._var_key(k.kernel) not in self._index]
        if unknown:
            raise ValueError(
                "The optimizer was built for other variables and does not train "
                f"{', '.join(unknown)}: compile the model again with a new optimizer."
            )
        ones = {self._var_key(k.kernel): int(ops.sum(ops.cast(k.mask, "int32"))) for k in kernels}
        if fresh:
            self._check_not_done(kernels, ones)
        before = [(self._var_key(k.kernel), k.target) for k in self._kernels], self._full
        self._kernels = tuple(kernels)
        self._model = weakref.ref(model)
        for k in kernels:
            if isinstance(k.kernel.constraint, SparseTrainingOnly):
                k.kernel.constraint.optimizers.add(self)
        self._full = {k.name for k in kernels if ones[self._var_key(k.kernel)] == k.size}
        if before != ([(self._var_key(k.kernel), k.target) for k in kernels], self._full):
            # A step compiled before knows other kernels or structures.
            model.train_function = None
        self._add_state()
        now = [ones.get(key, -1) for key in self._index]
        before = ops.convert_to_numpy(self._mask_ones).tolist()
        if fresh or masks_changed:
            before = [-1] * len(now)
            self._start.assign(self.inner_optimizer.iterations)
        # A kernel that is frozen, or trains for the first time, is in one record only.
        differ = any(n != b for n, b in zip(now, before, strict=True) if n >= 0 and b >= 0)
        # Where the numbers change in training, a callback may have put back earlier masks.
        if differ and not self._counts_vary:
            raise ValueError(
                "The masks of the model do not have as many ones as those that this optimizer's "
                "state belongs to. Call `sparsify` after loading, or compile again."
            )
        for k in kernels:
            if before[self._index[self._var_key(k.kernel)]] < 0:
                start = ops.where(k.mask, _ACTIVE_AT_START + _EVER_ACTIVE, 0)
                self._history[self._var_key(k.kernel)].assign(ops.cast(start, "uint8"))
        self._mask_ones.assign([n if n >= 0 else b for n, b in zip(now, before, strict=True)])
        self.clear_pruned()

    @property
    def _counts_vary(self):
        """Whether topology updates change the number of a mask's ones."""
        return self._competition == "global" or self._method.dense_to_sparse

    def weights_were_put_back(self):
        """Takes weights and masks as they are, after something else has written to them.

        As a callback that restores those of an earlier epoch, or `set_weights`: pruned weights
        and their state become zero.
        """
        if self._counts_vary:
            ones = {
                self._index[self._var_key(k.kernel)]: ops.sum(ops.cast(k.mask, "int32"))
                for k in self._kernels
            }
            before = [self._mask_ones[i] for i in range(len(self._index))]
            self._mask_ones.assign(ops.stack([ones.get(i, b) for i, b in enumerate(before)]))
        self.clear_pruned()

    def _check_method(self, kernels):
        """Raises a ValueError if the method cannot keep what the masks were asked to be."""
        name = self._method.name
        for k in kernels:
            structure = k.target.structure
            if self._method.single_weights and structure.unit > 1:
                raise ValueError(
                    f"`method` {name!r} scores single weights and cannot keep the {structure} of "
                    f"{k.name}."
                )
            if isinstance(structure, NM) and (
                self._method.dense_to_sparse or self._competition == "global"
            ):
                raise ValueError(
                    f"{structure} of {k.name} fixes the density of its kernel, which method "
                    f"{name!r} with {self._competition} competition would change."
                )
            if self._method.dense_to_sparse and k.target.density is None:
                raise ValueError(
                    f"`method` {name!r} needs the densities to reach: call `keras_sparse_dm."
                    "sparsify(model, sparsity, dense_start=True)` first."
                )
        units = {k.target.structure.unit for k in kernels if k.target.density != 1.0}
        if self._competition == "global" and len(units) > 1:
            raise ValueError(
                "`competition` cannot be 'global' among kernels of different structures: units of "
                f"{' and '.join(map(str, sorted(units)))} weights cannot be exchanged."
            )
        if self._method.dense_to_sparse:
            size = sum(k.size for k in kernels)
            asked = 1.0 - sum(k.target.density * k.size for k in kernels) / size
            final = getattr(self._schedule, "final_sparsity", None)
            final = getattr(self._schedule, "target_sparsity", final)
            # `densities` rounds the budget by up to one weight of each kernel.
            rounding = max(5e-3, len(kernels) / size)
            if asked <= 0.0 or (final is not None and abs(asked - final) > rounding):
                raise ValueError(
                    f"`schedule` ends at sparsity {final}, and `sparsify` was asked for "
                    f"{asked:.4f}: ask both for the same, above 0."
                )
            self._final_sparsity = asked if final is None else final
            from keras_sparse_dm.sparsity.schedules import check_reaches_its_end

            check_reaches_its_end(self._schedule)

    def _check_not_done(self, kernels, ones):
        """Raises a ValueError if a method that starts dense begins where it should end."""
        if not self._method.dense_to_sparse:
            return
        if all(
            ones[self._var_key(k.kernel)]
            == k.target.structure.ones(tuple(k.kernel.shape), k.target.density)
            for k in kernels
        ):
            raise ValueError(
                f"`method` {self._method.name!r} has nothing to prune, for the masks are as sparse "
                "as asked: call `keras_sparse_dm.sparsify(model, sparsity, dense_start=True)`, or "
                "use method 'static' to keep them."
            )

    def _clear_gradients(self):
        for total in self._gradients.values():
            total.assign(ops.zeros_like(total))

    def clear_pruned(self):
        """Zeroes pruned weights and their state, after something else has written to them."""
        for k in self._kernels:
            for variable in (k.kernel, *self._slots(k.kernel)):
                variable.assign(_where(k.mask, variable))

    def apply(self, grads, trainable_variables=None):
        if not self._kernels:
            raise ValueError(
                "This SparseOptimizer does not know its model yet: pass the DynamicSparsity "
                "callback to `fit`, or call `optimizer.attach(model)`."
            )
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        trainable_variables = list(trainable_variables)
        if not self._checked:
            self._check_method(self._kernels)
            self._checked = True
        # Before the masks: the sum that the replicas need of the masked gradients is that of
        # the dense ones, masked, and an all-reduce inside a conditional is not possible.
        grads = _sum_over_replicas(list(grads))
        pairs = list(zip(trainable_variables, grads, strict=True))
        dense_gradients = {self._var_key(v): g for v, g in pairs if g is not None}
        masks = {self._var_key(k.kernel): k.mask for k in self._kernels}
        # Kernels that this step does not train keep their masks too.
        trained = set(masks) & set(dense_gradients)
        to_mask = {key: mask for key, mask in masks.items() if key in trained}
        in_turn = self._works_in_turn()
        if not (in_turn and self._updates_see_gradients_alone()):
            grads = [_masked(to_mask.get(self._var_key(v)), g) for v, g in pairs]
            to_mask = {}
        with (
            self._at_work(),
            self._in_turn(grads, to_mask) if in_turn else contextlib.nullcontext(),
        ):
            self.inner_optimizer.apply(grads, trainable_variables)
        mixing = _is_one_of(self.inner_optimizer, MIXING)
        if not mixing and not self._method.dynamic:
            return
        if self._method.gradient is None:
            dense_gradients = {}
        dense_gradients = {key: g for key, g in dense_gradients.items() if key in trained}

        def after_step(gradients):
            if mixing:
                self.clear_pruned()
            if self._method.dynamic:
                self._update_if_due(gradients, trained)

        _once_for_all_replicas(after_step, dense_gradients)

    def _update_if_due(self, gradients, trained):
        batches = ops.cast(self.inner_optimizer._iterations, "int32")
        accumulated = self._accumulation_steps
        step = (batches + accumulated - 1) // accumulated - ops.cast(self._start, "int32")
        due, rate = self._schedule(step)
        due = ops.logical_and(due, batches % accumulated == 0)
        if self._method.gradient == "momentum":
            decay = self._method.momentum
            share = (1.0 - decay) / accumulated
            # Once per step; its other batches only add to it.
            if accumulated > 1:
                decay = ops.where(batches % accumulated == 1, decay, 1.0)
            for key, gradient in gradients.items():
                mean = self._gradients[key]
                mean.assign(decay * mean + share * ops.cast(gradient, "float32"))
            gradients = self._gradients
        elif self._gradients:
            near = due
            for i in range(self._gradient_steps):
                near = ops.logical_or(near, self._schedule(step + i)[0])
            dense = gradients

            def add():
                for key, gradient in dense.items():
                    gradient = ops.cast(gradient, "float32")
                    self._gradients[key].assign_add(gradient / self._batches_per_update())

            ops.cond(near, add, lambda: None)
            gradients = self._gradients
        ops.cond(due, lambda: self._update_topology(gradients, rate, trained), lambda: None)

    def _update_topology(self, gradients, rate, trained):
        kernels = [k for k in self._kernels if self._var_key(k.kernel) in trained]
        if self._competition == "kernel" and not self._method.dense_to_sparse:
            # A full mask stays full: what it drops is all that can grow.
            kernels = [k for k in kernels if k.name not in self._full]
        elif self._competition == "global":
            # And where it was asked to be full, it does not give to others.
            kernels = [k for k in kernels if k.name not in self._full or k.target.density != 1.0]
        if not kernels:
            return
        counts = {}
        if self._competition == "kernel":
            done = []
            for k in kernels:
                # One after another, so that temporaries of one kernel only are alive.
                with _after(done):
                    kept, dropped = self._kept(k, rate)
                    units = kept
                    if not self._method.dense_to_sparse:
                        score = self._growth_score(k, gradients)
                        units = ops.logical_or(kept, k.target.structure.grow(kept, score, dropped))
                    *counts[self._var_key(k.kernel)], last = self._exchange(k, units)
                done = [last]
        else:
            kept, dropped = zip(*(self._kept(k, rate) for k in kernels), strict=True)
            grown = top_k_masks(
                [self._growth_score(k, gradients) for k in kernels],
                sum(dropped),
                [ops.logical_not(units) for units in kept],
            )
            for k, old, new in zip(kernels, kept, grown, strict=True):
                units = ops.logical_or(old, new)
                *counts[self._var_key(k.kernel)], _ = self._exchange(k, units)
        exchanged, ones = [], []
        for i, key in enumerate(self._index):
            now = counts.get(key, (ops.zeros((), "int32"), self._mask_ones[i]))
            exchanged.append(now[0])
            ones.append(now[1])
        self._exchanged.assign(ops.stack(exchanged))
        if self._counts_vary:
            self._mask_ones.assign(ops.stack(ones))
        if self._method.gradient == "step":
            self._clear_gradients()
        self._updates.assign_add(1)

    def _kept(self, k, rate):
        """Returns the units of a kernel that stay active, and how many are dropped."""
        structure, axis = k.target.structure, k.axes.structured
        mask = structure.to_units(k.mask, axis, ops.any)
        score = structure.to_units(self._method.drop_score(k.kernel), axis, ops.sum)
        apart = self._method.drop_apart(k.kernel)
        if apart is not None:
            apart = [structure.to_units(part, axis, ops.any) for part in apart]
        if not self._method.dense_to_sparse:
            return drop_weakest(mask, score, rate, apart)
        # Pruned so far, as a share of what is to be pruned in the end.
        progress = ops.cast(rate, "float32") / self._final_sparsity
        units = k.size // structure.unit
        final = units - structure.ones(tuple(k.kernel.shape), k.target.density) // structure.unit
        pruned = ops.cast(ops.clip(progress, 0.0, 1.0) * final, "int32")
        pruned = ops.where(progress >= 1.0 - 1e-6, final, pruned)
        active = ops.sum(ops.cast(mask, "int32"))
        keep = ops.minimum(active, units - pruned)
        return top_k_masks([score], keep, [mask])[0], active - keep

    def _growth_score(self, k, gradients):
        gradient = gradients.get(self._var_key(k.kernel))
        if gradient is not None:
            # Those that come out of a loop, as a recurrent layer's, may not know their shape.
            gradient = ops.reshape(gradient, tuple(k.kernel.shape))
        score = self._method.growth_score(k.kernel, gradient, self._seed_generator)
        return k.target.structure.to_units(score, k.axes.structured, ops.sum)

    def _exchange(self, k, units):
        """Gives a kernel its new mask.

        Returns:
            How many weights are new, the mask's ones, and what is computed last.
        """
        new_mask = k.target.structure.to_weights(units, tuple(k.kernel.shape), k.axes.structured)
        # What was active and still is keeps its value and state; what was dropped and what
        # is new has neither. Both are read before the mask is overwritten.
        survived = ops.logical_and(k.mask, new_mask)
        grown = ops.logical_and(new_mask, ops.logical_not(k.mask))
        exchanged = ops.sum(ops.cast(grown, "int32"))
        ones = ops.sum(ops.cast(new_mask, "int32"))
        weights = _where(survived, k.kernel)
        if self._grow_init == "normal":
            mean_square = ops.sum(ops.square(ops.cast(weights, "float32"))) / ops.cast(
                ops.maximum(1, ops.sum(ops.cast(survived, "int32"))), "float32"
            )
            drawn = keras.random.normal(k.kernel.shape, dtype="float32", seed=self._seed_generator)
            drawn = ops.cast(drawn * ops.sqrt(mean_square), weights.dtype)
            weights = ops.where(grown, drawn, weights)
        k.kernel.assign(weights)
        done = [weights]
        # Other optimizers of the same kernel have state of it too.
        for optimizer in {self, *getattr(k.kernel.constraint, "optimizers", ())}:
            for variable in optimizer._slots(k.kernel):
                # One after another, as the kernels.
                with _after(done):
                    done = [_where(survived, variable)]
                    variable.assign(done[0])
        history = self._history[self._var_key(k.kernel)]
        with _after(done):
            ever_active = ops.convert_to_tensor(_EVER_ACTIVE, "uint8")
            bits = ops.where(new_mask, ops.bitwise_or(history, ever_active), history)
            history.assign(bits)
            k.mask.assign(new_mask)
        return exchanged, ones, bits

    @contextlib.contextmanager
    def _at_work(self):
        """Context in which kernels have their own constraints, not `SparseTrainingOnly`.

        And in which the wrapped optimizer does not sum the gradients over replicas once more.
        """
        work = self._work
        # The replicas are threads that enter and leave in turns.
        with work.lock:
            work.inside += 1
            if work.inside == 1:
                for k in self._kernels:
                    if isinstance(k.kernel.constraint, SparseTrainingOnly):
                        work.guards.append((k.kernel, k.kernel.constraint))
                        k.kernel.constraint = k.kernel.constraint.constraint
                if _in_a_replica():
                    self.inner_optimizer._all_reduce_sum_gradients = list
        try:
            yield
        finally:
            with work.lock:
                work.inside -= 1
                if work.inside == 0:
                    while work.guards:
                        kernel, guard = work.guards.pop()
                        kernel.constraint = guard
                    vars(self.inner_optimizer).pop("_all_reduce_sum_gradients", None)

    def _works_in_turn(self):
        """Whether `_in_turn` is possible: not in parts of a graph, and not on several devices."""
        if (
            keras.backend.backend() != "tensorflow"
            or self.inner_optimizer.gradient_accumulation_steps
        ):
            return False
        import tensorflow as tf

        return not (tf.executing_eagerly() or tf.distribute.has_strategy())

    def _updates_see_gradients_alone(self):
        """Whether nothing looks at a gradient before the update of its variable."""
        inner = self.inner_optimizer
        return not (inner.clipnorm or inner.global_clipnorm or inner.clipvalue)

    @contextlib.contextmanager
    def _in_turn(self, gradients, masks):
        """Context in which the wrapped optimizer works on one variable after the other.

        TensorFlow otherwise runs all it can as soon as it can: the temporaries of all variables
        would be there at once, beside copies of all weights that are written while the backward
        pass still reads them. Nothing that is computed differs.

        Args:
            gradients: What the optimizer is given; it begins when all are there.
            masks: `{key of a variable: mask}` by which the gradients are still to be masked.
        """
        import tensorflow as tf

        inner = self.inner_optimizer
        plain_update_step, plain_weight_decay = inner.update_step, inner._apply_weight_decay
        last = [g for g in gradients if isinstance(g, tf.Tensor)]

        @contextlib.contextmanager
        def turn_of(variable):
            with _after(last):
                yield
                last[:] = [_written(variable)]

        def update_step(gradient, variable, learning_rate):
            with turn_of(variable):
                gradient = _masked(masks.get(self._var_key(variable)), gradient)
                plain_update_step(gradient, variable, learning_rate)

        def apply_weight_decay(variables):
            for variable in variables:
                with turn_of(variable):
                    plain_weight_decay([variable])

        def update_averages(variables):
            # As Keras does it.
            momentum = inner.ema_momentum * ops.cast(ops.not_equal(inner.iterations, 0), "float32")
            averages = inner._model_variables_moving_average
            for variable, average in zip(variables, averages, strict=True):
                if average is not None:
                    with turn_of(average):
                        kept = ops.cast(momentum, variable.dtype)
                        average.assign(kept * average + (1 - kept) * variable)

        replaced = {"update_step": update_step, "_apply_weight_decay": apply_weight_decay}
        if inner.use_ema:
            replaced["_update_model_variables_moving_average"] = update_averages
        vars(inner).update(replaced)
        try:
            yield
        finally:
            for name in replaced:
                vars(inner).pop(name, None)

    def _slots(self, kernel):
        """Yields the wrapped optimizer's per-weight state of a kernel, its EMA included."""
        inner = self.inner_optimizer
        index = inner._get_variable_index(kernel)
        size = len(inner._trainable_variables)
        scratch = ["_variables", "_trainable_variables"]
        for name, names in SCRATCH.items():
            scratch += names if _is_one_of(inner, (name,)) else ()
        for name, value in vars(inner).items():
            # Keras keeps such state in lists parallel to the trainable variables.
            if name in scratch or not isinstance(value, list):
                continue
            if len(value) == size and getattr(value[index], "shape", None) == kernel.shape:
                yield value[index]

    def attached_model(self):
        """Returns the attached `keras.Model`, or None."""
        # No property, for saving looks into all of these for what else to save.
        return self._model()

    @property
    def kernels(self):
        """Tuple of the attached `MaskedKernel`s."""
        return self._kernels

    @property
    def topology_updates(self):
        """Number of topology updates so far."""
        return int(ops.convert_to_numpy(self._updates))

    @property
    def steps(self):
        """Number of optimizer steps so far."""
        return int(ops.convert_to_numpy(self.iterations))

    @property
    def method(self):
        """The `SparsityMethod`."""
        return self._method

    def exchanged(self, kernels=None):
        """Returns `{kernel name: weights exchanged by the last update}`.

        Args:
            kernels: As in `mask_ones`.
        """
        return self._by_kernel("_exchanged", kernels)

    def history(self, kernel):
        """Returns `(active at the start, ever active)`, boolean arrays of a kernel's shape.

        The start is when this optimizer first met the masks. None for an unknown kernel.
        """
        variable = self._history.get(self._var_key(kernel)) if self.built else None
        if variable is None:
            return None
        bits = ops.convert_to_numpy(variable)
        return bits & _ACTIVE_AT_START > 0, bits & _EVER_ACTIVE > 0

    def mask_ones(self, kernels=None):
        """Returns `{kernel name: number of ones that its mask must have}`.

        Args:
            kernels: `MaskedKernel`s to answer for, where this optimizer knows them; the
                attached ones by default.
        """
        counts = self._by_kernel("_mask_ones", kernels)
        return {name: ones for name, ones in counts.items() if ones >= 0}

    def _by_kernel(self, name, kernels):
        if not self.built:
            return {}
        counts = ops.convert_to_numpy(getattr(self, name))
        return {
            k.name: int(counts[self._index[key]])
            for k in (self._kernels if kernels is None else kernels)
            if (key := self._var_key(k.kernel)) in self._index
        }

    def state_of(self, kernel):
        """Lists the wrapped optimizer's per-weight variables of a kernel; none if unknown."""
        if not self.built or self._var_key(kernel) not in self._index:
            return []
        return list(self._slots(kernel))

    # Keras's SwapEMAWeights looks one wrapper deep, and finds this one below loss scaling.
    @property
    def use_ema(self):
        # Not while this wrapper is built: it keeps no averages of its own.
        return self.built and self.inner_optimizer.use_ema

    @use_ema.setter
    def use_ema(self, value):
        pass

    @property
    def _model_variables_moving_average(self):
        return self.inner_optimizer._model_variables_moving_average

    @property
    def variables(self):
        return self._variables + self.inner_optimizer.variables

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    def save_own_variables(self, store):
        # The wrapped optimizer saves its own, under `inner_optimizer`.
        for i, variable in enumerate(self._own_variables()):
            store[str(i)] = variable.numpy()

    def load_own_variables(self, store):
        if len(store.keys()) != len(self._variables):
            # As Keras does: without state the optimizer starts anew, and so does its record.
            warnings.warn(
                f"Skipping variable loading for optimizer {self.name!r}: the file holds "
                f"{len(store.keys())} of its {len(self._variables)} variables.",
                stacklevel=2,
            )
            if self.built:
                self._mask_ones.assign(ops.full_like(self._mask_ones, -1))
            return
        for i, variable in enumerate(self._own_variables()):
            variable.assign(store[str(i)])

    def _own_variables(self):
        """Lists the variables of its own in an order that does not depend on when they came."""
        kept = [
            variables[key]
            for variables in (self._history, self._gradients)
            for key in self._index
            if key in variables
        ]
        places = {id(v) for v in kept}
        return [v for v in self._variables if id(v) not in places] + kept

    def get_config(self):
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "method": keras.saving.serialize_keras_object(self._method),
            "schedule": self._schedule_config(),
            "seed": self._seed,
            "competition": self._competition,
            "grow_init": self._grow_init,
            "gradient_steps": self._gradient_steps,
        }

    def _schedule_config(self):
        if self._schedule is None:
            return None
        from keras_sparse_dm.sparsity.schedules import serialize_schedule

        return serialize_schedule(self._schedule)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for key in ("inner_optimizer", "method"):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects=custom_objects
            )
        if config["schedule"] is not None:
            from keras_sparse_dm.sparsity.schedules import deserialize_schedule

            config["schedule"] = deserialize_schedule(config["schedule"])
        return cls(**config)


def check_options(method, schedule, competition="kernel", grow_init="zeros", gradient_steps=1):
    """Raises a ValueError for options of sparse training that do not exist or go together.

    Args:
        method: A `SparsityMethod`.
        schedule, competition, grow_init, gradient_steps: As in `SparseOptimizer`.
    """
    if schedule is None and method.dynamic:
        raise ValueError(f"`schedule` must be given for method {method.name!r}.")
    for argument, value, allowed in (
        ("competition", competition, COMPETITION),
        ("grow_init", grow_init, GROW_INIT),
    ):
        if value not in allowed:
            raise ValueError(
                f"`{argument}` must be one of {', '.join(map(repr, allowed))}; received {value!r}."
            )
    whole = isinstance(gradient_steps, numbers.Integral) and not isinstance(gradient_steps, bool)
    if not whole or gradient_steps < 1:
        raise ValueError(
            f"`gradient_steps` must be a whole number, 1 or more; received {gradient_steps!r}."
        )
    interval = getattr(schedule, "frequency", getattr(schedule, "update_every", None))
    if interval is not None and interval < gradient_steps > 1:
        raise ValueError(
            f"`gradient_steps` must not be more than the {interval} steps between two updates; "
            f"received {gradient_steps}."
        )
    if method.dense_to_sparse and competition == "global":
        raise ValueError(
            f"`competition` is about growth, and method {method.name!r} grows nothing; "
            "received 'global'."
        )


class _Work:
    """What `SparseOptimizer` has set aside while the wrapped optimizer works.

    An object of its own, for Keras would take kernels in a list of the optimizer for its state.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.inside = 0
        self.guards = []


def _where(mask, values):
    # A scalar zero: an array of zeros would cost the memory of the kernel.
    return ops.where(mask, values, ops.zeros((), values.dtype))


def _masked(mask, gradient):
    # `where`, not a product: a pruned weight stays zero even where its gradient is NaN.
    return gradient if mask is None or gradient is None else _where(mask, gradient)


def _written(variable):
    """An empty tensor that is there once all writes to a TensorFlow variable so far are done."""
    import tensorflow as tf

    if isinstance(variable, keras.Variable):
        variable = variable.value
    if not variable.shape.rank:
        return variable.read_value()
    # No read of the whole: it would make the next write copy the variable.
    return tf.raw_ops.ResourceGather(
        resource=variable.handle, indices=tf.zeros([0], "int32"), dtype=variable.dtype
    )


def _is_one_of(optimizer, names):
    return bool({cls.__name__ for cls in type(optimizer).__mro__} & set(names))


def _in_a_replica():
    """Whether this is one of several replicas of a `tf.distribute` strategy."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context is not None and context.num_replicas_in_sync > 1


def _sum_over_replicas(gradients):
    if not _in_a_replica():
        return gradients
    import tensorflow as tf

    given = [g for g in gradients if g is not None]
    context = tf.distribute.get_replica_context()
    summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, given))
    return [None if g is None else next(summed) for g in gradients]


def _once_for_all_replicas(function, tensors):
    """Calls `function(tensors)`, with those of one replica on behalf of all where there are more.

    What it assigns to a variable is assigned to all copies of it.
    """
    if not _in_a_replica():
        return function(tensors)
    import tensorflow as tf

    def merged(strategy, tensors):
        function({key: strategy.experimental_local_results(t)[0] for key, t in tensors.items()})

    return tf.distribute.get_replica_context().merge_call(merged, args=(tensors,))


def _after(tensors):
    """Context whose operations wait for tensors, where the backend runs them as it likes."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.control_dependencies(tensors)
