"""Structure and forward pass of the two Inception v3 networks."""

import functools
from dataclasses import dataclass

from keras import ops

FIRST_CONVOLUTION = "Conv2d_1a_3x3"


@dataclass(frozen=True)
class Convolution:
    """Convolution without bias, batch norm and ReLU, with optional pooling before it."""

    name: str
    channels: int
    size: tuple = (1, 1)
    stride: int = 1
    padding: str = "same"
    # "average" or "max" of 3x3 positions, with stride 1.
    pooling: str | None = None


# A network's other steps: the maximum of 3x3 positions with stride 2, and a tuple of branches, each
# a list of steps, whose results are concatenated.
_HALVE = "halve"
_3, _5 = (3, 3), (5, 5)


def _stem():
    return [
        [
            Convolution(FIRST_CONVOLUTION, 32, _3, 2, "valid"),
            Convolution("Conv2d_2a_3x3", 32, _3, padding="valid"),
            Convolution("Conv2d_2b_3x3", 64, _3),
            _HALVE,
        ],
        [
            Convolution("Conv2d_3b_1x1", 80),
            Convolution("Conv2d_4a_3x3", 192, _3, padding="valid"),
            _HALVE,
        ],
    ]


def _block_of_35(name, pooled):
    return (
        [Convolution(f"{name}.branch1x1", 64)],
        [Convolution(f"{name}.branch5x5_1", 48), Convolution(f"{name}.branch5x5_2", 64, _5)],
        [
            Convolution(f"{name}.branch3x3dbl_1", 64),
            Convolution(f"{name}.branch3x3dbl_2", 96, _3),
            Convolution(f"{name}.branch3x3dbl_3", 96, _3),
        ],
        [Convolution(f"{name}.branch_pool", pooled, pooling="average")],
    )


def _block_from_35_to_17(name):
    return (
        [Convolution(f"{name}.branch3x3", 384, _3, 2, "valid")],
        [
            Convolution(f"{name}.branch3x3dbl_1", 64),
            Convolution(f"{name}.branch3x3dbl_2", 96, _3),
            Convolution(f"{name}.branch3x3dbl_3", 96, _3, 2, "valid"),
        ],
        [_HALVE],
    )


def _block_of_17(name, inner):
    row, column = (1, 7), (7, 1)
    return (
        [Convolution(f"{name}.branch1x1", 192)],
        [
            Convolution(f"{name}.branch7x7_1", inner),
            Convolution(f"{name}.branch7x7_2", inner, row),
            Convolution(f"{name}.branch7x7_3", 192, column),
        ],
        [
            Convolution(f"{name}.branch7x7dbl_1", inner),
            Convolution(f"{name}.branch7x7dbl_2", inner, column),
            Convolution(f"{name}.branch7x7dbl_3", inner, row),
            Convolution(f"{name}.branch7x7dbl_4", inner, column),
            Convolution(f"{name}.branch7x7dbl_5", 192, row),
        ],
        [Convolution(f"{name}.branch_pool", 192, pooling="average")],
    )


def _block_from_17_to_8(name):
    return (
        [
            Convolution(f"{name}.branch3x3_1", 192),
            Convolution(f"{name}.branch3x3_2", 320, _3, 2, "valid"),
        ],
        [
            Convolution(f"{name}.branch7x7x3_1", 192),
            Convolution(f"{name}.branch7x7x3_2", 192, (1, 7)),
            Convolution(f"{name}.branch7x7x3_3", 192, (7, 1)),
            Convolution(f"{name}.branch7x7x3_4", 192, _3, 2, "valid"),
        ],
        [_HALVE],
    )


def _block_of_8(name, pooling):
    def row_beside_column(branch):
        return (
            [Convolution(f"{name}.{branch}a", 384, (1, 3))],
            [Convolution(f"{name}.{branch}b", 384, (3, 1))],
        )

    return (
        [Convolution(f"{name}.branch1x1", 320)],
        [Convolution(f"{name}.branch3x3_1", 384), row_beside_column("branch3x3_2")],
        [
            Convolution(f"{name}.branch3x3dbl_1", 448),
            Convolution(f"{name}.branch3x3dbl_2", 384, _3),
            row_beside_column("branch3x3dbl_3"),
        ],
        [Convolution(f"{name}.branch_pool", 192, pooling=pooling)],
    )


@dataclass(frozen=True)
class InceptionKind:
    """Properties in which the two networks differ.

    Attributes:
        image_channels: Channels of the input images.
        classes: Number of classes of the classifier.
        counts_padding: Whether average pooling counts the zeros beyond the border.
        last_pooling: Pooling in the last block, `"max"` or `"average"`.
        sources: Sentence that says who publishes the weights, and where.
        ignored: Name prefixes of tensors that the features do not depend on.
    """

    image_channels: int
    classes: int
    counts_padding: bool
    last_pooling: str
    sources: str
    ignored: tuple = ()

    @functools.cached_property
    def stages(self):
        """Steps of each stage, as `{tap: steps}`; the tap is the mean over positions after them."""
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
        """Return `{tensor name: shape}` of the weights up to a tap, in PyTorch's layout."""
        shapes, channels = {}, self.image_channels
        for stage, steps in self.stages.items():
            channels = _collect_shapes(steps, channels, shapes)
            if stage == tap:
                return shapes
        return shapes | {"fc.weight": (self.classes, channels)}


def _collect_shapes(steps, channels, shapes):
    """Add the steps' tensors to `shapes`; return the number of output channels."""
    for step in steps:
        if isinstance(step, Convolution):
            shapes[f"{step.name}.conv.weight"] = (step.channels, channels, *step.size)
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{step.name}.bn.{part}"] = (step.channels,)
            channels = step.channels
        elif step != _HALVE:
            channels = sum(_collect_shapes(branch, channels, shapes) for branch in step)
    return channels


KINDS = {
    "fid": InceptionKind(
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
    "quickdraw": InceptionKind(
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
        # The auxiliary classifier helps training only.
        ignored=("AuxLogits.",),
    ),
}


def run_steps(steps, x, weights, counts_padding):
    """Return the result of one stage's steps.

    Args:
        steps: The steps, from `InceptionKind.stages`.
        x: Float tensor (n, height, width, channels).
        weights: `{convolution name: (kernel, bias)}`, with batch norms folded in.
        counts_padding: Whether average pooling counts the zeros beyond the border.
    """
    for step in steps:
        if isinstance(step, Convolution):
            x = _convolve(step, x, weights, counts_padding)
        elif step == _HALVE:
            x = ops.max_pool(x, 3, 2, "valid", data_format="channels_last")
        else:
            x = ops.concatenate(
                [run_steps(branch, x, weights, counts_padding) for branch in step], axis=-1
            )
    return x


def _convolve(step, x, weights, counts_padding):
    kernel, bias = weights[step.name]
    if step.pooling == "max":
        x = ops.max_pool(x, 3, 1, "same", data_format="channels_last")
    x = ops.conv(x, kernel, step.stride, step.padding, data_format="channels_last")
    if step.pooling == "average":
        # Pooling and a 1x1 convolution commute; pooling last handles fewer channels.
        x = average_pool(x, counts_padding)
    return ops.relu(x + bias)


def average_pool(x, counts_padding):
    """Return the average over 3x3 positions, with stride 1."""
    if counts_padding:
        x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return ops.average_pool(
        x, 3, 1, "valid" if counts_padding else "same", data_format="channels_last"
    )
