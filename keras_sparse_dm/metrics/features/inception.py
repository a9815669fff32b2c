"""Features of images by two published Inception networks, for the Fréchet distance.

Both are Inception v3 (Szegedy et al. 2016) with weights that their authors publish and this
project does not hold; `where_to_get` says where they are:

- "fid": TensorFlow's of 2015, by which FID is defined (Heusel et al. 2017), with the tensor names
  of torch-fidelity and pytorch-fid. It differs from the paper's network in two pooling layers.
- "quickdraw": trained on the drawings of QuickDraw (Ge et al. 2020, DoodlerGAN), by which sketches
  are measured.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from keras import ops
from tqdm import tqdm

from keras_sparse_dm.convert.plan import as_float32
from keras_sparse_dm.convert.tensor_files import read_tensors

IMAGE_SIZE = 299
EPSILON = 1e-3
# The features' names, in the order in which the network comes by them.
TAPS = ("64", "192", "768", "2048", "logits_unbiased")
# SHA-256 of the file of TensorFlow's weights. torch-fidelity and pytorch-fid publish the same file.
FID_FILE_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

# How many problems of each kind an error names.
_NAMED = 4
_FIRST = "Conv2d_1a_3x3"


# The network's structure -----------------------------------------------------------------


@dataclass(frozen=True)
class _Convolution:
    """A convolution without bias, then a batch norm, then ReLU; maybe pooling before it."""

    name: str
    channels: int
    size: tuple = (1, 1)
    stride: int = 1
    padding: str = "same"
    # "average" or "max" of 3x3 positions, in steps of 1.
    pooling: str | None = None


# Besides convolutions a network has the maximum of 3x3 positions in steps of 2, and tuples of
# branches, sequences of steps whose results are concatenated.
_HALVE = "halve"
_3, _5 = (3, 3), (5, 5)


def _stem():
    return [
        [
            _Convolution(_FIRST, 32, _3, 2, "valid"),
            _Convolution("Conv2d_2a_3x3", 32, _3, padding="valid"),
            _Convolution("Conv2d_2b_3x3", 64, _3),
            _HALVE,
        ],
        [
            _Convolution("Conv2d_3b_1x1", 80),
            _Convolution("Conv2d_4a_3x3", 192, _3, padding="valid"),
            _HALVE,
        ],
    ]


def _block_of_35(name, pooled):
    return (
        [_Convolution(f"{name}.branch1x1", 64)],
        [_Convolution(f"{name}.branch5x5_1", 48), _Convolution(f"{name}.branch5x5_2", 64, _5)],
        [
            _Convolution(f"{name}.branch3x3dbl_1", 64),
            _Convolution(f"{name}.branch3x3dbl_2", 96, _3),
            _Convolution(f"{name}.branch3x3dbl_3", 96, _3),
        ],
        [_Convolution(f"{name}.branch_pool", pooled, pooling="average")],
    )


def _block_from_35_to_17(name):
    return (
        [_Convolution(f"{name}.branch3x3", 384, _3, 2, "valid")],
        [
            _Convolution(f"{name}.branch3x3dbl_1", 64),
            _Convolution(f"{name}.branch3x3dbl_2", 96, _3),
            _Convolution(f"{name}.branch3x3dbl_3", 96, _3, 2, "valid"),
        ],
        [_HALVE],
    )


def _block_of_17(name, inner):
    row, column = (1, 7), (7, 1)
    return (
        [_Convolution(f"{name}.branch1x1", 192)],
        [
            _Convolution(f"{name}.branch7x7_1", inner),
            _Convolution(f"{name}.branch7x7_2", inner, row),
            _Convolution(f"{name}.branch7x7_3", 192, column),
        ],
        [
            _Convolution(f"{name}.branch7x7dbl_1", inner),
            _Convolution(f"{name}.branch7x7dbl_2", inner, column),
            _Convolution(f"{name}.branch7x7dbl_3", inner, row),
            _Convolution(f"{name}.branch7x7dbl_4", inner, column),
            _Convolution(f"{name}.branch7x7dbl_5", 192, row),
        ],
        [_Convolution(f"{name}.branch_pool", 192, pooling="average")],
    )


def _block_from_17_to_8(name):
    return (
        [
            _Convolution(f"{name}.branch3x3_1", 192),
            _Convolution(f"{name}.branch3x3_2", 320, _3, 2, "valid"),
        ],
        [
            _Convolution(f"{name}.branch7x7x3_1", 192),
            _Convolution(f"{name}.branch7x7x3_2", 192, (1, 7)),
            _Convolution(f"{name}.branch7x7x3_3", 192, (7, 1)),
            _Convolution(f"{name}.branch7x7x3_4", 192, _3, 2, "valid"),
        ],
        [_HALVE],
    )


def _block_of_8(name, pooling):
    def row_beside_column(branch):
        return (
            [_Convolution(f"{name}.{branch}a", 384, (1, 3))],
            [_Convolution(f"{name}.{branch}b", 384, (3, 1))],
        )

    return (
        [_Convolution(f"{name}.branch1x1", 320)],
        [_Convolution(f"{name}.branch3x3_1", 384), row_beside_column("branch3x3_2")],
        [
            _Convolution(f"{name}.branch3x3dbl_1", 448),
            _Convolution(f"{name}.branch3x3dbl_2", 384, _3),
            row_beside_column("branch3x3dbl_3"),
        ],
        [_Convolution(f"{name}.branch_pool", 192, pooling=pooling)],
    )


@dataclass(frozen=True)
class _Kind:
    """What one of the two networks has of its own.

    Attributes:
        image_channels: Channels of the images that it sees.
        classes: Classes that it was trained to tell apart.
        counts_padding: Whether its average pooling counts the zeros beyond the border.
        last_pooling: Pooling in its last block.
        sources: Who publishes the weights, where.
        ignored: Beginnings of the names of tensors that features do not depend on.
    """

    image_channels: int
    classes: int
    counts_padding: bool
    last_pooling: str
    sources: str
    ignored: tuple = ()

    @functools.cached_property
    def stages(self):
        """The steps up to each tap that is a mean over positions: `{tap: steps}`."""
        stem_64, stem_192 = _stem()
        return {
            "64": stem_64,
            "192": stem_192,
            "768": [
                _block_of_35("Mixed_5b", 32),
                _block_of_35("Mixed_5c", 64),
                _block_of_35("Mixed_5d", 64),
                _block_from_35_to_17("Mixed_6a"),
                _block_of_17("Mixed_6b", 128),
                _block_of_17("Mixed_6c", 160),
                _block_of_17("Mixed_6d", 160),
                _block_of_17("Mixed_6e", 192),
            ],
            "2048": [
                _block_from_17_to_8("Mixed_7a"),
                _block_of_8("Mixed_7b", "average"),
                _block_of_8("Mixed_7c", self.last_pooling),
            ],
        }

    def shapes(self, tap="logits_unbiased"):
        """`{tensor name: shape}` of the weights up to a tap, in PyTorch's layout."""
        shapes, channels = {}, self.image_channels
        for stage, steps in self.stages.items():
            channels = _collect_shapes(steps, channels, shapes)
            if stage == tap:
                return shapes
        return shapes | {"fc.weight": (self.classes, channels)}


