"""Features of sketches and small images from a network that comes with the package.

The network needs no download. It is a small convolutional network, which
``scripts/train_feature_network.py`` trained to recognize the components of KanjiVG's kanji,
handwritten digits, the subject of drawings, and kinds of damage to a drawing. Its Fréchet distance
is called FD-kanji. It is not an FID; compare it only with numbers of the same name and
fingerprint.

The weights derive from KanjiVG (Ulrich Apel, CC BY-SA 3.0), MNIST (Yann LeCun, Corinna Cortes
and Christopher Burges) and the Quick, Draw! Dataset (Google, CC BY 4.0).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from keras_sparse_dm.checks import check_whole
from keras_sparse_dm.compiled import compiled
from keras_sparse_dm.data.cache import fingerprint_of
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.lazy import lazy_module

ops = lazy_module("keras.ops")

WEIGHTS = Path(__file__).parent / "weights" / "fd_kanji.npz"
# Width and height of the network's input, in pixels.
SIZE = 64
# Raise with every change of the features of the same images and weights.
VERSION = 1
# Rec. 601, the weights of Pillow's conversion to grey.
_LUMA = (0.299, 0.587, 0.114)


class EmbeddedFeatures:
    """Features of images from the embedded network: `EmbeddedFeatures()(images)`.

    Images of any size are averaged down (or spread) to 64 x 64 pixels and turned grey. Dark pixels
    count as ink, so sketches must be black on white, as `render_sketches` draws them. The features
    are means over the image of the maps of two layers, a middle layer (strokes and junctions) and
    the last layer, each divided by its standard deviation over real drawings; features of the last
    layer have half the weight.

    Attributes:
        name: Name of a Fréchet distance of these features, `"FD-kanji"`.
        dimensions: Number of features.
        fingerprint: 20 hexadecimal digits that change with weights and preprocessing; numbers
            with different fingerprints cannot be compared.
        accuracy: `{task: accuracy}` of the network on drawings held out from its training.
        description: Dictionary with the rest of the weights file: data, numbers of drawings, seed.

    Args:
        weights: File of weights that ``scripts/train_feature_network.py`` wrote; the package's own
            by default.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or holds something else.
    """

    name = "FD-kanji"

    def __init__(self, weights=None):
        layers, scale, self.description = read_weights(
            WEIGHTS if weights is None else Path(weights)
        )
        strides, pooled = self.description["strides"], self.description["pooled"]
        self.accuracy = self.description["accuracy"]
        self.dimensions = scale.size
        hashes = [_hash(array) for layer in layers for array in layer] + [_hash(scale)]
        self.fingerprint = fingerprint_of([VERSION, SIZE, _LUMA, strides, pooled, hashes])
        scale = ops.convert_to_tensor(scale, "float32")
        constants = [
            tuple(ops.convert_to_tensor(array, "float32") for array in layer) for layer in layers
        ]

        def features(images, luma, rows, columns):
            grey = ops.tensordot(ops.cast(images, "float32"), luma, 1)
            grey = ops.einsum("yh,bhw,xw->byx", rows, grey, columns)
            x = (1 - grey / 255)[..., None]
            means = []
            for (kernel, bias), stride in zip(constants, strides, strict=True):
                x = ops.conv(x, kernel, stride, "same", data_format="channels_last")
                x = ops.relu(x + bias)
                means.append(ops.mean(x, axis=(1, 2)))
            return ops.concatenate([means[i] for i in pooled], axis=1) * scale

        shapes = ((None,) * 4, (None,), (SIZE, None), (SIZE, None))
        self._features = compiled(features, shapes=shapes, dtypes=("uint8", *["float32"] * 3))

    def __call__(self, images, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Return the features of images.

        Args:
            images: uint8 array (or memory map, read batch by batch) of shape
                `(n, height, width)`, `(n, height, width, 1)` or `(n, height, width, 3)` (red,
                green, blue), 0 black and 255 white; any height and width.
            batch_size: Images per call of the network, 1 or more; changes the features by
                rounding only.
            progress: Whether to show a progress bar (on standard error).

        Returns:
            float32 array (n, dimensions).

        Raises:
            ValueError: if the images have another type or shape, or `batch_size` is below 1.
        """
        check_whole("batch_size", batch_size, 1, 2**31)
        images = _checked(images)
        luma = np.float32(_LUMA if images.ndim == 4 and images.shape[3] == 3 else (1,))
        rows, columns = (area_weights(length, SIZE) for length in images.shape[1:3])
        result = np.empty((len(images), self.dimensions), np.float32)
        with tqdm(total=len(images), desc=self.name, unit=" images", disable=not progress) as bar:
            for start in range(0, len(images), batch_size):
                batch = np.asarray(images[start : start + batch_size])
                batch = batch.reshape(*batch.shape[:3], len(luma))
                count = len(batch)
                # Pad the last batch, so that all batches take the same path.
                missing = min(batch_size, len(images)) - count
                batch = np.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))
                values = ops.convert_to_numpy(self._features(batch, luma, rows, columns))
                result[start : start + count] = values[:count]
                bar.update(count)
        return result

    def __repr__(self) -> str:
        return f"EmbeddedFeatures({self.name}, {self.dimensions} features, {self.fingerprint})"


