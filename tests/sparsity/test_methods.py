"""Updates of each method, compared with their definition in NumPy."""

import math
import re

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras.ops import convert_to_numpy as numpy
from tensorflow_model_optimization.sparsity.keras import ConstantSparsity, PolynomialDecay

import keras_sparse_dm as ksd
from keras_sparse_dm.seeds import seed_generator
from keras_sparse_dm.sparsity import (
    NM,
    SET,
    SNFS,
    Blocks,
    ConstantPruneRate,
    RigL,
    SparseOptimizer,
    SparsityMethod,
    check_invariant,
    masked_kernels,
    methods,
    sparse_optimizer,
)

LEARNING_RATE = 0.05


def sparse_model(sparsity=0.5, distribution="uniform", **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Conv1D(8, 3, name="conv"),
            layers.Dense(12, name="dense"),
            layers.Dense(3, name="last"),
        ],
        name="m",
    )
    ksd.sparsify(model, sparsity, distribution, seed=1, exclude=["last"], **arguments)
    return model


def sparse_kernels(model):
    return [k for k in masked_kernels(model) if "last" not in k.name]


def run(model, gradients, optimizer):
    """Apply gradients; return `[(weights, masks)]` of the sparse kernels after each step."""
    trail = []
    for step in gradients:
        optimizer.apply([ops.convert_to_tensor(g) for g in step], model.trainable_variables)
        kernels = sparse_kernels(model)
        trail.append(([numpy(k.kernel) for k in kernels], [numpy(k.mask) for k in kernels]))
    return trail