def _collect_shapes(steps, channels, shapes):
    """Adds the steps' tensors to `shapes`; returns the number of channels behind them."""
    for step in steps:
        if isinstance(step, _Convolution):
            shapes[f"{step.name}.conv.weight"] = (step.channels, channels, *step.size)
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{step.name}.bn.{part}"] = (step.channels,)
            channels = step.channels
        elif step != _HALVE:
            channels = sum(_collect_shapes(branch, channels, shapes) for branch in step)
    return channels


KINDS = {
    "fid": _Kind(
        image_channels=3,
        classes=1008,
        counts_padding=False,
        last_pooling="max",
        sources=(
            "FID needs the weights of TensorFlow's Inception network of 2015, one file of 96 MB "
            "that torch-fidelity publishes as https://github.com/toshas/torch-fidelity/releases/"
            "download/v0.2.0/weights-inception-2015-12-05-6726825d.pth and pytorch-fid as "
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
            "pt_inception-2015-12-05-6726825d.pth"
        ),
    ),
    "quickdraw": _Kind(
        image_channels=1,
        classes=345,
        counts_padding=True,
        last_pooling="average",
        sources=(
            "The FID of sketches needs the weights of the Inception network trained on QuickDraw "
            "by Ge et al. (2020), the file inception/85.pt in the archive of models that "
            "https://github.com/facebookresearch/DoodlerGAN links to "
            "(https://drive.google.com/drive/folders/14ZywlSE-khagmSz23KKFbLCQLoMOxPzl)"
        ),
        # Helps training only.
        ignored=("AuxLogits.",),
    ),
}


