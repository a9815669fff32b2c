"""State of sparse training besides kernels, masks and the wrapped optimizer's state."""

import warnings
from dataclasses import dataclass, field

import keras
import numpy as np
from keras import ops

from keras_sparse_dm._keras import track, untrack
from keras_sparse_dm.layers.kernel_mask import strategy_of
from keras_sparse_dm.layers.locations import match_paths, unique_name
from keras_sparse_dm.sparsity.topology_update import ACTIVE_AT_START, EVER_ACTIVE

# Number of variables before those of single kernels in files of version 0.1: iteration, learning
# rate, seed, topology updates, start, mask ones, exchanged.
_NUMBERED = 7


@dataclass(eq=False)
class KernelState:
    """State of sparse training of one kernel.

    Attributes:
        history: Bits of each weight, uint8; see `topology_update`.
        gradient: Sum or mean of dense gradients, float32, if the options need one.
        grown_at: Optimizer step at which each weight grew, int32, 0 for the start; only with
            `grow_warmup`.
        slots: `{name: variable}` of the wrapped optimizer's state of the kernel; None until known.
    """

    history: keras.Variable | None = None
    gradient: keras.Variable | None = None
    grown_at: keras.Variable | None = None
    slots: dict | None = None

    def variables(self):
        """Return `{name: variable}` of the existing variables, without `slots`."""
        names = ("history", "gradient", "grown_at")
        return {name: v for name in names if (v := getattr(self, name)) is not None}


