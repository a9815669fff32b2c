"""Features of images from two published Inception networks, for the Fréchet distance.

Both are Inception v3 (Szegedy et al. 2016). Their authors publish the weights; this package does
not include them, and `where_to_get` says where to find them:

- "fid": TensorFlow's network of 2015, which defines FID (Heusel et al. 2017), with the tensor names
  of torch-fidelity and pytorch-fid. Two pooling layers differ from the published architecture.
- "quickdraw": a network trained on QuickDraw drawings (Ge et al. 2020, DoodlerGAN), for sketches.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from keras import ops
from tqdm import tqdm

from keras_sparse_dm.checks import one_of, whole_number
from keras_sparse_dm.compiled import compiled
from keras_sparse_dm.convert.plan import as_float32
from keras_sparse_dm.metrics.features.inception_network import KINDS, run_steps
from keras_sparse_dm.metrics.features.inception_weights import (
    EPSILON,
    fold_batch_norms,
    load_network,
)

IMAGE_SIZE = 299
# Names of the features, in the order of the network's layers.
TAPS = ("64", "192", "768", "2048", "logits_unbiased")
# SHA-256 of TensorFlow's weights; torch-fidelity and pytorch-fid publish the same file.
FID_FILE_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def where_to_get(kind="fid"):
    """Return a sentence that says where a network's weights are and what replaces them.

    Args:
        kind: `"fid"` or `"quickdraw"`.

    Raises:
        ValueError: for another kind.
    """
    return (
        f"{_kind_of(kind).sources}. Without it, features come from this package's embedded "
        "network; their distances have another scale and are not FID."
    )


def _kind_of(kind):
    one_of("`kind`", kind, KINDS)
    return KINDS[kind]


class InceptionFeatures:
    """Features of images from an Inception network whose weights are in a file.

    For "fid", images are resized to 299x299 as TensorFlow 1 does and scaled to (x - 128) / 128. The
    network's average pooling does not count the padding, and its last block uses max pooling. The
    features agree with torch-fidelity's.

    For "quickdraw", images are grey, with dark strokes on white paper. They become 1 - x / 255,
    values below 0.1 become 0, and the result is resized to 299x299 as PyTorch does, without
    cropping. The network is torchvision's Inception v3 with one channel and 345 classes.
    Preprocessing and network follow DoodlerGAN's evaluation program; they have not been compared
    with outputs of its trained network.

    Args:
        path: Path of a PyTorch file or a `.safetensors` file, or `{tensor name: array}`. PyTorch
            files need the `convert` extra; code in them never runs. Tensor names are those of
            torch-fidelity, pytorch-fid and torchvision, with or without a prefix, or those of
            pytorch-fid's wrapper (`blocks.0.0`). See `where_to_get`.
        features: 64, 192 or 768 (means over the positions of inner layers), 2048 (the usual
            features) or `"logits_unbiased"` (the classifier's outputs without its bias).
        kind: `"fid"`, `"quickdraw"`, or None to recognize the network by its tensors.

    Attributes:
        name: Name of a Fréchet distance of these features: `"FID"` for the 2048 features of
            TensorFlow's published file (recognized by its SHA-256), `"FID-quickdraw"` for those
            of a network with the structure that Ge et al. publish, otherwise `"FD-inception"` or
            `"FD-quickdraw"`, followed by the features if they are not the usual ones.
        note: Remark to print with the name, or None.
        kind: `"fid"` or `"quickdraw"`.
        dimensions: Number of features.
        fingerprint: 20 hexadecimal digits that change with weights, features and preprocessing,
            but not with the tensors' names in the file.

    Call arguments:
        images: uint8 array (n, height, width, 3), (n, height, width, 1) or (n, height, width),
            all axes 1 or longer; or an iterable of such arrays, whose sizes may differ. For
            `"fid"`, grey images are repeated over three channels; `"quickdraw"` takes grey images
            only.
        batch_size: Images per call of the network, 1 or more; does not change the features.
        progress: Whether to show a progress bar.

    Returns:
        Float32 array (images, dimensions).

    Raises:
        ValueError: for unknown features or kinds, for a file that does not hold the network, and,
            in calls, for images of another type or shape.
        ImportError: if reading the file needs a package that is not installed.

    Example:

    >>> features = InceptionFeatures("weights-inception-2015-12-05-6726825d.pth")
    >>> frechet_distance(features(real_images), features(generated_images))
    """

    def __init__(self, path, features=2048, kind=None):
        tap = str(features)
        if tap not in TAPS:
            raise ValueError(f"`features` must be one of {', '.join(TAPS)}; received {features!r}.")
        if kind is not None:
            _kind_of(kind)
        self.kind, tensors = load_network(path, kind)
        self.features = tap
        shapes = KINDS[self.kind].shapes(tap)
        if tap == "logits_unbiased" and "fc.weight" not in tensors:
            raise ValueError(
                "`features='logits_unbiased'` needs the classifier fc.weight, which `path` lacks."
            )
        tensors = {name: as_float32(tensors[name]) for name in shapes}
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all() or (name.endswith("running_var") and tensor.min() < 0):
                raise ValueError(
                    "`path` must hold finite weights and variances of 0 or more; "
                    f"{name} holds others."
                )
        classifier = tensors["fc.weight"].T if tap == "logits_unbiased" else None
        self.dimensions = int(tap) if classifier is None else classifier.shape[1]
        self.fingerprint = _fingerprint(self.kind, tap, tensors)
        self.name, self.note = _name_and_note(path, self.kind, tap)
        self._forward = _forward(self.kind, fold_batch_norms(tensors), classifier, tap)

    def __call__(self, images, batch_size=32, progress=False):
        batch_size = whole_number("`batch_size`", batch_size, 1)
        if not isinstance(images, Iterable):
            raise ValueError(
                "`images` must be a uint8 array or an iterable of such arrays; received "
                f"{type(images).__name__}."
            )
        total = None
        if hasattr(images, "shape"):
            images = [self._checked(images)]
            total = len(images[0])
        features = []
        with tqdm(total=total, desc=self.name, unit=" images", disable=not progress) as bar:
            for batch in images:
                batch = self._checked(batch)
                rows, columns = (
                    interpolation(size, IMAGE_SIZE, self.kind == "quickdraw")
                    for size in batch.shape[1:3]
                )
                for begin in range(0, len(batch), int(batch_size)):
                    part = batch[begin : begin + int(batch_size)]
                    if part.shape[-1] < KINDS[self.kind].image_channels:
                        part = np.repeat(part, KINDS[self.kind].image_channels, axis=-1)
                    features.append(ops.convert_to_numpy(self._forward(part, *rows, *columns)))
                    bar.update(len(part))
        if not features:
            raise ValueError("`images` must hold one image or more; received none.")
        return np.concatenate(features)

    def _checked(self, images):
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise ValueError(
                "`images` must be uint8, from 0 to 255; received "
                f"{images.dtype}. Convert images in [-1, 1] by np.clip(np.round(127.5 * (images + "
                '1)), 0, 255).astype("uint8"), images in [0, 1] by np.clip(np.round(255 * images), '
                '0, 255).astype("uint8").'
            )
        # A last axis of 1 or 3 is a single image's channels, which the next check refuses.
        if images.ndim == 3 and images.shape[-1] not in (1, 3):
            images = images[..., None]
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
            raise ValueError(
                "`images` must be of shape (n, height, width, 3), (n, height, width, 1) or "
                f"(n, height, width), with n 1 or more; received {images.shape}. For one image "
                "pass image[None]; to move channels last use np.moveaxis(images, 1, -1)."
            )
        if KINDS[self.kind].image_channels == 1 and images.shape[-1] == 3:
            raise ValueError(
                f"`images` must be grey for the network {self.kind!r}, of shape (n, height, width) "
                f"or (n, height, width, 1); received {images.shape}. For grey images "
                "stored in colour pass images[..., 0]."
            )
        return images


def _forward(kind, weights, classifier, tap):
    """Return the compiled function from uint8 images to features."""
    kind = KINDS[kind]

    def features(images, *interpolations):
        rows, columns = interpolations[:3], interpolations[3:]
        x = ops.cast(images, "float32")
        if kind.image_channels == 1:
            # The network takes light strokes on black; values below 0.1 count as paper.
            x = 1 - x / 255
            x = resize(ops.where(x < 0.1, 0.0, x), rows, columns)
        else:
            x = (resize(x, rows, columns) - 128) / 128
        for stage, steps in kind.stages.items():
            x = run_steps(steps, x, weights, kind.counts_padding)
            if stage == tap:
                break
        x = ops.mean(x, axis=(1, 2))
        return x if classifier is None else ops.matmul(x, classifier)

    # Weights are constants of the graph, so their layout is converted for the processor once.
    # Image sizes are left open, so one graph serves all images.
    shapes = ((None, None, None, kind.image_channels), *[(IMAGE_SIZE,)] * 6)
    dtypes = ("uint8", *["int32", "int32", "float32"] * 2)
    return compiled(features, shapes=shapes, dtypes=dtypes)


def interpolation(size, new_size, half_pixel_centers):
    """Return the positions and weights that linear interpolation of one axis uses.

    Args:
        size: Length of the axis, 1 or more.
        new_size: Length after resizing.
        half_pixel_centers: True to place pixels at their centres, as PyTorch does with
            `align_corners=False`; False to place them at their left edges, as TensorFlow 1 did.

    Returns:
        Three arrays of length `new_size`: the position before and the position after, int32,
        and the weight of the latter, float32.
    """
    # Both original programs use float32; in float64 the weights differ in the sixth digit.
    scale = np.float32(size) / np.float32(new_size)
    positions = np.arange(new_size, dtype="float32")
    if half_pixel_centers:
        positions = np.maximum((positions + np.float32(0.5)) * scale - np.float32(0.5), 0)
    else:
        positions = positions * scale
    before = np.minimum(np.floor(positions).astype("int32"), size - 1)
    return before, np.minimum(before + 1, size - 1), (positions - before).astype("float32")


def resize(images, rows, columns):
    """Resize images bilinearly.

    Args:
        images: Float tensor (n, height, width, channels).
        rows, columns: Results of `interpolation` for the height and the width.
    """
    for axis, (before, after, share) in ((2, columns), (1, rows)):
        share = ops.reshape(share, (-1, 1) if axis == 2 else (-1, 1, 1))
        low = ops.take(images, before, axis=axis)
        images = low + (ops.take(images, after, axis=axis) - low) * share
    return images


def _fingerprint(kind, tap, tensors):
    details = KINDS[kind]
    digest = hashlib.sha256()
    structure = [1, kind, tap, details.counts_padding, details.last_pooling, EPSILON, IMAGE_SIZE]
    digest.update(json.dumps(structure).encode())
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()[:20]


def _name_and_note(path, kind, tap):
    """Return the name of a Fréchet distance of the features, and a remark or None."""
    ending = "" if tap == "2048" else f"-{tap}"
    if kind == "quickdraw":
        if ending:
            return f"FD-quickdraw{ending}", "Published distances use other features."
        return (
            "FID-quickdraw",
            "The network has the structure that Ge et al. publish; no checksum of their file is "
            "known, so it may be another network.",
        )
    if not isinstance(path, Mapping):
        with open(Path(path), "rb") as file:
            published = hashlib.file_digest(file, "sha256").hexdigest() == FID_FILE_SHA256
        if published:
            if ending:
                return f"FD-inception{ending}", "FID uses other features."
            return "FID", None
    return (
        f"FD-inception{ending}",
        "The network has the structure that FID uses; its weights do not come from the published "
        "file, so they may differ.",
    )