def random_gradients(model, steps, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [v.shape for v in model.trainable_variables]
    return [[rng.normal(size=s).astype("float32") for s in shapes] for _ in range(steps)]


class Definition:
    """Sparse training by SGD as in the papers, with sorts, in NumPy.

    `growth(step, i, weights)` is the growth score of kernel `i`; `rates` maps steps to prune rates.
    """

    def __init__(self, model, rates, growth, parts=None, size=None, nm=None, together=False):
        kernels = sparse_kernels(model)
        places = {id(v): i for i, v in enumerate(model.trainable_variables)}
        self.places = [places[id(k.kernel)] for k in kernels]
        self.weights = [numpy(k.kernel) for k in kernels]
        self.masks = [numpy(k.mask) for k in kernels]
        self.rates, self.growth, self.parts = rates, growth, parts
        self.size, self.nm, self.together = size, nm, together

    def units(self, values, reduce):
        if self.nm:
            return self.split(values, self.nm[1])
        return reduce(self.split(values, self.size), axis=-1) if self.size else values

    @staticmethod
    def split(values, size):
        """Split a kernel into groups along its input axis, the second to last."""
        values = np.swapaxes(values, -1, -2)
        return values.reshape(*values.shape[:-1], -1, size)

    def whole(self, units, shape):
        if not (self.nm or self.size):
            return units
        if self.size:
            units = np.repeat(units[..., None], self.size, -1)
        return np.swapaxes(units.reshape(*shape[:-2], shape[-1], shape[-2]), -1, -2)

    @staticmethod
    def largest(score, count, eligible):
        chosen = np.zeros(score.size, bool)
        candidates = np.flatnonzero(eligible)
        order = np.argsort(-score.ravel()[candidates], kind="stable")
        chosen[candidates[order[:count]]] = True
        return chosen.reshape(score.shape)

    def keep(self, i, rate):
        mask = self.units(self.masks[i], np.any)
        score = self.units(np.abs(self.weights[i]), np.sum)
        parts = [np.ones_like(mask)]
        if self.parts:
            parts = [self.units(part, np.any) for part in self.parts(self.weights[i])]
        kept, dropped = np.zeros_like(mask), 0
        for part in parts:
            active = int((mask & part).sum())
            drop = int(np.float32(active) * np.float32(rate))
            kept |= self.largest(score, active - drop, mask & part)
            dropped += drop
        return kept, dropped

    def step(self, step, gradients):
        for i, place in enumerate(self.places):
            self.weights[i] = self.weights[i] - LEARNING_RATE * gradients[place] * self.masks[i]
        if step not in self.rates:
            return
        kept, dropped = zip(
            *(self.keep(i, self.rates[step]) for i in range(len(self.masks))), strict=True
        )
        scores = [self.units(self.growth(step, i, w), np.sum) for i, w in enumerate(self.weights)]
        if self.together:
            flat = self.largest(
                np.concatenate([s.ravel() for s in scores]),
                sum(dropped),
                np.concatenate([~k.ravel() for k in kept]),
            )
            ends = np.cumsum([s.size for s in scores])[:-1]
            grown = [g.reshape(s.shape) for g, s in zip(np.split(flat, ends), scores, strict=True)]
        elif self.nm:
            grown = []
            for score, keep in zip(scores, kept, strict=True):
                new = np.zeros_like(keep)
                for group in np.ndindex(keep.shape[:-1]):
                    lost = self.nm[0] - int(keep[group].sum())
                    new[group] = self.largest(score[group], lost, ~keep[group])
                grown.append(new)
        else:
            grown = [self.largest(s, d, ~k) for s, d, k in zip(scores, dropped, kept, strict=True)]
        for i, (keep, grow) in enumerate(zip(kept, grown, strict=True)):
            mask = self.whole(keep | grow, self.masks[i].shape)
            self.weights[i] = np.where(mask & self.masks[i], self.weights[i], np.float32(0))
            self.masks[i] = mask


def compare(model, optimizer, definition, gradients):
    """Run both and compare the masks at every step; return the masks of every step."""
    gradients = list(gradients)
    trail = run(model, gradients, optimizer)
    for step, (gradient, (weights, masks)) in enumerate(zip(gradients, trail, strict=True), 1):
        definition.step(step, gradient)
        for i in range(len(masks)):
            np.testing.assert_array_equal(masks[i], definition.masks[i], err_msg=f"step {step}")
            np.testing.assert_allclose(
                weights[i], definition.weights[i], rtol=1e-5, atol=1e-6, err_msg=f"step {step}"
            )
    return [masks for _, masks in trail]


def of_step(definition_gradients, places):
    return lambda step, i, weights: np.abs(definition_gradients[step - 1][places[i]])


def places_of(model):
    return Definition(model, {}, None).places


STRUCTURES = {"single": {}, "blocks": {"structure": Blocks(4)}, "2:4": {"structure": NM(2, 4)}}
SHAPED = {"single": {}, "blocks": {"size": 4}, "2:4": {"nm": (2, 4)}}


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    "method, structure",
    [
        (method, structure)
        for method in ("rigl", "magran", "set", "snfs")
        for structure in STRUCTURES
        if (method, structure) != ("set", "blocks")
    ],
)
def test_updates_are_those_of_the_definition(method, structure):
    model = sparse_model(**STRUCTURES[structure])
    gradients = random_gradients(model, 9)
    places = places_of(model)
    generator = seed_generator(5, "growth")
    momentum = {}

    def snfs(step, i, weights):
        mean = momentum.get((step, i), 0.0)
        for earlier in range(step):
            mean = 0.9 * mean + 0.1 * gradients[earlier][places[i]].astype("float64")
        return np.abs(mean).astype("float32")

    growth = {
        "rigl": of_step(gradients, places),
        "snfs": snfs,
        "magran": lambda step, i, w: numpy(keras.random.uniform(w.shape, seed=generator)),
    }
    growth["set"] = growth["magran"]
    definition = Definition(
        model,
        {3: 0.4, 6: 0.4, 9: 0.4},
        growth[method],
        parts=(lambda w: [w > 0, w <= 0]) if method == "set" else None,
        **SHAPED[structure],
    )
    optimizer = sparse_optimizer(
        model, keras.optimizers.SGD(LEARNING_RATE), method, update_every=3, prune_rate=0.4, seed=5
    )
    masks = compare(model, optimizer, definition, gradients)
    assert optimizer.topology_updates == 3
    for before, after in ((1, 2), (4, 5), (7, 8)):
        assert all(np.any(a != b) for a, b in zip(masks[before], masks[after], strict=True))