def area_weights(length: int, size: int) -> np.ndarray:
    """Return the weights that resize a row of pixels by averaging areas.

    Args:
        length: Number of pixels in a row of the image, 1 or more.
        size: Number of pixels after resizing.

    Returns:
        float32 array (size, length) whose rows sum to 1.
    """
    # In units of 1 / (size * length) of the row, all borders are integers.
    ends = np.arange(1, size + 1)[:, None] * length
    borders = np.arange(1, length + 1)[None] * size
    overlap = np.minimum(ends, borders) - np.maximum(ends - length, borders - size)
    return (np.maximum(overlap, 0) / length).astype(np.float32)


def write_weights(path, layers, scale, description: dict) -> None:
    """Write a network's weights in float16 to an `.npz` file without pickles.

    Args:
        path: The file to write.
        layers: `(kernel, bias)` of each convolution, of shapes `(height, width, in, out)` and
            `(out,)`.
        scale: Factor of each feature.
        description: Dictionary that JSON can write, with at least `"strides"`, one integer per
            layer; `"pooled"`, the indices from 0 of the layers that give the features; and
            `"accuracy"`.
    """
    arrays = {"scale": np.asarray(scale, np.float16)}
    for i, (kernel, bias) in enumerate(layers):
        arrays[f"kernel_{i}"] = np.asarray(kernel, np.float16)
        arrays[f"bias_{i}"] = np.asarray(bias, np.float16)
    with whole_file(path) as temporary:
        np.savez(temporary, description=json.dumps(description, ensure_ascii=False), **arrays)


def read_weights(path: Path) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray, dict]:
    """Read a file that `write_weights` wrote.

    Args:
        path: The file.

    Returns:
        `(layers, scale, description)`: `(kernel, bias)` of each convolution and the scale of the
        features, all float16, and the description.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or holds something else; the message says what to do.
    """
    try:
        # Without pickles, reading runs no code; the zip's checksums detect damage.
        with np.load(path, allow_pickle=False) as stored:
            description = json.loads(str(stored["description"]))
            layers = [
                (stored[f"kernel_{i}"], stored[f"bias_{i}"])
                for i in range(len(description["strides"]))
            ]
            scale = stored["scale"]
            description["accuracy"] = {k: float(v) for k, v in description["accuracy"].items()}
        channels = 1
        for kernel, bias in layers:
            if kernel.ndim != 4 or kernel.shape[2:] != (channels, *bias.shape):
                raise ValueError(f"a kernel of shape {kernel.shape} does not fit its neighbours")
            channels = bias.size
        if scale.shape != (sum(layers[i][1].size for i in description["pooled"]),):
            raise ValueError(f"a scale of shape {scale.shape} does not fit the layers pooled")
        if not all(np.isfinite(array).all() for layer in layers for array in (*layer, scale)):
            raise ValueError("a weight is not finite")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the features' weights {path} are missing; install the package again, or make them "
            "with scripts/train_feature_network.py"
        ) from None
    except Exception as error:  # a damaged zip can raise almost any error
        raise ValueError(
            f"the features' weights {path} cannot be read ({type(error).__name__}: {error}); "
            "install the package again, or make them with scripts/train_feature_network.py"
        ) from error
    return layers, scale, description


def _hash(array: np.ndarray) -> list:
    return [array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()]


def _checked(images) -> np.ndarray:
    if not isinstance(images, np.ndarray):
        images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(
            f"images has type {images.dtype}; it must be uint8, 0 black and 255 white: for "
            "values from 0 to 1 give np.round(images * 255).astype('uint8'), for values from -1 "
            "to 1 np.round((images + 1) * 127.5).astype('uint8')"
        )
    grey = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if not grey or 0 in images.shape[1:]:
        raise ValueError(
            f"images has shape {images.shape}; it must be (n, height, width), "
            "(n, height, width, 1) or (n, height, width, 3): for one image give image[None]"
        )
    return images
