import re

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_sparse_dm.convert import load_pytorch
from keras_sparse_dm.models import ChiroDiff
from keras_sparse_dm.sparsity import masked_kernels


def size(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


@pytest.mark.parametrize(
    "preset, parameters, kernel_weights",
    [
        ("chirodiff_quickdraw", 736_027, 731_288),
        ("chirodiff_kanjivg", 416_859, 413_304),
        ("chirodiff_vmnist", 65_019, 63_816),
    ],
)
def test_presets_have_the_parameters_of_the_original(preset, parameters, kernel_weights):
    model = ChiroDiff.from_preset(preset)
    assert size(model.trainable_variables) == parameters
    kernels = masked_kernels(model)
    assert size(k.kernel for k in kernels) == kernel_weights
    # Every matrix can be sparse and nothing else.
    assert {id(k.kernel) for k in kernels} == {
        id(v) for v in model.trainable_variables if "kernel" in v.path.rsplit("/", 1)[-1]
    }


# The original program --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(reference):
    arrays = reference.arrays("chirodiff_vmnist.npz")
    tensors = reference.state_dict("chirodiff_vmnist.npz")
    return arrays, tensors | {"pe_proj_W": arrays["fourier_frequencies"]}


def converted(tensors, representation="absolute"):
    model = ChiroDiff.from_preset("chirodiff_vmnist", representation=representation)
    load_pytorch(model, tensors)
    return model


@pytest.mark.cases(1)
@pytest.mark.parametrize("representation", ["absolute", "delta"])
def test_predicts_what_the_original_predicts(original, representation):
    arrays, tensors = original
    model = converted(tensors, representation)
    # The original counts timesteps from 1.
    noise = model((arrays["points"], arrays["t"] - 1, arrays["lengths"]))
    wanted = arrays[f"eps_{representation}"]
    np.testing.assert_allclose(noise, wanted, atol=1e-4)
    assert np.abs(wanted).max() > 0.1
    for i, length in enumerate(arrays["lengths"]):
        assert (np.asarray(noise)[i, length:] == 0).all()


def test_embeds_time_as_the_original_does(original):
    arrays, tensors = original
    embedded = converted(tensors).embed_time(ops.array(arrays["t"] - 1))
    np.testing.assert_allclose(embedded, arrays["time_embedding"], atol=1e-5)


def test_time_features_are_sines_and_cosines_of_the_frequencies():
    model = ChiroDiff(4, 1, time_features=6, time_scale=3.0, timesteps=20, seed=1)
    frequencies = ops.convert_to_numpy(model.time_frequencies)
    assert frequencies.shape == (3,)
    angle = 2 * np.pi * np.outer(np.arange(1, 21) / 20, 3.0 * frequencies)
    np.testing.assert_allclose(
        model.embed_time(ops.arange(20)),
        np.concatenate([np.sin(angle), np.cos(angle)], axis=1),
        atol=1e-4,
    )


# Padding ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["absolute", "delta"])
def small(request):
    keras.utils.set_random_seed(0)
    return ChiroDiff(6, 2, representation=request.param, timesteps=50, seed=0)


def predict(model, points, t, lengths):
    return np.asarray(
        model((points.astype("float32"), np.array(t, "int32"), np.array(lengths, "int32")))
    )


@pytest.mark.cases(1)
def test_each_sketch_is_predicted_as_if_it_were_alone_and_unpadded(small):
    random = np.random.default_rng(0)
    lengths, t = [5, 1, 9, 3], [0, 49, 20, 7]
    points = random.standard_normal((4, 9, 3))
    batch = predict(small, points, t, lengths)
    for i, length in enumerate(lengths):
        alone = predict(small, points[i : i + 1, :length], t[i : i + 1], [length])
        np.testing.assert_allclose(batch[i, :length], alone[0], atol=1e-5)
        assert (batch[i, length:] == 0).all()
        assert (np.abs(alone) > 1e-6).all()


@pytest.mark.cases(1)
@pytest.mark.parametrize("garbage", [1e30, np.nan, np.inf, -np.inf])
def test_what_lies_in_the_padding_is_never_read(small, garbage):
    random = np.random.default_rng(1)
    points = random.standard_normal((3, 8, 3))
    clean = predict(small, points, [1, 2, 3], [4, 8, 1])
    for i, length in enumerate([4, 8, 1]):
        points[i, length:] = garbage
    np.testing.assert_array_equal(predict(small, points, [1, 2, 3], [4, 8, 1]), clean)


@pytest.mark.slow
@given(
    extra=st.integers(0, 6),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    seed=st.integers(0, 100),
)
@settings(max_examples=6, deadline=None)
def test_longer_padding_changes_nothing(extra, lengths, seed):
    keras.utils.set_random_seed(0)
    model = ChiroDiff(3, 1, timesteps=50, seed=0)
    random = np.random.default_rng(seed)
    points = random.standard_normal((len(lengths), 7, 3))
    t = random.integers(0, 50, len(lengths))
    short = predict(model, points, t, lengths)
    padding = random.standard_normal((len(lengths), extra, 3))
    padded = predict(model, np.concatenate([points, padding], axis=1), t, lengths)
    np.testing.assert_allclose(padded[:, :7], short, atol=1e-6)
    assert (padded[:, 7:] == 0).all()


def test_both_directions_reach_every_point(small):
    """A point in the middle sees the first and the last point of its sketch."""
    points = np.random.default_rng(2).standard_normal((1, 6, 3))
    before = predict(small, points, [5], [6])
    for changed in (0, 5):
        moved = points.copy()
        moved[0, changed] += 1.0
        assert np.abs(predict(small, moved, [5], [6]) - before)[0, 3].max() > 1e-6


def test_representations_say_the_same_of_the_same_sketch():
    """Deltas with the absolute sketch as their running sum give the same inputs."""
    models = []
    for representation in ("absolute", "delta"):
        keras.utils.set_random_seed(0)
        models.append(ChiroDiff(4, 1, representation=representation, timesteps=50, seed=0))
    absolute, delta = models
    for mine, theirs in zip(delta.weights, absolute.weights, strict=True):
        mine.assign(theirs)
    # As in the original, the pen bit comes before the velocities in one and after in the other.
    for direction in ("forward_layer", "backward_layer"):
        kernel = getattr(delta.recurrent[0], direction).cell.kernel
        kernel.assign(ops.convert_to_numpy(kernel)[[0, 1, 3, 4, 2, *range(5, 13)]])
    deltas = np.random.default_rng(0).standard_normal((2, 7, 3))
    positions = deltas.copy()
    positions[..., :2] = np.cumsum(deltas[..., :2], axis=1)
    np.testing.assert_allclose(
        predict(absolute, positions, [3, 4], [7, 7]),
        predict(delta, deltas, [3, 4], [7, 7]),
        atol=1e-5,
    )


def test_the_timestep_matters():
    model = ChiroDiff(4, 1, timesteps=50, seed=0)
    points = np.zeros((2, 3, 3))
    noise = predict(model, points, [0, 17], [3, 3])
    assert np.abs(noise[0] - noise[1]).max() > 1e-4


# Configuration ---------------------------------------------------------------------------------


@pytest.mark.cases(1)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_computes_in_other_precisions(small, policy):
    model = ChiroDiff.from_config(small.get_config() | {"dtype": policy})
    model.set_weights(small.get_weights())
    points = np.random.default_rng(0).normal(size=(2, 9, 3)).astype("float32")
    inputs = (points, np.array([3, 5]), np.array([9, 4]))
    np.testing.assert_allclose(
        ops.cast(model(inputs), "float32"), small(inputs), rtol=0.05, atol=0.05
    )


def test_config_round_trip():
    arguments = {
        "name": "mine",
        "units": 5,
        "num_layers": 2,
        "representation": "delta",
        "time_features": 6,
        "time_scale": 2.5,
        "timesteps": 77,
        "seed": 3,
    }
    model = ChiroDiff(**arguments)
    arguments["projection_units"] = 5
    assert model.get_config() == arguments
    again = ChiroDiff.from_config(model.get_config())
    assert again.get_config() == arguments
    assert [v.shape for v in again.weights] == [v.shape for v in model.weights]
    np.testing.assert_array_equal(again.time_frequencies, model.time_frequencies)


def test_frequencies_follow_the_seed_never_train_and_are_saved(tmp_path):
    frequencies = [
        ops.convert_to_numpy(ChiroDiff(3, 1, time_features=64, seed=seed).time_frequencies)
        for seed in (4, 4, 5, None, None)
    ]
    np.testing.assert_array_equal(frequencies[0], frequencies[1])
    assert (frequencies[0] != frequencies[2]).all()
    assert (frequencies[3] != frequencies[4]).all()
    assert abs(frequencies[0].std() - 1) < 0.5

    model = ChiroDiff(3, 1, timesteps=50)
    assert not any(v is model.time_frequencies for v in model.trainable_variables)
    model.save(tmp_path / "denoiser.keras")
    loaded = keras.saving.load_model(tmp_path / "denoiser.keras")
    points = np.random.default_rng(0).standard_normal((2, 4, 3))
    np.testing.assert_array_equal(
        predict(loaded, points, [3, 30], [4, 2]), predict(model, points, [3, 30], [4, 2])
    )


def test_from_preset_takes_overrides():
    model = ChiroDiff.from_preset("chirodiff_vmnist", units=5, representation="delta", seed=2)
    config = model.get_config()
    assert (config["units"], config["num_layers"], config["representation"]) == (5, 2, "delta")
    assert config["timesteps"] == 1000 and config["seed"] == 2


def test_from_preset_refuses_unknown_names_and_arguments():
    with pytest.raises(ValueError, match="chirodiff_kanjvg.*chirodiff_kanjivg"):
        ChiroDiff.from_preset("chirodiff_kanjvg")
    with pytest.raises((TypeError, ValueError), match="unit"):
        ChiroDiff.from_preset("chirodiff_vmnist", unit=5)


@pytest.mark.parametrize(
    "argument, value",
    [
        ("representation", "relative"),
        ("units", 0),
        ("units", 2.5),
        ("num_layers", -1),
        ("num_layers", 0),
        ("time_features", 3),
        ("time_features", 0),
        ("timesteps", 0),
        ("projection_units", 0),
        ("units", [3, 4]),
        ("units", [3, 0, 3]),
    ],
)
def test_errors_say_what_was_received(argument, value):
    with pytest.raises(ValueError, match=f"{argument}.*{re.escape(str(value))}"):
        ChiroDiff(**{argument: value})


def test_layers_of_different_widths(tmp_path):
    model = ChiroDiff(units=[5, 2], num_layers=2, projection_units=3, timesteps=50, seed=0)
    shapes = {v.path.split("/", 1)[1]: tuple(v.shape) for v in model.trainable_variables}
    assert shapes["bidirectional_0/forward_gru/gru_cell/kernel"] == (13, 15)
    assert shapes["bidirectional_1/backward_gru/gru_cell/kernel"] == (10, 6)
    assert shapes["output_projection/kernel"] == (4, 3)
    assert shapes["noise_projection/kernel"] == (11, 3)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.units == [5, 2]
    points = np.random.default_rng(0).standard_normal((2, 4, 3))
    np.testing.assert_array_equal(
        predict(loaded, points, [3, 30], [4, 2]), predict(model, points, [3, 30], [4, 2])
    )