def test_set_drops_of_each_sign_the_same_share():
    """All negative weights are stronger, so magnitude alone would drop only positive ones."""
    model = sparse_model()
    for k in sparse_kernels(model):
        w = numpy(k.kernel)
        k.kernel.assign(np.where(w < 0, w * 100, w))
    before = {k.name: (numpy(k.kernel), numpy(k.mask)) for k in sparse_kernels(model)}
    optimizer = sparse_optimizer(
        model, keras.optimizers.SGD(0.0), "set", update_every=1, prune_rate=0.3, seed=0
    )
    run(model, random_gradients(model, 1), optimizer)
    for k in sparse_kernels(model):
        weights, mask = before[k.name]
        gone = mask & (numpy(k.kernel) == 0)
        for part in (mask & (weights > 0), mask & (weights < 0)):
            most = int(np.float32(part.sum()) * np.float32(0.3))
            # A dropped weight may grow again in its place, and then keeps its value.
            assert 0 < (gone & part).sum() <= most
            weakest = np.sort(np.abs(weights[part]))[:most]
            assert np.isin(np.abs(weights[gone & part]), weakest).all()


@pytest.mark.cases(1)
@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("method", ["rigl", "snfs"])
def test_global_competition_moves_weights_between_kernels(method, size):
    model = sparse_model(structure=Blocks(size) if size else None)
    gradients = random_gradients(model, 6)
    places = places_of(model)
    for step in gradients:  # the second kernel deserves more
        step[places[1]] *= 3
    rigl = of_step(gradients, places)

    def snfs(step, i, weights):
        mean = 0.0
        for earlier in range(step):
            mean = 0.5 * mean + 0.5 * gradients[earlier][places[i]].astype("float64")
        return np.abs(mean).astype("float32")

    rates = {2: 0.3, 4: 0.3, 6: 0.3}
    definition = Definition(
        model, rates, rigl if method == "rigl" else snfs, size=size, together=True
    )
    before = [int(m.sum()) for m in definition.masks]
    optimizer = sparse_optimizer(
        model,
        keras.optimizers.SGD(LEARNING_RATE),
        "rigl" if method == "rigl" else SNFS(momentum=0.5),
        update_every=2,
        prune_rate=0.3,
        competition="global",
    )
    compare(model, optimizer, definition, gradients)
    after = [int(numpy(k.mask).sum()) for k in sparse_kernels(model)]
    assert sum(after) == sum(before) and after[1] > before[1] and after[0] < before[0]
    assert numpy(model.get_layer("last").masks[0][1]).all()  # excluded ones stay dense
    ones = optimizer.mask_ones()
    assert [ones[k.name] for k in sparse_kernels(model)] == after
    model.optimizer = optimizer
    check_invariant(model)