def where_to_get(kind="fid"):
    """Text that says which file holds a network's weights, and what is used without it.

    Args:
        kind: `"fid"` or `"quickdraw"`.
    """
    return (
        f"{_kind_of(kind).sources}. Without it features come from this project's own embedded "
        "network; their distances are on another scale and are not FID."
    )


def _kind_of(kind):
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}; received {kind!r}.")
    return KINDS[kind]


# Weights ----------------------------------------------------------------------------------


def _load(path, kind):
    """Reads and checks a network: its kind and `{tensor name: tensor}`, in the plain names."""
    if isinstance(path, Mapping):
        source, tensors = "`path`", dict(path)
    else:
        source = f"`path` {path}"
        try:
            tensors = read_tensors(path)
        except ValueError as error:
            raise ValueError(str(error).replace("`source`", "`path`")) from None
    tensors = _plain_names(tensors, source)
    if kind is None:
        shape = tuple(tensors[f"{_FIRST}.conv.weight"].shape)
        kind = "quickdraw" if len(shape) == 4 and shape[1] == 1 else "fid"
    expected = KINDS[kind].shapes()
    found = {name: tensors[name] for name in expected if name in tensors}
    problems = {
        "of another shape": [
            f"{name} {tuple(tensor.shape)}, not {expected[name]}"
            for name, tensor in found.items()
            if tuple(tensor.shape) != expected[name]
        ],
        # The classifier follows the features, and not all have kept it.
        "missing": [name for name in expected if name not in found and name != "fc.weight"],
        "unknown": [
            name
            for name in tensors
            if name not in expected
            and name != "fc.bias"
            and not name.endswith(".num_batches_tracked")
            and not name.startswith(KINDS[kind].ignored)
        ],
    }
    problems = [
        f"{title}: {', '.join(names[:_NAMED])}"
        + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for title, names in problems.items()
        if names
    ]
    if problems:
        raise ValueError(
            f"{source} must hold the {kind!r} Inception network and nothing else. Tensors "
            f"{'; '.join(problems)}. {KINDS[kind].sources}."
        )
    return kind, found


def _plain_names(tensors, source):
    """The same tensors without what a program that wraps the network puts before their names."""
    for first, rename in (
        (f"{_FIRST}.conv.weight", lambda name: name),
        ("blocks.0.0.conv.weight", _name_of_wrapped),
    ):
        prefixes = [name.removesuffix(first) for name in tensors if name.endswith(first)]
        if prefixes:
            prefix = min(prefixes, key=len)
            return {rename(name.removeprefix(prefix)): t for name, t in tensors.items()}
    raise ValueError(
        f"{source} must hold an Inception network, with a tensor {_FIRST}.conv.weight; it holds "
        f"{', '.join(list(tensors)[:_NAMED]) or 'nothing'}."
    )


