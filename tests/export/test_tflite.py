import json
import math
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_utils

import keras_sparse_dm as ksd
from keras_sparse_dm.export import (
    TFLiteDenoiser,
    generate_from_tflite,
    read_tflite_metadata,
    representative_data,
    sparse_inference_report,
    to_tflite,
)
from keras_sparse_dm.export.tflite import comparison, flatbuffer, write

SLOW_FIXTURES = {"exported", "latent_diffusion"}

interpreter = pytest.importorskip("ai_edge_litert.interpreter")

LENGTH = 20
SCHEDULE = ksd.diffusion.NoiseSchedule.linear(1000)


def chirodiff(units=16, sparsity=0.8, structure=None, layers=2, **arguments):
    denoiser = ksd.models.ChiroDiff(units=units, num_layers=layers, seed=0, **arguments)
    if sparsity:
        options = {} if structure is None else {"structure": structure}
        ksd.sparsify(denoiser, sparsity, seed=0, **options)
    rng = np.random.default_rng(1)
    for weight in denoiser.trainable_variables:
        # Biases start at zero, which would hide a missing one.
        if "bias" in weight.path:
            weight.assign(0.3 * rng.standard_normal(weight.shape))
        else:
            weight.assign(1.5 * weight)
    return denoiser


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return ksd.diffusion.DiffusionModel(chirodiff(), SCHEDULE)


@pytest.fixture(scope="module")
def sketches():
    rng = np.random.default_rng(0)
    return [
        np.cumsum(0.2 * rng.standard_normal((int(n), 3)), axis=0).astype("float32")
        for n in rng.integers(5, LENGTH + 1, 40)
    ]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "denoiser.tflite"
    return to_tflite(model, path, length=LENGTH, metadata={"run": "test"})