@pytest.mark.slow
def test_gradient_of_the_last_steps_only():
    """An update after five steps uses the mean of exactly the last three gradients."""
    model = sparse_model()
    gradients = random_gradients(model, 10)
    places = places_of(model)
    for step in (0, 1, 5, 6):  # would decide everything if they counted
        for place in places:
            gradients[step][place] *= 1e4
    # SGD must not see those, or weights would become too large to compare.
    calm = keras.optimizers.SGD(0.0)

    def mean(step, i, weights):
        return np.abs(
            np.mean([gradients[s][places[i]].astype("float64") for s in range(step - 3, step)], 0)
        )

    definition = Definition(model, {5: 0.4, 10: 0.4}, mean)
    optimizer = sparse_optimizer(
        model, calm, "rigl", update_every=5, prune_rate=0.4, gradient_steps=3
    )
    trail = run(model, gradients, optimizer)
    zeros = [np.zeros_like(g) for g in gradients[0]]
    for step in range(1, 11):
        definition.step(step, zeros)
        for ours, theirs in zip(trail[step - 1][1], definition.masks, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=f"step {step}")
    start = sparse_model()
    assert all(
        np.any(numpy(k.mask) != m) for k, m in zip(sparse_kernels(start), trail[4][1], strict=True)
    )


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("method, gradient_steps", [("rigl", 1), ("rigl", 2), ("snfs", 1)])
def test_accumulated_batches_count_as_one_step(method, gradient_steps):
    """Updates every 2 steps of 3 batches each use the mean gradient of all 6 batches."""
    model = sparse_model()
    batches = random_gradients(model, 18)
    places = places_of(model)
    steps = [
        [np.mean(parts, 0, dtype="float64") for parts in zip(*batches[s : s + 3], strict=True)]
        for s in range(0, 18, 3)
    ]

    def growth(step, i, weights):
        if method == "rigl":
            return np.abs(np.mean([g[places[i]] for g in steps[step - gradient_steps : step]], 0))
        mean = 0.0
        for gradient in steps[:step]:
            mean = 0.9 * mean + 0.1 * gradient[places[i]]
        return np.abs(mean)

    definition = Definition(model, {2: 0.4, 4: 0.4, 6: 0.4}, growth)
    optimizer = sparse_optimizer(
        model,
        keras.optimizers.SGD(LEARNING_RATE, gradient_accumulation_steps=3),
        method,
        update_every=2,
        prune_rate=0.4,
        gradient_steps=gradient_steps,
    )
    trail = run(model, batches, optimizer)
    before = sparse_model()
    last = [numpy(k.mask) for k in sparse_kernels(before)]
    for batch, (weights, masks) in enumerate(trail, 1):
        if batch % 3 == 0:
            definition.step(batch // 3, [g.astype("float32") for g in steps[batch // 3 - 1]])
        for i, mask in enumerate(masks):
            np.testing.assert_array_equal(mask, definition.masks[i], err_msg=f"batch {batch}")
            np.testing.assert_allclose(weights[i], definition.weights[i], rtol=1e-4, atol=1e-6)
            assert np.any(mask != last[i]) == (batch % 6 == 0)
        last = masks
    assert optimizer.topology_updates == 3 and optimizer.steps == 6


@pytest.mark.cases(1)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_first_step_last_step_and_falling_rate(schedule):
    model = sparse_model()
    gradients = random_gradients(model, 12)
    rates = {
        step: 0.5 if schedule == "constant" else 0.25 * (1 + math.cos(math.pi * (step - 3) / 7))
        for step in (4, 6, 8, 10)
    }
    definition = Definition(model, rates, of_step(gradients, places_of(model)))
    optimizer = sparse_optimizer(
        model,
        keras.optimizers.SGD(LEARNING_RATE),
        "rigl",
        update_every=2,
        prune_rate=0.5,
        start_step=3,
        stop_step=10,
        schedule=schedule,
    )
    compare(model, optimizer, definition, gradients)
    assert optimizer.topology_updates == 4


def test_a_rate_that_rounds_to_no_weights_changes_nothing():
    model = sparse_model()
    before = [numpy(k.mask) for k in sparse_kernels(model)]
    optimizer = sparse_optimizer(
        model, keras.optimizers.SGD(LEARNING_RATE), "rigl", update_every=1, prune_rate=0.01
    )
    for k, mask in zip(sparse_kernels(model), before, strict=True):
        assert 0.01 * mask.sum() < 1, k.name
    definition = Definition(model, {}, None)  # plain masked SGD
    compare(model, optimizer, definition, random_gradients(model, 3))
    assert optimizer.topology_updates == 3 and not any(optimizer.exchanged().values())
    for k, mask in zip(sparse_kernels(model), before, strict=True):
        np.testing.assert_array_equal(numpy(k.mask), mask)


def test_grown_weights_may_start_from_a_normal_draw():
    model = keras.Sequential([keras.Input((200,)), layers.Dense(200, name="dense")])
    ksd.sparsify(model, 0.5, seed=0)
    [k] = masked_kernels(model)
    before, mask = numpy(k.kernel), numpy(k.mask)
    optimizer = sparse_optimizer(
        model,
        keras.optimizers.SGD(0.0, momentum=0.9, use_ema=True),
        "rigl",
        update_every=1,
        prune_rate=0.3,
        grow_init="normal",
        seed=3,
    )
    run(model, random_gradients(model, 1), optimizer)
    weights, now = numpy(k.kernel), numpy(k.mask)
    grown, survived = now & ~mask, now & mask
    assert grown.sum() > 2000
    std = np.sqrt(np.mean(before[survived].astype("float64") ** 2))
    assert weights[grown].std() == pytest.approx(std, rel=0.05)
    assert abs(weights[grown].mean()) < 4 * std / np.sqrt(grown.sum())
    assert np.mean(np.abs(weights[grown]) < std) == pytest.approx(0.6827, abs=0.03)  # is normal
    np.testing.assert_array_equal(weights[survived], before[survived])
    assert not weights[~now].any()
    for state in optimizer.state_of(k.kernel):
        assert not numpy(state)[~survived].any()


def polynomial(step, final, begin, end, power=3):
    share = min(1.0, max(0.0, (step - begin) / (end - begin)))
    return final - final * (1 - share) ** power


@pytest.mark.cases(1)
@pytest.mark.parametrize("structure", [None, Blocks(4)])
def test_gradual_pruning_follows_the_schedule_to_the_exact_densities(structure):
    model = sparse_model(0.6, "erk", structure=structure, dense_start=True)
    kernels = sparse_kernels(model)
    assert all(numpy(k.mask).all() for k in kernels)
    shapes = {k.name: tuple(k.kernel.shape) for k in kernels}
    free = sum(math.prod(s) for s in shapes.values())
    total = sum(math.prod(v.shape) for v in model.trainable_variables if "kernel" in v.path)
    final = ksd.sparsity.densities(shapes, 0.6 * total / free, "erk")
    assert len({round(d, 3) for d in final.values()}) == 2
    optimizer = sparse_optimizer(
        model,
        keras.optimizers.SGD(LEARNING_RATE),
        "gmp",
        schedule=PolynomialDecay(0.0, 0.6, begin_step=2, end_step=10, frequency=2),
    )
    before = [numpy(k.mask) for k in kernels]
    unit = structure.size if structure else 1
    for step in range(1, 13):
        run(model, random_gradients(model, 1, seed=step), optimizer)
        for i, k in enumerate(kernels):
            mask, size = numpy(k.mask), k.size
            pruned = round((1 - final[k.name]) * size / unit) * unit
            if step % 2 or not 2 <= step <= 10:
                np.testing.assert_array_equal(mask, before[i])
            else:
                asked = polynomial(step, 0.6, 2, 10) / 0.6 * pruned
                assert abs((size - mask.sum()) - asked) <= unit, (k.name, step)
                assert not (mask & ~before[i]).any()
            before[i] = mask
            assert not numpy(k.kernel)[~mask].any()
            if structure:
                groups = Definition.split(mask, unit)
                assert (groups.all(-1) | ~groups.any(-1)).all()
    for k in kernels:
        assert numpy(k.mask).sum() == round(final[k.name] * k.size / unit) * unit
    assert ksd.sparsity_report(model).sparsity == pytest.approx(0.6, abs=0.01)
    model.optimizer = optimizer
    check_invariant(model)


def test_gradual_pruning_takes_the_weakest():
    model = sparse_model(0.6, dense_start=True)
    before = [numpy(k.kernel) for k in sparse_kernels(model)]
    optimizer = sparse_optimizer(
        model,
        keras.optimizers.SGD(0.0),
        "gmp",
        schedule=PolynomialDecay(0.3, 0.6, begin_step=1, end_step=3, power=1, frequency=1),
    )
    for masks in [m for _, m in run(model, random_gradients(model, 3), optimizer)]:
        for weights, mask in zip(before, masks, strict=True):
            assert 0 < mask.sum() < mask.size
            assert np.abs(weights[mask]).min() > np.abs(weights[~mask]).max()


@pytest.mark.slow
def test_gradual_pruning_goes_on_after_saving_and_stays_done(tmp_path):
    """A model loaded halfway resumes; after the end only the static method continues."""

    def callback():
        schedule = PolynomialDecay(0.0, 0.6, begin_step=0, end_step=8, frequency=2)
        return ksd.DynamicSparsity("gmp", schedule=schedule)

    x = np.random.default_rng(0).normal(size=(16, 8, 8)).astype("float32")
    y = np.zeros((16, 6, 3), "float32")

    def fit(model, callback):
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[callback])

    whole, half = (sparse_model(0.6, dense_start=True) for _ in range(2))
    for model in (whole, half):
        model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
        fit(model, callback())
    assert 0.1 < ksd.sparsity_report(half).sparsity < 0.59
    half.save(tmp_path / "m.keras")
    half = keras.models.load_model(tmp_path / "m.keras")
    half.run_eagerly = True
    fit(half, callback())
    fit(whole, callback())
    assert ksd.sparsity_report(half).sparsity == pytest.approx(0.6, abs=0.005)
    for a, b in zip(half.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))
    check_invariant(half)
    done = ksd.sparsity_report(half).active
    fit(half, ksd.DynamicSparsity("static"))
    assert ksd.sparsity_report(half).active == done
    half.compile("adam", "mse")
    with pytest.raises(ValueError, match="'gmp' has nothing to prune"):
        fit(half, callback())