@dataclass(eq=False)
class SparsityState:
    """State of sparse training of one model.

    Attributes:
        updates: Number of topology updates so far.
        start: Optimizer step at which the masks were drawn; schedules count from it.
        mask_ones: Number of ones of each trained variable's mask; -1 without a mask.
        exchanged: Number of weights of each trained variable that the last update grew.
        names: Name of each trained variable, its path made unique.
        index: `{key of a variable: index}` into the three attributes above.
        kernels: `{key of a kernel: KernelState}`.
    """

    updates: keras.Variable
    start: keras.Variable
    mask_ones: keras.Variable
    exchanged: keras.Variable
    names: list
    index: dict
    kernels: dict = field(default_factory=dict)

    @classmethod
    def create(cls, optimizer, variables, keys):
        """Create the state of an optimizer that is being built.

        Args:
            optimizer: The `SparseOptimizer`, which tracks the variables.
            variables: The variables that it trains.
            keys: Their keys.
        """
        names = []
        for variable in variables:
            # Variables of layers with the same name have the same path.
            names.append(unique_name(variable.path, names))
        index = {key: i for i, key in enumerate(keys)}
        shape = (len(names),)
        no_mask = keras.initializers.Constant(-1)
        add = optimizer.add_variable
        return cls(
            add((), dtype="int", name="topology_updates"),
            add((), dtype="int", name="start"),
            add(shape, initializer=no_mask, dtype="int32", name="mask_ones"),
            add(shape, dtype="int32", name="exchanged"),
            names,
            index,
        )

    def add_kernels(self, optimizer, kernels, options):
        """Add missing state of the kernels, and remove state that the options do not need.

        Args:
            optimizer: The `SparseOptimizer`.
            kernels: `{key: kernel variable}`.
            options: `SparsityOptions`.
        """
        wanted = {
            "history": ("uint8", True),
            "gradient": ("float32", options.keeps_gradients(optimizer.accumulation_steps)),
            "grown_at": ("int32", options.grow_warmup),
        }
        for key in kernels:
            self.kernels.setdefault(key, KernelState())
        for what, (dtype, needed) in wanted.items():
            for key, kernel in kernels.items():
                present = getattr(self.kernels[key], what)
                if needed and present is None:
                    name = f"{self.names[self.index[key]].replace('/', '_')}_{what}"
                    with strategy_of(kernel):
                        variable = optimizer.add_variable(kernel.shape, dtype=dtype, name=name)
                    setattr(self.kernels[key], what, variable)
                elif not needed and present is not None:
                    untrack(optimizer, present)
                    setattr(self.kernels[key], what, None)

    def track_masks(self, optimizer, masks):
        """Make the optimizer track the masks on JAX, where it can assign only tracked variables."""
        if keras.backend.backend() != "jax":
            return
        tracked = {id(v) for v in optimizer.variables}
        for mask in masks:
            if id(mask) not in tracked:
                track(optimizer, mask)

    def begin(self, key, mask):
        """Start the history of a kernel."""
        bits = ops.where(ops.convert_to_tensor(mask), ACTIVE_AT_START + EVER_ACTIVE, 0)
        self.kernels[key].history.assign(ops.cast(bits, "uint8"))

    def clear_gradients(self):
        """Set accumulated gradients to zero."""
        for state in self.kernels.values():
            if state.gradient is not None:
                state.gradient.assign(ops.zeros(state.gradient.shape, "float32"))

    def counts(self, which):
        """Return `mask_ones` or `exchanged` as `{key: number}`."""
        numbers = ops.convert_to_numpy(getattr(self, which))
        return {key: int(numbers[i]) for key, i in self.index.items()}

    def set_mask_ones(self, ones):
        """Set the numbers of ones of some masks, from `{key: number or scalar}`."""
        self.mask_ones.assign(self._replaced("mask_ones", ones))

    def set_exchanged(self, numbers):
        """Set the numbers of exchanged weights, 0 for kernels without one."""
        zeros = dict.fromkeys(self.index, ops.zeros((), "int32"))
        self.exchanged.assign(self._replaced("exchanged", zeros | numbers))

    def _replaced(self, which, numbers):
        before = getattr(self, which)
        return ops.stack(
            [ops.cast(numbers.get(key, before[i]), "int32") for key, i in self.index.items()]
        )

    def save(self, store):
        """Save the state, each kernel's under the path of its variable."""
        store["topology_updates"] = ops.convert_to_numpy(self.updates)
        store["start"] = ops.convert_to_numpy(self.start)
        ones, exchanged = self.counts("mask_ones"), self.counts("exchanged")
        for key, state in self.kernels.items():
            path = _stored(self.names[self.index[key]])
            store[f"{path}:place"] = np.array(self.index[key], "int32")
            store[f"{path}:mask_ones"] = np.array(ones[key], "int32")
            store[f"{path}:exchanged"] = np.array(exchanged[key], "int32")
            for what, variable in state.variables().items():
                # Pass the variable, not a copy, so that only one array is copied at a time.
                store[f"{path}:{what}"] = variable

    def load(self, store):
        """Load state saved by `save` or by version 0.1; warn and skip it if it does not fit."""
        stored = {key: store[key] for key in store.keys()}
        if "topology_updates" not in stored:
            self._load_numbered(stored)
            return
        paths = {key: self.names[self.index[key]] for key in self.kernels}
        found = [_read(k).removesuffix(":history") for k in stored if k.endswith(":history")]
        partners = match_paths(found, list(paths.values())) or self._by_place(found, stored)
        if partners is None:
            self._forget(f"its kernels are {', '.join(found) or 'none'}")
            return
        self.updates.assign(stored["topology_updates"])
        self.start.assign(stored["start"])
        ones, exchanged = {}, {}
        for key, path in paths.items():
            path = _stored(partners[path])
            ones[key] = int(np.asarray(stored[f"{path}:mask_ones"]))
            exchanged[key] = int(np.asarray(stored[f"{path}:exchanged"]))
            for what, variable in self.kernels[key].variables().items():
                if f"{path}:{what}" in stored:
                    variable.assign(stored[f"{path}:{what}"])
        self.set_mask_ones(ones)
        self.set_exchanged(exchanged)

    def _by_place(self, found, stored):
        """Match paths by the order of the variables, as Keras does for the wrapped optimizer.

        Returns:
            `{path here: path in the file}`, or None if numbers or shapes differ.
        """
        found = sorted(found, key=lambda path: int(np.asarray(stored[f"{_stored(path)}:place"])))
        keys = sorted(self.kernels, key=self.index.get)
        shapes = [tuple(stored[f"{_stored(path)}:history"].shape) for path in found]
        if shapes != [tuple(self.kernels[key].history.shape) for key in keys]:
            return None
        here = [self.names[self.index[key]] for key in keys]
        return dict(zip(here, found, strict=True))

    def _load_numbered(self, stored):
        """Load state of version 0.1, whose variables have numbers instead of names."""
        states = [self.kernels[key] for key in self.index if key in self.kernels]
        arrays = [state.history for state in states]
        arrays += [state.gradient for state in states if state.gradient is not None]
        if len(stored) != _NUMBERED + len(arrays):
            self._forget(f"it has {len(stored)} variables, not {_NUMBERED + len(arrays)}")
            return
        values = [stored[str(i)] for i in range(len(stored))]
        for variable, value in zip(
            [self.updates, self.start, self.mask_ones, self.exchanged, *arrays],
            values[3:],
            strict=True,
        ):
            variable.assign(value)

    def _forget(self, why):
        warnings.warn(
            f"The state of sparse training in the file does not fit and is skipped: {why}. It "
            "starts from zero.",
            stacklevel=2,
        )
        self.mask_ones.assign(ops.full_like(self.mask_ones, -1))


def _stored(path):
    # A slash would start a group in Keras's files.
    return path.replace("/", "|")


def _read(path):
    return path.replace("|", "/")