def inputs_of_denoiser(batch_size=1, length=LENGTH, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((batch_size, length, 3)).astype("float32")
    t = rng.integers(0, 1000, batch_size).astype("int32")
    return points, t, rng.integers(1, length + 1, batch_size).astype("int32")


def run_file(path, part, **inputs):
    """Return the outputs of a file in LiteRT alone."""
    return interpreter.Interpreter(str(path)).get_signature_runner(part)(**inputs)


def tensors_of(path):
    """List the sparse tensors of a file: `(dense shape, weights in a block)`."""
    found = []
    for graph in flatbuffer.parse(path.read_bytes()).subgraphs:
        for tensor in graph.tensors:
            if tensor.sparsity is not None:
                blocks = tensor.sparsity.dimMetadata[len(tensor.shape) :]
                block = math.prod(dimension.denseSize for dimension in blocks)
                found.append((tuple(int(n) for n in tensor.shape), block))
    return found


# The answers


@pytest.mark.slow
@pytest.mark.cases(3)
@pytest.mark.parametrize(
    "structure, quantize, bound, sparse",
    [
        (None, "none", 1e-4, True),
        pytest.param(None, "none", 1e-4, False, marks=pytest.mark.slow),
        (None, "float16", 1e-2, True),
        (None, "int8_dynamic", 0.1, True),
        (None, "int8", 0.25, True),
        pytest.param(None, "int8", 0.25, False, marks=pytest.mark.slow),
        (ksd.sparsity.Blocks(4), "none", 1e-4, True),
        pytest.param(ksd.sparsity.Blocks(4), "int8", 0.25, True, marks=pytest.mark.slow),
    ],
    ids=lambda value: "blocks" if isinstance(value, ksd.sparsity.Blocks) else None,
)
@pytest.mark.filterwarnings("ignore:`structure` blocks of 4 does not fit")
def test_a_file_answers_as_the_model_does(quantize, bound, sparse, structure, sketches, tmp_path):
    model = ksd.diffusion.DiffusionModel(chirodiff(structure=structure), SCHEDULE)
    data = representative_data(model, sketches, length=LENGTH, n=20)
    path = tmp_path / "model.tflite"
    exported = to_tflite(
        model,
        path,
        length=LENGTH,
        quantize=quantize,
        sparse=sparse,
        representative=data if quantize == "int8" else None,
    )
    for seed in range(4):
        points, t, lengths = inputs_of_denoiser(seed=seed)
        answer = run_file(path, "denoiser", points=points, t=t, lengths=lengths)["epsilon"]
        expected = np.asarray(model((points, t, lengths)))
        assert np.abs(expected).max() > 0.3
        np.testing.assert_allclose(answer, expected, atol=bound)
    assert exported.bytes == path.stat().st_size
    assert exported.compressed_bytes == len(zlib.compress(path.read_bytes(), 9))
    assert bool(tensors_of(path)) == sparse
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("representation", ["absolute", "delta"])
def test_every_batch_size_length_and_representation(representation, tmp_path):
    denoiser = chirodiff(8, layers=1, representation=representation)
    path = tmp_path / "model.tflite"
    for quantize, size, bound in (("none", 2, 1e-5), ("float16", 32, 1e-2)):
        to_tflite(denoiser, path, length=33, batch_size=size, quantize=quantize)
        denoise = TFLiteDenoiser(path)
        for batch_size, length in ((1, 33), (2, 7), (5, 20), (64, 33)):
            inputs = inputs_of_denoiser(batch_size, length)
            np.testing.assert_allclose(denoise(*inputs), denoiser(inputs), atol=bound)
    assert denoise.metadata["representation"] == representation


@pytest.mark.slow
def test_averaged_weights_are_exported(sketches, tmp_path):
    model = ksd.diffusion.DiffusionModel(chirodiff(8, layers=1), SCHEDULE, seed=0)
    model.compile(keras.optimizers.AdamW(0.05, use_ema=True, ema_momentum=0.9))
    batch = {
        "points": np.stack([np.resize(s, (LENGTH, 3)) for s in sketches[:8]]),
        "lengths": np.array([len(s) for s in sketches[:8]]),
    }
    callback = ksd.DynamicSparsity("static", update_every=100)
    # `fit` would put the averages into the weights at its end.
    callback.set_model(model)
    callback.on_train_begin()
    for _ in range(5):
        model.train_on_batch(batch)
    inputs = inputs_of_denoiser()
    trained = np.asarray(model(inputs))
    with model.averaged_weights():
        averaged = np.asarray(model(inputs))
    assert np.abs(averaged - trained).max() > 0.01
    to_tflite(model, tmp_path / "model.tflite", length=LENGTH)
    answer = TFLiteDenoiser(tmp_path / "model.tflite")(*inputs)
    np.testing.assert_allclose(answer, averaged, atol=1e-4)
    np.testing.assert_array_equal(model(inputs), trained)


# Contents of the file


@pytest.mark.slow
def test_the_preset_s_file_shrinks_with_its_zeros(tmp_path):
    sizes = {}
    for sparsity in (0.0, 0.9):
        denoiser = ksd.models.ChiroDiff.from_preset("chirodiff_kanjivg")
        if sparsity:
            ksd.sparsify(denoiser, sparsity, seed=0)
        exported = to_tflite(denoiser, tmp_path / "model.tflite", length=90)
        sizes[sparsity] = exported.bytes
        assert exported.metadata["sparsity"] == pytest.approx(sparsity, abs=1e-4)
    assert sizes[0.0] > 4 * 416_859
    assert sizes[0.9] < 0.20 * sizes[0.0]


@pytest.mark.slow
def test_quantization_shrinks_what_is_left(model, sketches, tmp_path):
    model = ksd.diffusion.DiffusionModel(chirodiff(64, 0.9), SCHEDULE)
    data = representative_data(model, sketches, length=LENGTH, n=5)
    sizes = [
        to_tflite(
            model,
            tmp_path / "model.tflite",
            length=LENGTH,
            quantize=quantize,
            representative=data,
        ).bytes
        for quantize in ("none", "float16", "int8_dynamic", "int8")
    ]
    assert sizes[0] > 1.2 * sizes[1] and sizes[1] > max(sizes[2:])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`structure` blocks of 4 does not fit")
def test_blocks_stay_blocks_in_the_file(tmp_path):
    denoiser = chirodiff(16, 0.9, ksd.sparsity.Blocks(4))
    path = tmp_path / "model.tflite"
    to_tflite(denoiser, path, length=LENGTH)
    # Outputs first: where a kernel has blocks along its inputs, a row of the file has them.
    blocks = {shape: block for shape, block in tensors_of(path)}
    for k in ksd.sparsity.masked_kernels(denoiser):
        if k.target.structure == ksd.sparsity.Blocks(4) and k.target.density < 0.5:
            assert blocks.get(k.kernel.shape[::-1]) == 4
    assert blocks[48, 32] == blocks[48, 16] == blocks[16, 32] == 4


def test_stored_values_are_the_kernel_s_own(tmp_path):
    kernel = np.zeros((32, 8), "float32")
    kernel[8:12, 3] = [1, 2, 3, 4]
    kernel[20:24, 6] = [5, 6, 7, 8]
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(8, use_bias=False)])
    model.layers[0].kernel.assign(kernel)
    to_tflite(model, tmp_path / "model.tflite")
    parsed = flatbuffer.parse((tmp_path / "model.tflite").read_bytes())
    (tensor,) = [t for t in parsed.subgraphs[0].tensors if t.sparsity is not None]
    stored = np.asarray(parsed.buffers[tensor.buffer].data, "uint8").view("float32")
    np.testing.assert_array_equal(stored, [1, 2, 3, 4, 5, 6, 7, 8])
    assert list(tensor.sparsity.blockMap) == [1]
    inputs = tensor.sparsity.dimMetadata[1]
    assert list(inputs.arraySegments.values) == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert list(inputs.arrayIndices.values) == [2, 5]


