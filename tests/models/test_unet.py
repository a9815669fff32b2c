"""The U-Net: the paper's numbers from the code, serialization, errors."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_sparse_dm.models import UNet
from keras_sparse_dm.sparsity import densities

SLOW_FIXTURES = {"full_size"}

SMALL = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
FULL_SIZE = """
import json, resource
import keras, numpy as np
from keras_sparse_dm.metrics import kernel_flops
from keras_sparse_dm.models import UNet
from keras_sparse_dm.sparsity import masked_kernels

def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = memory()
with keras.StatelessScope(initialize_variables=False):
    unet = UNet.from_preset("ldm_celebahq")
kernels = masked_kernels(unet)
flops = kernel_flops(unet, (np.zeros((1, 64, 64, 3), "float32"), np.zeros(1, "int32")))
print(json.dumps({
    "parameters": sum(int(np.prod(v.shape)) for v in unet.trainable_variables),
    "shapes": {k.name: list(k.kernel.shape) for k in kernels},
    "flops": flops,
    "memory": memory() - before,
}))
"""


@pytest.fixture(scope="module")
def full_size():
    """The full network's shapes and FLOPs, from a process that holds none of its weights."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_SIZE], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.nightly
def test_the_full_network_has_the_papers_size(full_size):
    assert full_size["parameters"] == 274_056_163
    shapes = full_size["shapes"].values()
    assert len(shapes) == 123
    # The 32 convolutions of width 1 are dense layers here, beside the 24 that were.
    assert [sum(len(s) == n for s in shapes) for n in (4, 2)] == [67, 32 + 24]
    assert sum(int(np.prod(s)) for s in shapes) == 273_872_704
    assert round(sum(full_size["flops"].values()) / 1e6) == 192_036
    assert full_size["memory"] < 1e9


def test_the_full_network_has_the_originals_kernels(full_size, reference):
    answers = reference.arrays("rigl.npz")
    original = [
        tuple(int(n) for n in row[len(row) - ndim :])
        for row, ndim in zip(
            answers["unet_kernel_shapes"], answers["unet_kernel_ndim"], strict=True
        )
    ]
    assert sorted(original) == sorted(tuple(s) for s in full_size["shapes"].values())


@pytest.mark.parametrize(
    ("sparsity", "ratio"),
    [(0.1, 0.9736), (0.25, 0.9079), (0.5, 0.6751), (0.75, 0.2885), (0.9, 0.1237)],
)
def test_the_flops_with_erk_are_the_papers(full_size, sparsity, ratio):
    shapes = {name: tuple(shape) for name, shape in full_size["shapes"].items()}
    density = densities(shapes, sparsity, "erk")
    flops = full_size["flops"]
    sparse = sum(density[name] * flops[name] for name in flops)
    assert round(sparse / sum(flops.values()), 4) == ratio


@pytest.mark.slow
def test_starts_as_zero_and_takes_any_size_that_it_divides():
    unet = UNet(**SMALL)
    for size in ((8, 8), (4, 12)):
        predicted = unet((np.ones((2, *size, 3), "float32"), np.array([0, 999])))
        assert predicted.shape == (2, *size, 3)
        # As in the original, whose last convolution starts at zero.
        assert not np.any(predicted)


@pytest.mark.slow
def test_configuration_and_file_bring_the_same_network_back(tmp_path):
    unet = UNet(**SMALL, attention_factors=(1,), dropout=0.1, timesteps=10, remat=True)
    unet.output_conv.kernel.assign(keras.random.normal(unet.output_conv.kernel.shape, seed=0))
    assert UNet.from_config(unet.get_config()).get_config() == unet.get_config()
    unet.save(tmp_path / "unet.keras")
    again = keras.saving.load_model(tmp_path / "unet.keras")
    x, t = keras.random.normal((2, 8, 8, 3), seed=1), np.array([3, 9])
    np.testing.assert_array_equal(again((x, t)), unet((x, t)))
    assert np.any(unet((x, t)))


@pytest.mark.slow
def test_the_timestep_counts():
    unet = UNet(**SMALL)
    unet.output_conv.kernel.assign(keras.random.normal(unet.output_conv.kernel.shape, seed=0))
    for layers in (*unet.input_blocks[1:2], *unet.output_blocks):
        kernel = layers[0].conv_2.kernel
        kernel.assign(keras.random.normal(kernel.shape, stddev=0.1, seed=2))
    x = ops.ones((2, 8, 8, 3))
    first, second = np.asarray(unet((x, np.array([0, 500]))))
    assert np.abs(first - second).max() > 1e-3


def test_time_features_are_the_transformers_sinusoids():
    unet = UNet(**SMALL)
    features = np.asarray(unet.embed_time(np.array([0, 7, 999])))
    frequencies = 10000.0 ** (-np.arange(16) / 16)
    angle = np.array([0, 7, 999])[:, None] * frequencies
    np.testing.assert_allclose(features, np.hstack([np.cos(angle), np.sin(angle)]), atol=2e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_channels": 48}, "`model_channels` must be a multiple of 32.* received 48"),
        ({"model_channels": 0}, "`model_channels` must be a whole number, 1 or more; received 0"),
        ({"channel_mult": ()}, r"`channel_mult` must be one or more whole .*; received \(\)"),
        ({"channel_mult": (1, 0)}, r"`channel_mult` must .*, each 1 or more; received \(1, 0\)"),
        ({"attention_factors": (3,)}, r"`attention_factors` must be powers of 2.*\(3,\)"),
        ({"head_channels": 48}, "`head_channels` must divide the 64 channels .* received 48"),
        ({"dropout": 1.0}, r"`dropout` must be a number in \[0, 1\); received 1\."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refuses_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(**(SMALL | {"attention_factors": (2,)} | arguments))


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("shape", "t", "message"),
    [
        ((1, 7, 8, 3), 0, "multiples of 2.*received shape"),
        ((1, 8, 8, 4), 0, "must have 3 channels"),
        ((1, 8, 8, 3), 1000, r"from 0 to 999; received \[1000\]"),
        ((1, 8, 8, 3), -1, r"from 0 to 999; received \[-1\]"),
    ],
)
def test_refuses_inputs(shape, t, message):
    with pytest.raises(ValueError, match=message):
        UNet(**SMALL)((np.zeros(shape, "float32"), np.array([t])))


def test_presets_of_other_models_are_refused():
    with pytest.raises(ValueError, match="must be a latent diffusion preset"):
        UNet.from_preset("chirodiff_kanjivg")
    assert UNet.from_preset("ldm_kanjivg", model_channels=32, channel_mult=(1, 1)).in_channels == 3
