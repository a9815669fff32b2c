"""Densities of kernels: comparison with the original RigL program, and properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_sparse_dm as ksd
from keras_sparse_dm.sparsity import densities

TOY = {
    "a": (784, 300),
    "b": (300, 100),
    "c": (100, 10),
    "d": (3, 3, 3, 64),
    "e": (3, 3, 64, 128),
    "f": (1, 1, 128, 32),
    "g": (128, 384),
}

shapes_of_kernels = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 300), st.integers(1, 300)),
        st.tuples(st.integers(1, 5), st.integers(1, 64), st.integers(1, 64)),
        st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 64), st.integers(1, 64)),
    ),
    min_size=1,
    max_size=12,
).map(lambda shapes: {f"k{i}": shape for i, shape in enumerate(shapes)})
sparsities = st.one_of(
    st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1e-9])
)
distributions = st.sampled_from(["uniform", "er", "erk"])


@pytest.mark.parametrize("distribution", ["er", "erk"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_toy_net_agrees_with_the_original_program(reference, distribution, sparsity):
    answers = reference.arrays("rigl.npz")[f"toy_{distribution}_density_{sparsity}"]
    ours = densities(TOY, sparsity, distribution)
    assert list(ours) == list(TOY)
    np.testing.assert_allclose(list(ours.values()), answers, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sparsity", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_unet_agrees_with_the_original_program(reference, sparsity):
    arrays = reference.arrays("rigl.npz")
    shapes = {
        str(i): tuple(row[-ndim:].tolist())
        for i, (row, ndim) in enumerate(
            zip(arrays["unet_kernel_shapes"], arrays["unet_kernel_ndim"], strict=True)
        )
    }
    assert len(shapes) == 123
    assert sum(math.prod(s) for s in shapes.values()) == 273_872_704
    ours = np.array(list(densities(shapes, sparsity).values()))
    np.testing.assert_allclose(ours, arrays[f"unet_erk_density_{sparsity}"], rtol=0, atol=1e-12)
    flops = arrays["unet_kernel_flops"]
    of_the_paper = {0.1: 0.9736, 0.25: 0.9079, 0.5: 0.6751, 0.75: 0.2885, 0.9: 0.1237}
    assert (flops * ours).sum() / flops.sum() == pytest.approx(of_the_paper[sparsity], abs=5e-5)


@settings(max_examples=150, deadline=None)
@given(shapes_of_kernels, sparsities, distributions)
def test_densities_are_shares_that_hit_the_total(shapes, sparsity, distribution):
    ours = densities(shapes, sparsity, distribution)
    assert list(ours) == list(shapes)
    assert all(type(d) is float and 0 < d <= 1 for d in ours.values())
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    kept = sum(ours[name] * sizes[name] for name in shapes)
    total = sum(sizes.values())
    assert abs(kept - (1 - sparsity) * total) <= len(shapes) + 1e-9 * total


@settings(max_examples=100, deadline=None)
@given(shapes_of_kernels, sparsities, sparsities, distributions)
def test_more_sparsity_never_gives_a_kernel_more(shapes, one, other, distribution):
    low, high = sorted([one, other])
    more, less = (densities(shapes, s, distribution) for s in (low, high))
    assert all(less[name] <= more[name] + 1e-12 for name in shapes)


@settings(max_examples=100, deadline=None)
@given(shapes_of_kernels, sparsities, st.sampled_from(["er", "erk"]))
def test_kernels_that_are_not_dense_share_one_factor(shapes, sparsity, distribution):
    """Densities are proportional to sum over product of the axes (equations 4 and 5)."""
    ours = densities(shapes, sparsity, distribution)

    def raw(shape):
        used = shape[-2:] if distribution == "er" else shape
        return sum(used) / math.prod(used)

    factors = [ours[name] / raw(shape) for name, shape in shapes.items() if ours[name] < 1]
    assert np.ptp(factors or [0]) <= 1e-9 * max(factors, default=0)
    # The common factor would give dense kernels a density above 1.
    for name, shape in shapes.items():
        if ours[name] == 1 and factors:
            assert factors[0] * raw(shape) >= 1 - 1e-9


def test_erk_is_er_for_matrices():
    matrices = {name: shape for name, shape in TOY.items() if len(shape) == 2}
    assert densities(matrices, 0.8, "erk") == densities(matrices, 0.8, "er")


def test_erk_is_the_default_and_uniform_is_uniform():
    assert densities(TOY, 0.9) == densities(TOY, 0.9, "erk") != densities(TOY, 0.9, "er")
    assert set(densities(TOY, 0.75, "uniform").values()) == {0.25}
    for distribution in ("uniform", "er", "erk"):
        assert set(densities(TOY, 0, distribution).values()) == {1.0}


@pytest.mark.parametrize(
    "sparsity", [1, 1.0, 1.5, -0.1, -1e-9, float("nan"), float("inf"), None, "half", [0.5, 0.5]]
)
def test_sparsity_outside_the_range_raises(sparsity):
    with pytest.raises(ValueError, match=r"`sparsity` must be a number in \[0, 1\); received"):
        densities(TOY, sparsity)


@settings(max_examples=50, deadline=None)
@given(shapes_of_kernels, sparsities)
def test_function_of_the_shape(shapes, sparsity):
    """A function gives the same as the built-in formula; it receives tuples."""

    def by_hand(shape):
        assert type(shape) is tuple
        # Only ratios matter.
        return 17 * sum(shape) / math.prod(shape)

    ours, theirs = densities(shapes, sparsity, by_hand), densities(shapes, sparsity, "erk")
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "big", None])
def test_function_that_gives_no_positive_number_raises(value):
    with pytest.raises(ValueError, match="must give every kernel a positive number; .* gave .*'a'"):
        densities(TOY, 0.5, lambda shape: value)


@pytest.mark.parametrize("distribution", ["random", "ERK", "", None, ["erk"]])
def test_unknown_distribution_raises(distribution):
    with pytest.raises(ValueError, match="`distribution` must be one of .*'erk'.* received"):
        densities(TOY, 0.5, distribution)


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_no_kernels_and_empty_kernels_raise(distribution):
    with pytest.raises(ValueError, match="at least one kernel"):
        densities({}, 0.5, distribution)
    with pytest.raises(ValueError, match="positive dimensions"):
        densities({"a": (3, 0)}, 0.5, distribution)


@pytest.mark.parametrize("distribution", ["er", "erk"])
def test_a_vector_is_no_kernel(distribution):
    with pytest.raises(ValueError, match=r"at least two axes; received shape \(7,\)"):
        densities({"a": (3, 4), "bias": (7,)}, 0.5, distribution)


def test_docstring_example():
    assert ksd.sparsity.densities({"a": (784, 300), "b": (300, 10)}, 0.9) == {
        "a": 0.08852040816326531,
        "b": 1.0,
    }
