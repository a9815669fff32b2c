"""`SparseOptimizer`: the one place where training becomes sparse training."""

import contextlib
import warnings

import keras
from keras import ops

from keras_sparse_dm.layers.masked import SparseTrainingOnly
from keras_sparse_dm.seeds import seed_generator
from keras_sparse_dm.sparsity.masking import masked_kernels
from keras_sparse_dm.sparsity.methods import get_method
from keras_sparse_dm.sparsity.topology import update_mask

# Muon mixes a kernel's entries, Ftrl divides by state that is zero where weights are pruned,
# Adafactor's state is not zero there, and MultiOptimizer keeps state where it is not found.
UNSUPPORTED = ("Adafactor", "Ftrl", "Muon", "MultiOptimizer")


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class SparseOptimizer(keras.optimizers.Optimizer):
    """Wraps an optimizer so that it trains a sparse model sparsely.

    Each step masks the gradients before the wrapped optimizer sees them, so that moments,
    weight decay and gradient clipping never see a pruned weight. On steps that the schedule
    calls due, the topology is updated after the optimizer (paper, Algorithm 2), with the
    unmasked gradient of that same step, inside the same compiled function.

    `DynamicSparsity` installs it for `fit`. A custom training loop uses it directly:

    ```python
    schedule = ConstantPruneRate(prune_rate=0.05, update_every=800)
    optimizer = SparseOptimizer(keras.optimizers.AdamW(1e-3), "rigl", schedule, seed=0)
    optimizer.attach(model)
    ...
    optimizer.apply(gradients, model.trainable_variables)
    ```

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, built or not.
        method: `"rigl"`, `"magran"`, `"static"` or a `SparsityMethod`.
        schedule: A `PruningSchedule` of tensorflow_model_optimization that says when the
            topology changes and by what share; None with the static method.
        seed: Integer seed of the methods that draw; None for a random one.
        name: Optional name.

    Raises:
        ValueError: for an unknown method, a dynamic method without a schedule, or an
            optimizer whose update is not per weight (Adafactor, Ftrl, Muon, MultiOptimizer).
    """

    def __init__(self, inner_optimizer, method="rigl", schedule=None, seed=None, name=None):
        if getattr(inner_optimizer, "inner_optimizer", None) is not None:
            raise ValueError(
                f"`inner_optimizer` must not wrap another; received {inner_optimizer!r}. Put "
                "loss scaling outside: LossScaleOptimizer(SparseOptimizer(...))."
            )
        if {cls.__name__ for cls in type(inner_optimizer).__mro__} & set(UNSUPPORTED):
            raise ValueError(
                f"`inner_optimizer` must update each weight from its own gradient and state; "
                f"{type(inner_optimizer).__name__} does not, and would let pruned weights change. "
                "Use AdamW, Adam, SGD, RMSprop, Lion or another."
            )
        super().__init__(learning_rate=0.0, name=name or "sparse_optimizer")
        self.inner_optimizer = inner_optimizer
        self._method = get_method(method)
        self._schedule = schedule
        if schedule is None and self._method.name != "static":
            raise ValueError(f"`schedule` must be given for method {self._method.name!r}.")
        self._seed = seed
        self._seed_generator = seed_generator(seed, "growth")
        self._track_variable(self._seed_generator.state)
        self._updates = self.add_variable((), dtype="int", name="topology_updates")
        self._kernels = ()
        self._index = {}

    def configure(self, method, schedule):
        """Changes the method and schedule; returns whether they differ from before."""
        before = self.get_config()
        self._method, self._schedule = get_method(method), schedule
        after = self.get_config()
        return any(before[key] != after[key] for key in ("method", "schedule"))

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

    def attach(self, model, masks_changed=False):
        """Tells the optimizer which variables of a built model have masks.

        Args:
            model: The built `keras.Model` whose trainable variables this optimizer trains.
            masks_changed: True where the masks were drawn anew since the optimizer's state
                was made; the state of pruned weights is then cleared.

        Raises:
            ValueError: if the model has no trainable sparse kernel or nothing in it is pruned,
                or the optimizer was built for other variables, or a mask does not have as
                many ones as when this optimizer first met it.
        """
        kernels = [k for k in masked_kernels(model) if k.kernel.trainable]
        if not kernels:
            raise ValueError(
                f"Model {model.name!r} has no trainable sparse kernel: build it from "
                "`keras_sparse_dm.layers` and call `keras_sparse_dm.sparsify(model, sparsity)`."
            )
        if not masks_changed and all(bool(ops.all(k.mask)) for k in kernels):
            raise ValueError(
                f"Nothing is pruned in model {model.name!r}: call "
                "`keras_sparse_dm.sparsify(model, sparsity)` with a sparsity above 0 first."
            )
        fresh = not self.built
        if fresh:
            self.build(model.trainable_variables)
        unknown = [k.name for k in kernels if self._var_key(k.kernel) not in self._index]
        if unknown:
            raise ValueError(
                "The optimizer was built for other variables and does not train "
                f"{', '.join(unknown)}: compile the model again with a new optimizer."
            )
        self._kernels = tuple(kernels)
        ones = {self._var_key(k.kernel): int(ops.sum(ops.cast(k.mask, "int32"))) for k in kernels}
        now = [ones.get(key, -1) for key in self._index]
        before = ops.convert_to_numpy(self._mask_ones).tolist()
        if fresh or masks_changed:
            before = [-1] * len(now)
        # A kernel that is frozen, or trains for the first time, is in one record only.
        if any(n != b for n, b in zip(now, before, strict=True) if n >= 0 and b >= 0):
            raise ValueError(
                "The masks of the model do not have as many ones as those that this optimizer's "
                "state belongs to. Call `sparsify` after loading, or compile again."
            )
        self._mask_ones.assign([n if n >= 0 else b for n, b in zip(now, before, strict=True)])
        self.clear_pruned()

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
        pairs = list(zip(trainable_variables, grads, strict=True))
        dense_gradients = {self._var_key(v): g for v, g in pairs if g is not None}
        missing = [k.name for k in self._kernels if self._var_key(k.kernel) not in dense_gradients]
        if missing:
            raise ValueError(f"No gradient for the sparse kernels {', '.join(missing)}.")
        masks = {self._var_key(k.kernel): k.mask for k in self._kernels}
        # `where`, not a product: a pruned weight stays zero even where its gradient is NaN.
        masked = [
            _where(masks[self._var_key(v)], g) if self._var_key(v) in masks else g for v, g in pairs
        ]
        with self._own_constraints():
            self.inner_optimizer.apply(masked, trainable_variables)
        if self._method.name == "static":
            return
        due, prune_rate = self._schedule(ops.cast(self.inner_optimizer._iterations, "int32"))
        ops.cond(due, lambda: self._update_topology(dense_gradients, prune_rate), lambda: None)

    def _update_topology(self, dense_gradients, prune_rate):
        exchanged = {}
        for k in self._kernels:
            key = self._var_key(k.kernel)
            new_mask = update_mask(
                k.mask,
                self._method.drop_score(k.kernel),
                self._method.growth_score(k.kernel, dense_gradients[key], self._seed_generator),
                prune_rate,
            )
            # What was active and still is keeps its value and state; what was dropped and
            # what is new has neither. Both are read before the mask is overwritten.
            survived = ops.logical_and(k.mask, new_mask)
            grown = ops.logical_and(new_mask, ops.logical_not(k.mask))
            exchanged[self._index[key]] = ops.sum(ops.cast(grown, "int32"))
            for variable in (k.kernel, *self._slots(k.kernel)):
                variable.assign(_where(survived, variable))
            k.mask.assign(new_mask)
        zero = ops.zeros((), "int32")
        self._exchanged.assign(
            ops.stack([exchanged.get(i, zero) for i in range(len(self._trainable_variables))])
        )
        self._updates.assign_add(1)

    @contextlib.contextmanager
    def _own_constraints(self):
        """Context in which kernels have their own constraints, not `SparseTrainingOnly`."""
        guards = [(k.kernel, k.kernel.constraint) for k in self._kernels]
        for kernel, guard in guards:
            if isinstance(guard, SparseTrainingOnly):
                kernel.constraint = guard.constraint
        try:
            yield
        finally:
            for kernel, guard in guards:
                kernel.constraint = guard

    def _slots(self, kernel):
        """Yields the wrapped optimizer's per-weight state of a kernel, its EMA included."""
        inner = self.inner_optimizer
        index = inner._get_variable_index(kernel)
        size = len(inner._trainable_variables)
        for name, value in vars(inner).items():
            # Keras keeps such state in lists parallel to the trainable variables.
            if name in ("_variables", "_trainable_variables") or not isinstance(value, list):
                continue
            if len(value) == size and getattr(value[index], "shape", None) == kernel.shape:
                yield value[index]

    @property
    def kernels(self):
        """Tuple of the attached `MaskedKernel`s."""
        return self._kernels

    @property
    def topology_updates(self):
        """Number of topology updates so far."""
        return int(self._updates)

    @property
    def method(self):
        """The `SparsityMethod`."""
        return self._method

    def exchanged(self):
        """Returns `{kernel name: weights exchanged by the last update}`."""
        counts = ops.convert_to_numpy(self._exchanged)
        return {k.name: int(counts[self._index[self._var_key(k.kernel)]]) for k in self._kernels}

    def mask_ones(self, kernels=None):
        """Returns `{kernel name: number of ones that its mask must have}`.

        Args:
            kernels: `MaskedKernel`s to answer for, where this optimizer knows them; the
                attached ones by default.
        """
        if not self.built:
            return {}
        counts = ops.convert_to_numpy(self._mask_ones)
        answers = {
            k.name: int(counts[self._index[key]])
            for k in (self._kernels if kernels is None else kernels)
            if (key := self._var_key(k.kernel)) in self._index
        }
        return {name: ones for name, ones in answers.items() if ones >= 0}

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

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    def save_own_variables(self, store):
        # The wrapped optimizer saves its own, under `inner_optimizer`.
        for i, variable in enumerate(self._variables):
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
        for i, variable in enumerate(self._variables):
            variable.assign(store[str(i)])

    def get_config(self):
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "method": keras.saving.serialize_keras_object(self._method),
            "schedule": self._schedule_config(),
            "seed": self._seed,
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


def _where(mask, values):
    return ops.where(mask, values, ops.zeros_like(values))