@pytest.mark.slow
def test_methods_and_options_that_do_not_go_together_are_refused():
    decay = PolynomialDecay(0.0, 0.5, 0, 10, frequency=5)

    def refused(message, method, sparsity=None, **options):
        model = sparse_model(**(sparsity or {}))
        before = [numpy(v) for v in model.variables]
        with pytest.raises(ValueError, match=message):
            sparse_optimizer(model, keras.optimizers.SGD(), method, **options)
        model.compile("sgd", "mse")
        x = np.zeros((2, 8, 8))
        with pytest.raises(ValueError, match=message):
            model.fit(x, verbose=0, callbacks=[ksd.DynamicSparsity(method, **options)])
        for v, b in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(numpy(v), b)

    dense = {"dense_start": True}
    refused("`schedule` must give the sparsity at each step for method 'gmp'.*'constant'", "gmp")
    refused("'gmp' has nothing to prune.*dense_start=True", "gmp", schedule=decay)
    refused(
        "ends at sparsity 0.5, but `sparsify` was asked for 0.8",
        "gmp",
        dense | {"sparsity": 0.8},
        schedule=decay,
    )
    refused(
        "last update comes at step 8, before it has reached sparsity 0.5",
        "gmp",
        dense,
        schedule=PolynomialDecay(0.0, 0.5, 0, 10, frequency=4),
    )
    refused("ends at sparsity 0.9", "gmp", dense, schedule=ConstantSparsity(0.9, 0))
    refused("method 'gmp', which grows nothing", "gmp", dense, schedule=decay, competition="global")
    refused(
        "'set' scores single weights and cannot keep the blocks of 4",
        "set",
        {"structure": Blocks(4)},
    )
    refused(
        "2:4 of m/conv/kernel fixes the density",
        "rigl",
        {"structure": NM(2, 4)},
        competition="global",
    )
    refused(
        "2:4 of m/conv/kernel fixes the density",
        "gmp",
        {"structure": NM(2, 4)} | dense,
        schedule=decay,
    )
    refused(
        "`competition` must be one of 'kernel', 'global'; received 'all'", "rigl", competition="all"
    )
    refused("`grow_init` must be one of 'zeros', 'normal'; received 1", "rigl", grow_init=1)
    refused("`gradient_steps` must be a whole number", "rigl", gradient_steps=0)
    refused("`gradient_steps` must be a whole number", "rigl", gradient_steps=1.5)
    refused(
        "`gradient_steps` must not exceed the 4 steps",
        "rigl",
        update_every=4,
        gradient_steps=5,
    )
    refused("`gradient_steps` must be a whole number", "rigl", gradient_steps=True)
    refused("Nothing is pruned", "rigl", dense)
    refused("`schedule` must be one of", "rigl", schedule="linear")
    with pytest.raises(ValueError, match=r"`momentum` must be in \[0, 1\); received 1.0"):
        SNFS(1.0)
    with pytest.raises(TypeError, match="SparsityMethod does not grow weights"):
        SparsityMethod().growth_score(None, None, None)