@pytest.mark.parametrize("quantize", ["none", "float16", "int8_dynamic"])
def test_a_kernel_of_zeros_alone(quantize, tmp_path):
    inputs = keras.Input((32,))
    x = keras.layers.Dense(32, kernel_initializer="zeros", bias_initializer="ones")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(16)(x) + keras.layers.Dense(16)(inputs))
    exported = to_tflite(model, tmp_path / "model.tflite", quantize=quantize, batch_size=16)
    assert exported.largest_difference < 0.1


def test_the_toolkit_sees_our_2_of_4_as_its_own():
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(8)])
    ksd.sparsify(model, 0.5, "uniform", structure=ksd.sparsity.NM(2, 4))
    kernel = tf.constant(model.layers[0].kernel)
    assert pruning_utils.is_pruned_m_by_n(kernel, (2, 4), "C_OUT")
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(8)])
    ksd.sparsify(model, 0.5, "uniform")
    assert not pruning_utils.is_pruned_m_by_n(tf.constant(model.layers[0].kernel), (2, 4))


def test_report_of_what_is_faster():
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, name="first")(inputs)
    x = keras.layers.Conv2D(8, 1, name="pointwise")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(16, name="by_block")(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="single")(x))
    ksd.sparsify(model, 0.5, include=["by_block*"], structure=ksd.sparsity.Blocks(4))
    ksd.sparsify(model, 0.5, include=["first*", "pointwise*", "single*"])
    how = {row.name.split("/")[0]: row.how for row in sparse_inference_report(model)}
    assert how == {
        "first": "stored sparse, multiplied dense",
        "pointwise": "multiplied sparse by XNNPACK, in networks of such layers",
        "by_block": "multiplied by blocks of 4",
        "single": "stored sparse, multiplied dense",
    }


