"""Inception networks: results of the originals, names, files, resizing, pooling, errors."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from keras_sparse_dm.metrics.features import inception
from keras_sparse_dm.metrics.features.inception import InceptionFeatures
from keras_sparse_dm.metrics.features.inception_network import average_pool

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "evaluation.py"


@pytest.fixture(scope="module")
def programs(torch):
    """Return the benchmark module, which has the networks in PyTorch."""
    spec = importlib.util.spec_from_file_location("inception_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def state(reference):
    """Return the weights of the reference results, under torch-fidelity's names."""
    return reference.state_dict("fid.npz")


@pytest.fixture(scope="module")
def answers(reference):
    arrays = reference.arrays("fid.npz")
    arrays["images"] = arrays["images_nchw_uint8"].transpose(0, 2, 3, 1)
    return arrays


@pytest.fixture(scope="module")
def whole(state):
    """Return the whole network."""
    return InceptionFeatures(state)


@pytest.fixture(scope="module")
def stem(state):
    """Return a fast network of only the first convolutions."""
    return InceptionFeatures(state, features=64)


@pytest.fixture(scope="module")
def sketch_state(programs):
    """Return the tensors of a network for sketches as published, with its training parts."""
    network = programs.random_network("quickdraw")
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    tensors["AuxLogits.conv0.conv.weight"] = np.zeros((128, 768, 1, 1), "float32")
    tensors["AuxLogits.fc.bias"] = np.zeros(345, "float32")
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype="uint8")


# Results of the originals


