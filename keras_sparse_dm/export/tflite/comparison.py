"""Comparison of a `.tflite` file's outputs with those of Keras."""

import numpy as np

from keras_sparse_dm.export.tflite.conversion import traced
from keras_sparse_dm.export.tflite.inference import load_interpreter
from keras_sparse_dm.lazy import lazy_module, load

tf = load(lazy_module("tensorflow"))

# Largest difference from Keras's outputs, relative to the largest output, or to 1 if that is less.
TOLERANCES = {"none": 1e-4, "float16": 1e-2}
# Root mean square difference in standard deviations of the outputs. Rounding stays below; a larger
# difference means a wrong conversion.
INT8_TOLERANCE = 0.5
# The same for a half-precision model and its copy in float32.
HALF_TOLERANCE = 0.5
# Number of inputs to compare on.
CHECKS = 3


def check_file(path, part, quantize, verify, representative, half):
    """Run a file, and compare its outputs with those of Keras.

    Args:
        path: The `.tflite` file.
        part: The `Part` in it.
        quantize, verify: As in `to_tflite`.
        representative: List of tuples of inputs, or None.
        half: The half-precision `Part` that `part` is a float32 copy of, or None.

    Returns:
        Largest absolute difference of the outputs; None without `verify`.

    Raises:
        ValueError: if LiteRT cannot run the file, or its outputs are not those of Keras.
    """
    rng = np.random.default_rng(0)
    examples = representative[:CHECKS] if representative else []
    # One call of a whole sampler makes many steps.
    count = 1 if part.name == "sampler" else CHECKS
    examples = (examples or [part.draw(rng) for _ in range(CHECKS)])[:count]
    try:
        interpreter = load_interpreter(path, 1)
        run = interpreter.get_signature_runner(part.name)
        outputs = [
            run(**dict(zip(part.inputs, inputs, strict=True)))[part.output] for inputs in examples
        ]
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"LiteRT cannot run `part={part.name!r}` of {part.model.name!r} with "
            f"`quantize={quantize!r}`: {error}"
        ) from error
    if not all(np.isfinite(output).all() for output in outputs):
        raise ValueError(f"The outputs of the file for `quantize={quantize!r}` are not finite.")
    if not verify:
        return None
    expected = _answers(part, examples)
    difference = np.stack(outputs) - expected
    largest = float(np.abs(difference).max())
    if quantize in TOLERANCES:
        bound = TOLERANCES[quantize] * max(1.0, float(np.abs(expected).max()))
        measured, kind = largest, "largest difference"
    else:
        # The second term is for outputs that are nearly constant.
        bound = INT8_TOLERANCE * float(np.std(expected)) + float(np.abs(expected).max()) / 50
        measured, kind = float(np.sqrt(np.mean(difference**2))), "root mean square difference"
    if not measured <= bound:
        raise ValueError(
            f"The outputs of the file for `part={part.name!r}`, `quantize={quantize!r}` are not "
            f"Keras's: the {kind} is {measured:.3g}, more than {bound:.3g}. No file is left."
        )
    if half is not None:
        _check_rebuilt(half, examples, expected)
    return largest


def _check_rebuilt(half, examples, expected):
    """Raise a ValueError if a half-precision model and its float32 copy differ too much.

    Args:
        half: The half-precision `Part`.
        examples: List of tuples of inputs.
        expected: Array of the copy's outputs for them.
    """
    try:
        outputs = _answers(half, examples)
    except tf.errors.OpError:
        # Some devices lack some operations in half precision.
        return
    # Half precision overflows sooner.
    finite = np.isfinite(outputs)
    difference = (outputs - expected)[finite]
    measured = float(np.sqrt(np.mean(difference**2))) if finite.any() else 0.0
    bound = HALF_TOLERANCE * float(np.std(expected)) + float(np.abs(expected).max()) / 10
    if not measured <= bound:
        raise ValueError(
            f"`model` {half.model.name!r} has layers in half precision, and its configuration "
            "(`get_config`) rebuilds another model in float32: the root mean square difference of "
            f"their outputs is {measured:.3g}, more than {bound:.3g}. No file is left."
        )


def _answers(part, examples):
    """Return Keras's outputs for several inputs as one array."""
    run = traced(part)
    return np.stack([np.asarray(run(*map(tf.constant, inputs))) for inputs in examples])