# What pytorch-fid's own class calls the parts: blocks, each ending in a tap.
_WRAPPED = (
    (_FIRST, "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    ("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    tuple(f"Mixed_{part}" for part in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e")),
    ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)


def _name_of_wrapped(name):
    for block, parts in enumerate(_WRAPPED):
        for number, part in enumerate(parts):
            beginning = f"blocks.{block}.{number}."
            if name.startswith(beginning):
                return f"{part}.{name.removeprefix(beginning)}"
    return name


def _folded(tensors):
    """Convolutions that batch norms are folded into: `{name: (kernel, bias)}`."""
    weights = {}
    for name in tensors:
        name, is_convolution, _ = name.partition(".conv.weight")
        if not is_convolution:
            continue
        kernel, gamma, beta, mean, variance = (
            tensors[f"{name}.{part}"].astype("float64")
            for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        scale = gamma / np.sqrt(variance + EPSILON)
        # (out, in, height, width) there, (height, width, in, out) here.
        kernel = kernel.transpose(2, 3, 1, 0) * scale
        bias = beta - mean * scale
        weights[name] = kernel.astype("float32"), bias.astype("float32")
    return weights


# Resizing ---------------------------------------------------------------------------------


def interpolation(size, new_size, half_pixel_centers):
    """Which positions a linearly resized axis mixes, and how.

    Args:
        size: Length of the axis, 1 or more.
        new_size: Its length after resizing.
        half_pixel_centers: Whether positions are counted at the pixels' centres, as PyTorch
            does with `align_corners=False`, or at their beginnings, as TensorFlow 1 did.

    Returns:
        Arrays of `new_size`: the positions before and after, int32, and the share of the
        latter, float32.
    """
    # In float32, as both programs: in float64 shares would differ in the sixth digit.
    scale = np.float32(size) / np.float32(new_size)
    positions = np.arange(new_size, dtype="float32")
    if half_pixel_centers:
        positions = np.maximum((positions + np.float32(0.5)) * scale - np.float32(0.5), 0)
    else:
        positions = positions * scale
    before = np.minimum(np.floor(positions).astype("int32"), size - 1)
    return before, np.minimum(before + 1, size - 1), (positions - before).astype("float32")


def resize(images, rows, columns):
    """Bilinear resizing of float images (n, height, width, channels).

    Args:
        images: The images.
        rows, columns: What `interpolation` returns for the height and the width.
    """
    for axis, (before, after, share) in ((2, columns), (1, rows)):
        share = ops.reshape(share, (-1, 1) if axis == 2 else (-1, 1, 1))
        low = ops.take(images, before, axis=axis)
        images = low + (ops.take(images, after, axis=axis) - low) * share
    return images


# Running ----------------------------------------------------------------------------------


def _average_pool(x, counts_padding):
    if counts_padding:
        x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return ops.average_pool(
        x, 3, 1, "valid" if counts_padding else "same", data_format="channels_last"
    )


def _run(steps, x, weights, counts_padding):
    for step in steps:
        if isinstance(step, _Convolution):
            x = _convolve(step, x, weights, counts_padding)
        elif step == _HALVE:
            x = ops.max_pool(x, 3, 2, "valid", data_format="channels_last")
        else:
            x = ops.concatenate(
                [_run(branch, x, weights, counts_padding) for branch in step], axis=-1
            )
    return x


def _convolve(step, x, weights, counts_padding):
    kernel, bias = weights[step.name]
    if step.pooling == "max":
        x = ops.max_pool(x, 3, 1, "same", data_format="channels_last")
    x = ops.conv(x, kernel, step.stride, step.padding, data_format="channels_last")
    if step.pooling == "average":
        # Averages of 1x1 convolutions are 1x1 convolutions of averages, with fewer channels.
        x = _average_pool(x, counts_padding)
    return ops.relu(x + bias)


def _forward(kind, weights, classifier, tap):
    """The compiled function from uint8 images to features."""
    kind = KINDS[kind]

    def features(images, rows, columns):
        x = ops.cast(images, "float32")
        if kind.image_channels == 1:
            # Strokes are dark there and light here; what is faint is paper.
            x = 1 - x / 255
            x = resize(ops.where(x < 0.1, 0.0, x), rows, columns)
        else:
            x = (resize(x, rows, columns) - 128) / 128
        for stage, steps in kind.stages.items():
            x = _run(steps, x, weights, kind.counts_padding)
            if stage == tap:
                break
        x = ops.mean(x, axis=(1, 2))
        return x if classifier is None else ops.matmul(x, classifier)

    # Weights are constants of the graph, so that they are brought into the layout of the
    # processor's convolutions once, and sizes are no part of it, so that one serves all images.
    axis = tuple(tf.TensorSpec((IMAGE_SIZE,), dtype) for dtype in ("int32", "int32", "float32"))
    images = tf.TensorSpec((None, None, None, kind.image_channels), "uint8")
    return tf.function(features, input_signature=(images, axis, axis))


class InceptionFeatures:
    """Features of images by an Inception network whose weights lie in a file.

    Images for "fid" are resized to 299x299 as by TensorFlow 1 and scaled to (x - 128) / 128. The
    average pooling of that network does not count the padding and its last block has max pooling;
    the features agree with torch-fidelity's.

    Images for "quickdraw" are grey, with dark strokes on white paper. They become 1 - x / 255,
    with 0 for what is below 0.1, and are resized to 299x299 as by PyTorch; they are not cropped.
    The network is torchvision's Inception v3 with one channel and 345 classes. Both are as
    DoodlerGAN's evaluation program has them; no answers of its trained network were at hand to
    compare with.

    Args:
        path: The path of a PyTorch file or a `.safetensors` file, or `{tensor name: array}`.
            PyTorch's need the `convert` extra; no code in them is ever run. Tensors are named
            as torch-fidelity, pytorch-fid and torchvision name them, with or without a prefix,
            or as pytorch-fid's wrapper does (`blocks.0.0`). `where_to_get` says where the files
            are.
        features: Which features: 64, 192, 768 (means over the positions of inner layers), 2048
            (the usual ones) or `"logits_unbiased"` (the classifier's, without its bias).
        kind: `"fid"`, `"quickdraw"`, or None for whichever the tensors are of.

    Attributes:
        name: What a Fréchet distance of these features may be called: `"FID"` for 2048 features
            by TensorFlow's published file (told by its SHA-256), `"FID-quickdraw"` for those by
            a network of the structure that Ge et al. publish, otherwise `"FD-inception"` or
            `"FD-quickdraw"`, with the features where they are not the usual ones.
        note: What is to be said beside the name, or None.
        kind: The network, `"fid"` or `"quickdraw"`.
        dimensions: Number of features.
        fingerprint: Short text that tells apart what gives other features: weights, features,
            preprocessing. The name under which tensors lie in a file is no part of it.

    Call arguments:
        images: uint8 array (n, height, width, 3), (n, height, width, 1) or (n, height, width),
            n and sizes 1 or more; or an iterable of such arrays, of the same or other sizes.
            Grey images are repeated for the three channels of `"fid"`; `"quickdraw"` wants grey
            ones.
        batch_size: Images that the network sees at a time; features do not depend on it.
        progress: Whether to show a progress bar.

    Returns:
        Float32 array (images, dimensions).

    Raises:
        ValueError: for unknown features or kinds, a file that does not hold the network, and
            from calls for images of another type or shape.
        ImportError: where reading the file needs a package that is not installed.

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
        self.kind, tensors = _load(path, kind)
        self.features = tap
        shapes = KINDS[self.kind].shapes(tap)
        if tap == "logits_unbiased" and "fc.weight" not in tensors:
            raise ValueError(
                "`features='logits_unbiased'` need the classifier fc.weight, which `path` lacks."
            )
        tensors = {name: as_float32(tensors[name]) for name in shapes}
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all() or (name.endswith("running_var") and tensor.min() < 0):
                raise ValueError(f"`path` holds values in {name} that no network has.")
        classifier = tensors["fc.weight"].T if tap == "logits_unbiased" else None
        self.dimensions = int(tap) if classifier is None else classifier.shape[1]
        self.fingerprint = _fingerprint(self.kind, tap, tensors)
        self.name, self.note = _name_and_note(path, self.kind, tap)
        self._forward = _forward(self.kind, _folded(tensors), classifier, tap)

    def __call__(self, images, batch_size=32, progress=False):
        if int(batch_size) != batch_size or batch_size < 1:
            raise ValueError(f"`batch_size` must be 1 or more; received {batch_size!r}.")
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
                    features.append(ops.convert_to_numpy(self._forward(part, rows, columns)))
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
        # The last axis of one colour image without its number, too, is of size 3.
        if images.ndim == 3 and images.shape[-1] not in (1, 3):
            images = images[..., None]
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
            raise ValueError(
                "`images` must be of shape (n, height, width, 3), (n, height, width, 1) or "
                f"(n, height, width), with n 1 or more; received {images.shape}. One image is "
                "given as image[None], channels that come first are put last by "
                "np.moveaxis(images, 1, -1)."
            )
        if KINDS[self.kind].image_channels == 1 and images.shape[-1] == 3:
            raise ValueError(
                f"`images` must be grey for the network {self.kind!r}, of shape (n, height, width) "
                f"or (n, height, width, 1); received {images.shape}. Grey images that were stored "
                "in colour are made so by images[..., 0]."
            )
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
    """What a distance of the features may be called, and what is to be said with it."""
    ending = "" if tap == "2048" else f"-{tap}"
    if kind == "quickdraw":
        if ending:
            return f"FD-quickdraw{ending}", "Not the features that published distances are of."
        return (
            "FID-quickdraw",
            "The network is of the structure that Ge et al. publish; no checksum of their file is "
            "known to tell whether it is theirs.",
        )
    if not isinstance(path, Mapping):
        with open(Path(path), "rb") as file:
            published = hashlib.file_digest(file, "sha256").hexdigest() == FID_FILE_SHA256
        if published:
            if ending:
                return f"FD-inception{ending}", "Not the features that FID is of."
            return "FID", None
    return (
        f"FD-inception{ending}",
        "The network is of the structure that FID takes; its weights are not read from the "
        "published file, so whether they are the same is unknown.",
    )