@pytest.mark.slow
@pytest.mark.cases(2)
@pytest.mark.parametrize("tap", [64, "192", 768, 2048])
def test_equals_torch_fidelity(state, answers, whole, stem, tap):
    made = {64: stem, 2048: whole}
    network = made[tap] if tap in made else InceptionFeatures(state, tap)
    features = network(answers["images"])
    expected = answers[f"features_{tap}"]
    assert features.dtype == np.float32
    assert features.shape == expected.shape == (3, network.dimensions)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_classifier_without_its_bias(state, answers):
    network = InceptionFeatures(state, "logits_unbiased")
    expected = answers["features_2048"] @ state["fc.weight"].T
    assert network.dimensions == 1008
    np.testing.assert_allclose(network(answers["images"]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_equals_the_network_for_sketches_in_pytorch(programs, torch, sketch_state):
    # Strokes of every darkness on nearly white paper.
    images = np.random.default_rng(1).integers(231, 256, (2, 64, 48)).astype("uint8")
    images[:, 10:50, 20:23] = random_images(2, 40, 3)
    features = InceptionFeatures(sketch_state)
    with torch.inference_mode():
        network = programs.random_network("quickdraw")
        expected = network(torch.from_numpy(images)[:, None]).numpy()
    scale = np.abs(expected).max()
    assert scale > 0.1
    np.testing.assert_allclose(features(images), expected, rtol=1e-4, atol=1e-5 * scale)
    assert features.kind == "quickdraw"
    assert features.name == "FID-quickdraw" and "no checksum" in features.note
    with pytest.raises(
        ValueError, match=r"must be grey .* received \(1, 8, 8, 3\).*images\[..., 0"
    ):
        features(random_images(1, 8, 8, 3))


# Dependence on images and batches


@pytest.mark.slow
def test_features_do_not_depend_on_the_batch_size(whole):
    images = random_images(5, 24, 30, 3)
    together = whole(images)
    scale = np.abs(together).max()
    for batch_size in (1, 3):
        np.testing.assert_allclose(whole(images, batch_size), together, atol=1e-5 * scale)
    # All calls in this file so far have used one graph.
    assert whole._forward.experimental_get_tracing_count() == 1


def test_iterables_grey_images_and_sizes(stem):
    color, grey = random_images(3, 24, 30, 3), random_images(2, 17, 9)
    separate = np.concatenate([stem(color), stem(grey)])
    assert separate.shape == (5, 64)
    together = stem(iter([color[:1], tf.constant(color[1:]), grey[..., None]]), batch_size=2)
    np.testing.assert_allclose(together, separate, rtol=1e-5)
    np.testing.assert_array_equal(stem(grey), stem(np.stack([grey] * 3, axis=-1)))
    assert stem._forward.experimental_get_tracing_count() == 1


def test_progress_is_shown_on_request(stem, capsys):
    stem(random_images(3, 8, 8), batch_size=2)
    assert capsys.readouterr().err == ""
    stem(random_images(3, 8, 8), batch_size=2, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_the_fingerprint_tells_what_gives_other_features_apart(state, stem):
    counters = {n: t for n, t in state.items() if n.endswith("num_batches_tracked")}
    others = {n: t + 1 for n, t in counters.items()}
    # The fully connected layer lies behind the features.
    others |= {"fc.weight": state["fc.weight"] + 1}
    assert InceptionFeatures(state | others, 64).fingerprint == stem.fingerprint
    changed = {"Conv2d_2b_3x3.bn.bias": state["Conv2d_2b_3x3.bn.bias"] + np.float32(1e-6)}
    prints = {InceptionFeatures(tensors, tap).fingerprint for tensors, tap in (
        (state, 64), (state, 192), (state | changed, 64)
    )}  # fmt: skip
    assert len(prints) == 3 and stem.fingerprint in prints


# Files and names


def as_pytorch_fid_wraps(state):
    """Return the tensors under pytorch-fid's names, without the classifier."""
    blocks = [
        ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", None],
        ["Conv2d_3b_1x1", "Conv2d_4a_3x3", None],
        [f"Mixed_{part}" for part in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e")],
        ["Mixed_7a", "Mixed_7b", "Mixed_7c", None],
    ]
    places = {
        part: f"blocks.{block}.{number}"
        for block, parts in enumerate(blocks)
        for number, part in enumerate(parts)
    }
    return {
        f"{places[part]}.{rest}": tensor
        for name, tensor in state.items()
        for part, _, rest in [name.partition(".")]
        if part != "fc"
    }


@pytest.mark.cases(1)
@pytest.mark.parametrize("wrap", [dict, as_pytorch_fid_wraps], ids=["plain", "pytorch-fid"])
@pytest.mark.parametrize("zipped", [True, False])
def test_reads_pytorch_files_of_both_namings(tmp_path, torch, state, stem, whole, wrap, zipped):
    path = tmp_path / "weights.pth"
    content = {name: torch.from_numpy(np.array(t)) for name, t in wrap(state).items()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert InceptionFeatures(path).fingerprint == whole.fingerprint
    features = InceptionFeatures(str(path), 64, kind="fid")
    assert features.fingerprint == stem.fingerprint
    images = random_images(1, 20, 20, 3)
    np.testing.assert_array_equal(features(images), stem(images))


@pytest.mark.slow
def test_only_the_published_file_gives_fid(tmp_path, state, monkeypatch):
    path = tmp_path / "weights-inception-2015-12-05-6726825d.safetensors"
    save_file(state, path)
    # A file's name does not identify its contents.
    features = InceptionFeatures(path)
    assert features.name == "FD-inception" and "do not come from the published" in features.note
    assert InceptionFeatures(state, 768).name == "FD-inception-768"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "FID_FILE_SHA256", digest)
    features = InceptionFeatures(path)
    assert (features.name, features.note, features.dimensions) == ("FID", None, 2048)
    features = InceptionFeatures(path, features=64)
    assert features.name == "FD-inception-64" and "other features" in features.note


@pytest.mark.parametrize("kind", ["fid", "quickdraw"])
def test_says_where_weights_are(kind):
    text = inception.where_to_get(kind)
    assert "https://" in text and "not FID" in text
    with pytest.raises(ValueError, match="`kind` must be one of fid, quickdraw; received 'vgg'"):
        inception.where_to_get("vgg")


# Resizing and pooling


def slow_resize(image, size, half_pixel_centers):
    """Resize bilinearly, value by value, in float64."""
    height, width, channels = image.shape
    resized = np.empty((size, size, channels))

    def place(index, length):
        if half_pixel_centers:
            position = max((index + 0.5) * length / size - 0.5, 0.0)
        else:
            position = index * length / size
        before = int(np.floor(position))
        return before, min(before + 1, length - 1), position - before

    for i in range(size):
        top, bottom, down = place(i, height)
        for j in range(size):
            left, right, across = place(j, width)
            for c in range(channels):
                upper = (1 - across) * image[top, left, c] + across * image[top, right, c]
                lower = (1 - across) * image[bottom, left, c] + across * image[bottom, right, c]
                resized[i, j, c] = (1 - down) * upper + down * lower
    return resized


@pytest.mark.parametrize("half_pixel_centers", [False, True])
@pytest.mark.parametrize("shape", [(7, 12), (29, 29), (64, 40), (1, 2)])
def test_resizes_like_the_definition(shape, half_pixel_centers):
    images = random_images(2, *shape, 3).astype("float32")
    axes = [inception.interpolation(size, 29, half_pixel_centers) for size in shape]
    resized = np.asarray(inception.resize(images, *axes))
    expected = np.stack([slow_resize(image, 29, half_pixel_centers) for image in images])
    np.testing.assert_allclose(resized, expected, atol=1e-3)
    if not half_pixel_centers:
        theirs = tf.compat.v1.image.resize_bilinear(images, (29, 29), align_corners=False)
        np.testing.assert_allclose(resized, theirs, atol=1e-4)


@pytest.mark.parametrize("counts_padding", [False, True])
def test_average_pooling_at_the_border(counts_padding):
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 2)).astype("float32")
    expected = np.empty_like(x)
    for i in range(4):
        for j in range(5):
            seen = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            count = 9 if counts_padding else seen.shape[0] * seen.shape[1]
            expected[0, i, j] = seen.sum(axis=(0, 1)) / count
    pooled = np.asarray(average_pool(x, counts_padding))
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


# Errors


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), "float32"), r"must be uint8.* received float32\. Convert .*127\.5"),
        (np.zeros((2, 8, 8, 3), "int64"), "must be uint8.* received int64"),
        (random_images(8, 8, 3), r"received \(8, 8, 3\)\. For one image pass image\[None\]"),
        (random_images(2, 3, 8, 8), r"received \(2, 3, 8, 8\).* np\.moveaxis\(images, 1, -1\)"),
        (random_images(2, 8, 8, 4), r"must be of shape .* received \(2, 8, 8, 4\)"),
        (random_images(0, 8, 8, 3), r"n 1 or more; received \(0, 8, 8, 3\)"),
        ([], "must hold one image or more; received none"),
        ([random_images(8, 8, 3)], r"received \(8, 8, 3\)"),
        (7, "a uint8 array or an iterable of such arrays; received int"),
    ],
)
def test_refuses_images(stem, images, message):
    with pytest.raises(ValueError, match=f"`images` .*{message}"):
        stem(images)