@pytest.mark.parametrize(
    "options", [{"competition": "all"}, {"grow_init": 1}, {"gradient_steps": 2000}], ids=str
)
def test_the_callback_refuses_options_when_it_is_made(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}` must "):
        ksd.DynamicSparsity("rigl", **options)


def test_numbers_of_steps_may_be_those_of_numpy():
    callback = ksd.DynamicSparsity("rigl", update_every=np.int64(4), gradient_steps=np.int64(2))
    assert (callback.schedule.update_every, callback.gradient_steps) == (4, 2)


def test_gradual_pruning_to_a_sparsity_that_small_kernels_can_only_be_near():
    """`densities` rounds down: 12 of 16 and 6 of 8 weights are pruned."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    ksd.sparsify(model, 0.8, "er", seed=0, dense_start=True)
    optimizer = sparse_optimizer(
        model,
        keras.optimizers.SGD(LEARNING_RATE),
        "gmp",
        schedule=PolynomialDecay(0.0, 0.8, begin_step=0, end_step=2, frequency=1),
    )
    run(model, random_gradients(model, 2), optimizer)
    assert ksd.sparsity_report(model).sparsity == 0.75


def test_gradual_pruning_of_masks_that_sparsify_did_not_make():
    model = keras.Sequential([keras.Input((6,)), ksd.layers.SparseDense(4)])
    with pytest.raises(ValueError, match="'gmp' needs densities to prune to.*dense_start=True"):
        sparse_optimizer(
            model,
            keras.optimizers.SGD(),
            "gmp",
            schedule=PolynomialDecay(0.0, 0.5, 0, 10, frequency=5),
        )


def test_methods_by_name_class_and_instance():
    for name, cls in methods.METHODS.items():
        assert type(methods.get_method(name)) is type(methods.get_method(cls)) is cls
        assert cls.name == name
        instance = cls()
        assert methods.get_method(instance) is instance
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(instance))
        assert type(again) is cls
    snfs = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(SNFS(0.3)))
    assert snfs.momentum == 0.3


@pytest.mark.slow
def test_the_documented_method_of_a_user_trains_and_comes_back(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", methods.__doc__, flags=re.DOTALL)
    namespace = {"keras": keras, "ops": ops, "SparsityMethod": SparsityMethod}
    exec(code, namespace)
    [cls] = [
        v
        for v in namespace.values()
        if isinstance(v, type) and issubclass(v, SparsityMethod) and v is not SparsityMethod
    ]
    assert cls.name not in methods.METHODS
    model = sparse_model()

    def growth(step, i, w):
        w = np.abs(w)
        return w.mean(-1, keepdims=True) * w.mean(-2, keepdims=True)

    optimizer = sparse_optimizer(
        model, keras.optimizers.SGD(LEARNING_RATE), cls, update_every=2, prune_rate=0.3
    )
    definition = Definition(model, {2: 0.3, 4: 0.3}, growth)
    masks = compare(model, optimizer, definition, random_gradients(model, 4))
    assert all(np.any(a != b) for a, b in zip(masks[0], masks[3], strict=True))

    model.compile("sgd", "mse", run_eagerly=True)
    x, y = np.ones((4, 8, 8), "float32"), np.zeros((4, 6, 3), "float32")
    callback = ksd.DynamicSparsity(cls(), update_every=1, prune_rate=0.3)
    model.fit(x, y, verbose=0, callbacks=[callback])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer.method) is cls
    check_invariant(loaded)


def test_a_method_of_a_user_may_score_what_to_drop():
    class KeepsTheSmallest(RigL):
        name = "keeps the smallest"

        def drop_score(self, weights):
            return 1.0 / (ops.abs(weights) + 1e-6)

    model = sparse_model()
    before = [(numpy(k.kernel), numpy(k.mask)) for k in sparse_kernels(model)]
    optimizer = SparseOptimizer(
        keras.optimizers.SGD(0.0), KeepsTheSmallest(), ConstantPruneRate(0.3, 1)
    )
    optimizer.attach(model)
    zero_where_active = random_gradients(model, 1)
    for place, (_, mask) in zip(places_of(model), before, strict=True):
        zero_where_active[0][place][mask] = 0  # no dropped weight grows again
    run(model, zero_where_active, optimizer)
    for k, (weights, mask) in zip(sparse_kernels(model), before, strict=True):
        gone = mask & ~numpy(k.mask)
        assert gone.sum() == int(np.float32(mask.sum()) * np.float32(0.3))
        assert np.abs(weights[gone]).min() > np.abs(weights[mask & ~gone]).max()


def test_set_is_a_kind_of_magran_for_what_grows():
    assert issubclass(SET, ksd.sparsity.MagRan) and SET.gradient is None