def test_metadata(exported, model):
    facts = read_tflite_metadata(exported.path)
    assert facts == exported.metadata
    assert facts["user"] == {"run": "test"}
    assert facts["kind"] == "sketches" and facts["part"] == "denoiser"
    assert facts["noise_schedule"] == SCHEDULE.get_config()
    assert facts["length"] == LENGTH and facts["batch_size"] == 1
    assert facts["inputs"] == {"points": [1, LENGTH, 3], "t": [1], "lengths": [1]}
    assert facts["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert facts["package"] == ksd.__version__
    # Readable without this package, as for any other tool.
    parsed = flatbuffer.parse(exported.path.read_bytes())
    (entry,) = [m for m in parsed.metadata if m.name == b"keras_sparse_dm"]
    text = bytes(np.asarray(parsed.buffers[entry.buffer].data, "uint8"))
    assert json.loads(text)["part"] == "denoiser"


@pytest.mark.slow
def test_old_name_of_the_part(model, sketches, tmp_path):
    path = tmp_path / "m.tflite"
    with pytest.warns(DeprecationWarning, match="`what` of `to_tflite` is now `part`"):
        facts = to_tflite(model, path, what="denoiser", length=LENGTH, verify=False).metadata
    assert facts["part"] == facts["what"] == "denoiser"
    with pytest.warns(DeprecationWarning, match="`what` of `representative_data` is now `part`"):
        (inputs,) = representative_data(model, sketches, what="denoiser", n=1, length=LENGTH)
    assert len(inputs) == 3
    # Files of version 0.1.0 have the old name only.
    del facts["part"]
    parsed = flatbuffer.parse(path.read_bytes())
    parsed.metadata, parsed.buffers = parsed.metadata[:-1], parsed.buffers[:-1]
    path.write_bytes(flatbuffer.serialize(parsed, facts))
    assert read_tflite_metadata(path)["part"] == "denoiser"


def test_every_altered_byte_is_noticed(exported, tmp_path):
    content = exported.path.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "altered.tflite"
    for place in [4, len(content) - 1, *rng.integers(0, len(content), 40)]:
        altered = bytearray(content)
        altered[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(altered)
        with pytest.raises(ValueError, match="altered.tflite"):
            read_tflite_metadata(path)
    for size in (0, 6, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="altered.tflite"):
            TFLiteDenoiser(path)


# Sampling


def test_files_draw_what_the_model_draws(model, exported, tmp_path):
    lengths = [LENGTH, 5, 12]
    expected = model.generate(lengths=lengths, steps=10, seed=3)
    drawn = generate_from_tflite(exported.path, lengths=lengths, steps=10, seed=3)
    np.testing.assert_allclose(drawn, expected, atol=1e-3)
    assert drawn.dtype == np.float32
    for part in ("sampler_step", "sampler"):
        path = tmp_path / f"{part}.tflite"
        to_tflite(model, path, part=part, steps=10, length=LENGTH, batch_size=2)
        drawn = generate_from_tflite(path, lengths=lengths, seed=3)
        np.testing.assert_allclose(drawn, expected, atol=1e-3)
        with pytest.raises(ValueError, match="`steps` is 10 in"):
            generate_from_tflite(path, lengths=lengths, steps=20)


@pytest.mark.slow
def test_a_step_in_integers(model, sketches, tmp_path):
    arguments = {"part": "sampler_step", "steps": 4, "length": LENGTH}
    data = representative_data(model, sketches, n=12, **arguments)
    assert {int(step) for _, step, _ in data} == {0, 1, 2, 3}
    path = tmp_path / "step.tflite"
    to_tflite(model, path, quantize="int8", representative=data, **arguments)
    lengths = [LENGTH, 11]
    drawn = generate_from_tflite(path, lengths=lengths, seed=1)
    expected = model.generate(lengths=lengths, steps=4, seed=1)
    assert np.abs(drawn - expected).mean() < 0.1 * np.abs(expected).mean()


@pytest.mark.slow
def test_representative_data_are_noised_as_in_training(model, sketches):
    data = representative_data(model, sketches, length=LENGTH, n=300, batch_size=2, seed=1)
    t = np.concatenate([t for _, t, _ in data])
    assert t.min() < 50 and t.max() > 950
    # Pure noise at the last timestep, almost none at the first.
    late = np.concatenate([x[t > 900].ravel() for x, t, _ in data])
    assert late.std() == pytest.approx(1, abs=0.1)
    points, _, lengths = next(item for item in data if item[1].min() < 30)
    clean = [s for s in sketches if len(s) == lengths[0]]
    assert min(np.abs(points[0, : len(s)] - s).mean() for s in clean) < 0.3
    again = representative_data(model, sketches, length=LENGTH, n=300, batch_size=2, seed=1)
    np.testing.assert_array_equal(again[7][0], data[7][0])
    # Longer sketches are cut.
    cut = representative_data(model, sketches, length=5, n=3)
    assert all(x.shape == (1, 5, 3) and lengths == [5] for x, _, lengths in cut)


def test_a_denoiser_in_a_file_serves_the_samplers(model, exported):
    denoise = TFLiteDenoiser(exported.path)
    noise = np.random.default_rng(0).standard_normal((2, LENGTH, 3)).astype("float32")
    lengths = np.array([LENGTH, 9], "int32")

    def in_keras(x, t, lengths):
        return model((x, t, lengths))

    for sample in (
        lambda f: ksd.diffusion.ddim(f, SCHEDULE, noise, 5, context=(lengths,)),
        lambda f: ksd.diffusion.ddim(f, SCHEDULE, noise, 5, eta=0.5, seed=1, context=(lengths,)),
    ):
        np.testing.assert_allclose(sample(denoise), sample(in_keras), atol=1e-3)


@pytest.mark.slow
def test_integers_draw_nearly_the_same(sketches, tmp_path):
    """Compare samples of the int8 and the float file, relative to samples of other noise."""
    model = ksd.diffusion.DiffusionModel(chirodiff(32, 0.5), SCHEDULE, seed=0)
    model.compile(keras.optimizers.AdamW(3e-3))
    points = np.zeros((len(sketches), LENGTH, 3), "float32")
    for row, sketch in zip(points, sketches, strict=True):
        row[: len(sketch)] = sketch
    lengths = np.array([len(s) for s in sketches], "int32")
    callback = ksd.DynamicSparsity("rigl", update_every=20)
    batch = tf.data.Dataset.from_tensors({"points": points, "lengths": lengths}).repeat()
    model.fit(batch, steps_per_epoch=60, verbose=0, callbacks=[callback])

    network, drawn = ksd.metrics.EmbeddedFeatures(), {}
    asked = np.resize(lengths, 64)
    for quantize in ("none", "int8_dynamic", "int8"):
        path = tmp_path / f"{quantize}.tflite"
        data = representative_data(model, sketches, length=LENGTH, n=50)
        options = {"representative": data} if quantize == "int8" else {}
        to_tflite(model, path, length=LENGTH, quantize=quantize, batch_size=1, **options)
        for seed in (0, 1) if quantize == "none" else (0,):
            points = generate_from_tflite(path, lengths=asked, steps=10, seed=seed)
            pictures = ksd.metrics.render_sketches(
                [p[:n] for p, n in zip(points, asked, strict=True)], 64, progress=False
            )
            drawn[quantize, seed] = network(pictures)
    scale = np.mean((drawn["none", 0] - drawn["none", 1]) ** 2)
    for quantize in ("int8_dynamic", "int8"):
        error = np.mean((drawn["none", 0] - drawn[quantize, 0]) ** 2)
        assert error < 0.5 * scale


# Latents and other models


@pytest.fixture(scope="module")
def latent_diffusion():
    keras.utils.set_random_seed(0)
    autoencoder = ksd.models.VQAutoencoder(
        channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4, codes=16
    )
    autoencoder.codebook.assign(np.random.default_rng(0).standard_normal((16, 3)))
    model = ksd.models.LatentDiffusion(
        ksd.models.UNet(model_channels=32, channel_mult=(1, 2), num_res_blocks=1),
        autoencoder,
        ksd.diffusion.NoiseSchedule.scaled_linear(1000),
        image_size=16,
    )
    model.scale_factor.assign(0.7)
    for weight in model.denoiser.trainable_variables:
        # The last layers of blocks start at zero.
        if not np.any(weight):
            weight.assign(0.05 * np.random.default_rng(0).standard_normal(weight.shape))
    ksd.sparsify(model, 0.8, seed=0)
    return model


@pytest.mark.slow
def test_latent_diffusion_from_files(latent_diffusion, tmp_path):
    model = latent_diffusion
    to_tflite(model, tmp_path / "unet.tflite")
    to_tflite(model, tmp_path / "decoder.tflite", part="decoder", batch_size=2)
    arguments = {"n": 3, "steps": 3, "seed": 5}
    images = generate_from_tflite(
        tmp_path / "unet.tflite", decoder=tmp_path / "decoder.tflite", **arguments
    )
    expected = model.generate(**arguments, progress=False)
    assert expected.std() > 0.01
    np.testing.assert_allclose(images, expected, atol=1e-3)
    latents = generate_from_tflite(tmp_path / "unet.tflite", **arguments)
    assert latents.shape == (3, 8, 8, 3)
    facts = read_tflite_metadata(tmp_path / "unet.tflite")
    assert facts["kind"] == "images" and facts["scale_factor"] == pytest.approx(0.7)
    with pytest.raises(ValueError, match="must hold a decoder; it holds part='denoiser'"):
        generate_from_tflite(
            tmp_path / "unet.tflite", decoder=tmp_path / "unet.tflite", **arguments
        )


@pytest.mark.slow
def test_integer_latent_diffusion(latent_diffusion, tmp_path):
    latents = np.random.default_rng(0).standard_normal((6, 8, 8, 3)).astype("float32")
    data = representative_data(latent_diffusion, latents, n=4)
    (x, t), *_ = data
    assert x.shape == (1, 8, 8, 3) and t.shape == (1,)
    sizes = {}
    for sparse in (True, False):
        exported = to_tflite(
            latent_diffusion,
            tmp_path / "unet.tflite",
            quantize="int8",
            sparse=sparse,
            representative=data,
        )
        sizes[sparse] = exported.bytes
        assert exported.largest_difference < 0.5
    assert sizes[True] < 0.75 * sizes[False]


def test_the_decoder_alone(latent_diffusion, tmp_path):
    autoencoder = latent_diffusion.autoencoder
    to_tflite(autoencoder, tmp_path / "decoder.tflite", shape=(4, 4, 3))
    latents = np.asarray(autoencoder.codebook)[:16].reshape(1, 4, 4, 3).astype("float32")
    answer = run_file(tmp_path / "decoder.tflite", "decoder", latents=latents)["images"]
    np.testing.assert_allclose(answer, np.clip(autoencoder.decode(latents), -1, 1), atol=1e-4)
    with pytest.raises(ValueError, match=r"`shape` must be \(height, width, 3\)"):
        to_tflite(autoencoder, tmp_path / "other.tflite", shape=(4, 4, 5))
    with pytest.raises(ValueError, match="give `shape`"):
        to_tflite(autoencoder, tmp_path / "other.tflite")


def small_network():
    images = keras.Input((8, 8, 3), name="images")
    x = keras.layers.Conv2D(32, 3, activation="relu")(images)
    x = keras.layers.DepthwiseConv2D(3)(x)
    x = keras.layers.Conv2D(32, 1)(keras.layers.BatchNormalization()(x))
    x = keras.layers.Flatten()(x)
    place = keras.Input((3,), name="place")
    x = keras.layers.Dense(24, activation="relu")(keras.layers.Concatenate()([x, place]))
    model = keras.Model({"images": images, "place": place}, keras.layers.Dense(5)(x))
    ksd.sparsify(model, 0.8, seed=0)
    return model


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("quantize", ["none", "float16", "int8_dynamic", "int8"])
def test_any_functional_model(quantize, tmp_path):
    model, rng = small_network(), np.random.default_rng(0)
    inputs = {
        "images": rng.standard_normal((2, 8, 8, 3)).astype("float32"),
        "place": rng.standard_normal((2, 3)).astype("float32"),
    }
    sizes = []
    for sparse in (True, False):
        exported = to_tflite(
            model,
            tmp_path / "model.tflite",
            quantize=quantize,
            sparse=sparse,
            batch_size=2,
            representative=[tuple(inputs.values())] * 3,
        )
        sizes.append(exported.bytes)
        answer = run_file(tmp_path / "model.tflite", "model", **inputs)["output"]
        np.testing.assert_allclose(
            answer, model(inputs), atol={"none": 1e-5, "float16": 1e-2}.get(quantize, 0.2)
        )
    assert sizes[0] < 0.85 * sizes[1]


@pytest.mark.slow
def test_a_recurrent_classifier_of_another_kind(tmp_path):
    """The loop is Keras's; only the dense layers compute in integers."""
    model = keras.Sequential(
        [
            keras.Input((None, 5)),
            keras.layers.LSTM(8),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(4),
        ]
    )
    rng = np.random.default_rng(0)
    data = [rng.standard_normal((1, 9, 5)).astype("float32") for _ in range(5)]
    for quantize in ("none", "int8"):
        exported = to_tflite(
            model, tmp_path / "m.tflite", length=9, quantize=quantize, representative=data
        )
        assert exported.largest_difference < {"none": 1e-4, "int8": 0.05}[quantize]


@pytest.mark.slow
def test_integers_of_a_model_that_its_configuration_does_not_restore(tmp_path):
    class Recurrent(keras.layers.GRU):
        def __init__(self, sizes):
            super().__init__(sizes["units"])

        def get_config(self):
            raise NotImplementedError

    model = keras.Sequential([keras.Input((9, 5)), Recurrent({"units": 8}), keras.layers.Dense(4)])
    data = list(np.random.default_rng(0).standard_normal((5, 1, 9, 5)).astype("float32"))
    exported = to_tflite(model, tmp_path / "m.tflite", quantize="int8", representative=data)
    assert exported.largest_difference < 0.05


# Bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"quantize": "int4"}, "`quantize` must be one of none, float16, int8_dynamic, int8"),
        ({"part": "encoder"}, "`part` must be one of denoiser"),
        ({"length": None}, "fixed shapes: give `length`"),
        ({"length": 0}, "`length` must be a whole number"),
        ({"batch_size": 1.5}, "`batch_size` must be a whole number"),
        ({"part": "sampler"}, "needs `steps`"),
        ({"part": "sampler", "steps": 1001}, "`steps` must be a whole number from 1 to 1000"),
        ({"steps": 5}, "`steps` is for the samplers"),
        ({"part": "decoder"}, "needs a LatentDiffusion or a VQAutoencoder"),
        ({"part": "model"}, "functional and Sequential"),
        ({"shape": (3, 3)}, "`shape` is for latents"),
        ({"quantize": "int8"}, "give `representative`"),
        ({"quantize": "int8", "representative": []}, "it is empty"),
        (
            {"quantize": "int8", "representative": [(np.zeros((1, 3, 3)), [1], [1])]},
            r"received one of \[\(1, 3, 3\), \(1,\), \(1,\)\]",
        ),
        (
            {"quantize": "int8", "representative": [()], "part": "sampler", "steps": 2},
            "needs a part that runs once a step",
        ),
        ({"metadata": {"a": object()}}, "`metadata` must be what JSON can write"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(options, message, model, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "convert", lambda *_: pytest.fail("converted"))
    with pytest.raises(ValueError, match=message):
        to_tflite(model, tmp_path / "model.tflite", **{"length": LENGTH, **options})
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_exported(model, tmp_path):
    path = tmp_path / "model.tflite"
    with pytest.raises(ValueError, match="has no weights yet"):
        to_tflite(keras.Sequential([keras.layers.Dense(3)]), path)
    with pytest.raises(ValueError, match="must be a Keras model; received str"):
        to_tflite("model.keras", path)
    images = keras.Input((None, None, 3), name="images")
    flexible = keras.Model(images, keras.layers.Conv2D(2, 3)(images))
    with pytest.raises(ValueError, match=r"'images' of shape .* axes \[1, 2\] are not known"):
        to_tflite(flexible, path)
    with pytest.raises(ValueError, match="folder that exists"):
        to_tflite(model, tmp_path / "nowhere" / "model.tflite", length=LENGTH)
    with pytest.raises(ValueError, match="give `shape`"):
        to_tflite(ksd.models.UNet(model_channels=32, channel_mult=(1,), num_res_blocks=1), path)
    with pytest.raises(ValueError, match="`model` must be a DiffusionModel"):
        representative_data(flexible, [])

    class Fourier(keras.layers.Layer):
        def call(self, x):
            return tf.math.real(tf.signal.fft3d(tf.cast(x, tf.complex64)))

    inputs = keras.Input((4, 4, 4))
    with pytest.raises(ValueError, match="TensorFlow Lite cannot express `part='model'`"):
        to_tflite(keras.Model(inputs, Fourier()(inputs)), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_that_answers_otherwise_is_not_kept(model, tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"earlier")
    monkeypatch.setitem(comparison.TOLERANCES, "none", 1e-12)
    with pytest.raises(ValueError, match="not Keras's: the largest difference is"):
        to_tflite(model, path, length=LENGTH)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]
    # Without the comparison the file is written.
    assert to_tflite(model, path, length=LENGTH, verify=False).largest_difference is None


def test_calls_that_do_not_fit_a_file(exported, tmp_path):
    denoise = TFLiteDenoiser(exported.path)
    points, t, lengths = inputs_of_denoiser(1, LENGTH + 1)
    with pytest.raises(ValueError, match=rf"takes points of shape \(batch_size, {LENGTH}, 3\)"):
        denoise(points, t, lengths)
    with pytest.raises(ValueError, match="takes points, t, lengths; received 2 inputs"):
        denoise(points[:, :LENGTH], t)
    with pytest.raises(ValueError, match=f"at most {LENGTH}, for which"):
        generate_from_tflite(exported.path, lengths=[LENGTH + 1])
    with pytest.raises(ValueError, match="give `lengths` and not `n`"):
        generate_from_tflite(exported.path, n=3)
    with pytest.raises(ValueError, match="numbers of points"):
        generate_from_tflite(exported.path, lengths=[0])
    foreign = tmp_path / "foreign.tflite"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    foreign.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    with pytest.raises(ValueError, match="was not written by this package"):
        read_tflite_metadata(foreign)
    to_tflite(model, tmp_path / "model.tflite")
    with pytest.raises(ValueError, match="cannot sample: it holds part='model'"):
        generate_from_tflite(tmp_path / "model.tflite", n=1)
    with pytest.raises(ValueError, match="must hold a denoiser"):
        TFLiteDenoiser(tmp_path / "model.tflite")


def test_litert_refuses_other_sizes(exported):
    """Shapes are fixed, and a wrong one raises an error."""
    points, t, lengths = inputs_of_denoiser(1, LENGTH + 4)
    with pytest.raises((RuntimeError, ValueError)):
        run_file(exported.path, "denoiser", points=points, t=t, lengths=lengths)