def test_refuses_arguments(stem, state):
    with pytest.raises(ValueError, match="`batch_size` must be .*, 1 or more; received 0"):
        stem(random_images(1, 8, 8), batch_size=0)
    with pytest.raises(ValueError, match="`features` must be one of 64, 192.*; received 128"):
        InceptionFeatures(state, 128)
    with pytest.raises(ValueError, match="`kind` must be one of fid, quickdraw; received 'vgg'"):
        InceptionFeatures(state, kind="vgg")
    with pytest.raises(ValueError, match="needs the classifier fc.weight"):
        InceptionFeatures({n: t for n, t in state.items() if n[:3] != "fc."}, "logits_unbiased")


def without(state, name):
    return {n: t for n, t in state.items() if n != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "Mixed_6c.branch_pool.bn.bias"), "missing: Mixed_6c.branch_pool.bn"),
        # Only the first convolution.
        (
            lambda s: {"Conv2d_1a_3x3.conv.weight": s["Conv2d_1a_3x3.conv.weight"]},
            "missing: Conv2d_1a_3x3.bn.weight, .* and 465 more",
        ),
        (lambda s: s | {"Mixed_8a.conv.weight": s["fc.bias"]}, "unknown: Mixed_8a.conv.weight"),
        # torchvision's network for photographs.
        (
            lambda s: s | {"fc.weight": np.zeros((1000, 2048)), "AuxLogits.fc.bias": np.zeros(9)},
            r"wrong shape: fc.weight \(1000, 2048\), not \(1008, 2048\); unknown: AuxLogits",
        ),
        (
            lambda s: s | {"Conv2d_1a_3x3.conv.weight": np.zeros((32, 1, 3, 3))},
            r"the 'quickdraw' .*fc.weight \(1008, 2048\), not \(345, 2048\)",
        ),
        (lambda s: {"conv1.weight": s["fc.bias"]}, "with a tensor .*; it holds conv1.weight"),
        (lambda s: {}, "it holds nothing"),
        (
            lambda s: s | {"Conv2d_2a_3x3.bn.running_var": np.full(32, -1.0)},
            "variances of 0 or more; Conv2d_2a_3x3.bn.running_var holds others",
        ),
        (
            lambda s: s | {"Mixed_7c.branch1x1.bn.bias": np.full(320, np.nan)},
            "finite weights .*; Mixed_7c.branch1x1.bn.bias holds others",
        ),
    ],
)
def test_refuses_other_networks(state, change, message):
    with pytest.raises(ValueError, match=f"`path`.*{message}"):
        InceptionFeatures(change(state))


def test_refuses_files_without_a_network(tmp_path, state):
    with pytest.raises(ValueError, match="`path` must be an existing file.*received .*none.pth"):
        InceptionFeatures(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no network")
    with pytest.raises(ValueError, match="`path` must be a PyTorch file .*text.pth"):
        InceptionFeatures(tmp_path / "text.pth")
    with pytest.raises(ValueError, match=r"the 'quickdraw' .*not \(32, 1, 3, 3\).*DoodlerGAN"):
        InceptionFeatures(state, kind="quickdraw")
