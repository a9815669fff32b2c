"""`to_tflite`: writes a model as one small `.tflite` file, and runs it before keeping it."""

import contextlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from keras import ops

import keras_sparse_dm
from keras_sparse_dm.checks import one_of
from keras_sparse_dm.diffusion.model import DiffusionModel
from keras_sparse_dm.export.needs_tensorflow import check_backend
from keras_sparse_dm.export.tflite import flatbuffer
from keras_sparse_dm.export.tflite.comparison import check_file
from keras_sparse_dm.export.tflite.conversion import convert, finish
from keras_sparse_dm.export.tflite.float32_copy import (
    has_half_precision,
    in_float32,
)
from keras_sparse_dm.export.tflite.parts import part_of, whole_sizes
from keras_sparse_dm.export.tflite.representative import checked_representative
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.lazy import load
from keras_sparse_dm.renamed import old_argument

QUANTIZATIONS = ("none", "float16", "int8_dynamic", "int8")


@dataclass(frozen=True)
class TFLiteExport:
    """Result of `to_tflite`.

    Attributes:
        path: Path of the file.
        bytes: Size of the file.
        compressed_bytes: Size of the file after zlib, the measure of the toolkit's guides.
        largest_difference: Largest absolute difference between outputs of the file and of Keras;
            None if they were not compared.
        metadata: The file's metadata, as `read_tflite_metadata` returns it.
    """

    path: Path
    bytes: int
    compressed_bytes: int
    largest_difference: float | None
    metadata: dict


@old_argument("what", "part")
def to_tflite(
    model,
    path,
    *,
    part=None,
    quantize="none",
    sparse=True,
    representative=None,
    batch_size=1,
    length=None,
    shape=None,
    steps=None,
    metadata=None,
    verify=True,
):
    """Write a model, or a part of it, as a `.tflite` file that LiteRT runs anywhere.

    The file holds the averaged (EMA) weights if there are any, as `generate` uses them, and stores
    sparse kernels sparse: single zeros take no space, and loading unpacks them. LiteRT also
    computes with float32 kernels of `Blocks(4)` without their zeros. All shapes are fixed; the
    caller pads sketches that are shorter than `length`, with any values.

    A file computes in float32. A model with layers in half precision is first copied to float32
    through its configuration; the model itself does not change.

    LiteRT runs the file before it is put in place, and its outputs are compared with Keras's.

    Args:
        model: `DiffusionModel`, `LatentDiffusion`, `ChiroDiff`, `UNet`, `VQAutoencoder`, or any
            built functional or Sequential model.
        path: The file to write.
        part: One of

            - `"denoiser"`: `denoise(points, t, lengths) -> epsilon`, or `(latents, t)`;
            - `"sampler_step"`: one step of `ddim` with eta 0, `(points, step, lengths) ->
              points`, where `step` is an int32 scalar from 0 (the first and noisiest) to
              `steps - 1`;
            - `"sampler"`: all steps in one call, `(noise, lengths) -> points`;
            - `"decoder"`: the decoder of a `LatentDiffusion` or `VQAutoencoder`, `(latents) ->
              images` in [-1, 1]; the latents of a `LatentDiffusion` are scaled, as diffused;
            - `"model"`: the whole model.

            By default the denoiser, the decoder of a `VQAutoencoder`, or the whole model.
        quantize: `"none"`; `"float16"`: float16 weights; `"int8_dynamic"`: int8 weights;
            `"int8"`: int8 weights and activations. Inputs and outputs stay floats, and so do
            operations without an integer form. In models with loops, only the products of GRUs
            and dense layers become integers.
        sparse: Whether to store sparse kernels sparse. `"int8_dynamic"` then multiplies them in
            floats, and dense kernels in integers.
        representative: For `"int8"`: iterable of tuples of inputs, such as `representative_data`
            returns, to learn the ranges of activations from. The comparison uses the first of
            them, or random inputs without any.
        batch_size: Number of examples in a call.
        length: Number of points of the longest sketch, for models of sketches; also the second
            size of a whole model's inputs if it is unknown.
        shape: Shape of one example, without the batch, for a `UNet` or decoder alone:
            (height, width, channels) of its latents.
        steps: Number of DDIM steps, for the samplers.
        metadata: Dictionary that JSON can write; the file keeps it under `"user"`.
        verify: Whether to compare the file with Keras, and a float32 copy with its half-precision
            model. The file runs once in any case.

    Returns:
        A `TFLiteExport`.

    Raises:
        ValueError: for arguments that do not fit the model; for unknown sizes, naming the
            argument to give; for a model with layers in half precision that cannot be rebuilt
            from its configuration; if TensorFlow Lite cannot express the model; or if the file's
            outputs are not Keras's: the tolerance is 1e-4 (float16: 1e-2) of the largest output
            or of 1, and for int8 half of the outputs' standard deviation. `path` then stays as
            it was.
        ImportError: without LiteRT.

    Example:

    >>> model = DiffusionModel(ChiroDiff(units=8, num_layers=1), NoiseSchedule.linear(1000))
    >>> file = to_tflite(model, "kanji.tflite", length=8, quantize="float16")
    >>> generate_from_tflite(file.path, lengths=[6, 8], steps=50, seed=0).shape
    (2, 8, 3)
    """
    check_backend("to_tflite")
    one_of("`quantize`", quantize, QUANTIZATIONS)
    load(flatbuffer.schema)
    batch_size, length, steps = whole_sizes(batch_size, length, steps)
    part = part_of(model, part, quantize, batch_size, length, shape, steps)
    if representative is not None:
        representative = checked_representative(representative, part.inputs)
    elif quantize == "int8":
        raise ValueError(
            "`quantize='int8'` learns the ranges of activations from data: give "
            "`representative`, for example `representative_data(model, data)`. "
            "`'int8_dynamic'` needs none."
        )
    facts = {
        "package": keras_sparse_dm.__version__,
        "part": part.name,
        # Old name of "part", for one more version.
        "what": part.name,
        "quantize": quantize,
        "sparse": bool(sparse),
        "batch_size": batch_size,
        "inputs": {name: list(spec.shape) for name, spec in part.inputs.items()},
        "output": part.output,
        **part.facts,
        "user": {} if metadata is None else metadata,
    }
    flatbuffer.check_json(facts)
    path = Path(path)
    # Fails now rather than after a long conversion.
    if not path.parent.is_dir():
        raise ValueError(f"`path` must lie in a folder that exists; received {str(path)!r}.")
    averaged = isinstance(model, DiffusionModel)
    with model.averaged_weights() if averaged else contextlib.nullcontext():
        half = part if has_half_precision(part.model) else None
        if half is not None:
            part = in_float32(half)
        facts["sparsity"] = _sparsity(part.model)
        content = convert(part, quantize, sparse, representative)
        content = finish(content, part, quantize, sparse, facts)
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
            difference = check_file(temporary, part, quantize, verify, representative, half)
    return TFLiteExport(path, len(content), len(zlib.compress(content, 9)), difference, facts)


def _sparsity(model):
    """Return the share of zeros in the kernels that can be sparse."""
    kernels = [
        ops.convert_to_numpy(w) for w in model.weights if len(w.shape) > 1 and "kernel" in w.path
    ]
    total = sum(kernel.size for kernel in kernels)
    return sum(int((kernel == 0).sum()) for kernel in kernels) / total if total else 0.0
