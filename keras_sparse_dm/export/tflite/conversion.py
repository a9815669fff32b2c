"""Conversion of a part of a model to the bytes of a `.tflite` file."""

from dataclasses import replace

from keras_sparse_dm._keras import frozen, scale_whole_tensors, write_loops_in_place
from keras_sparse_dm.export.tflite import flatbuffer, sparse_tensors
from keras_sparse_dm.lazy import lazy_module, load
from keras_sparse_dm.models.chirodiff.gru_for_litert import Integers, Observed, litert_form

tf = load(lazy_module("tensorflow"))


def convert(part, quantize, sparse, representative):
    """Return the bytes that TensorFlow's converter makes of a part.

    Args:
        part: The `Part`.
        quantize, sparse: As in `to_tflite`.
        representative: List of tuples of inputs, for `quantize="int8"`.

    Raises:
        ValueError: if TensorFlow Lite cannot express the part.
    """

    def frozen_graph(products=None):
        concrete = traced(replace(part, model=litert_form(part.model, products)))
        # A file with variables, or with loops lowered to primitive operations, fails when it runs.
        return frozen(concrete)

    graph = frozen_graph()
    # The toolkit's calibrator crashes the process on loops.
    with_loops = any("While" in node.op for node in graph.graph.as_graph_def().node)
    if quantize == "int8" and with_loops:
        graph = frozen_graph(Integers(_extremes(part, representative)))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph])
    # Each step of a loop writes its output in place; otherwise it copies the outputs of all steps.
    write_loops_in_place(converter)
    if sparse and quantize == "none":
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    elif quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "int8_dynamic" and sparse:
        # A scale per output would take as much space as several of the few weights.
        scale_whole_tensors(converter)
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8" and not with_loops:
        converter.representative_dataset = lambda: (list(inputs) for inputs in representative)
        # Operations without an integer form, such as the timestep embedding, stay in floats.
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            tf.lite.OpsSet.TFLITE_BUILTINS,
        ]
    try:
        return converter.convert()
    except Exception as error:  # the converter raises what its parts raise
        reason = next(
            (line for line in str(error).splitlines() if "error:" in line), str(error)[:500]
        )
        raise ValueError(
            f"TensorFlow Lite cannot express `part={part.name!r}` of {part.model.name!r}"
            f" with `quantize={quantize!r}`: {reason.strip()}"
        ) from error


def traced(part):
    """Return a part as a concrete function with named inputs."""
    specs = [tf.TensorSpec(s.shape, s.dtype, name=n) for n, s in part.inputs.items()]
    # A new function, because `tf.function` reuses the traces of an old one.
    function = tf.function(lambda *inputs: part.function(part.model, *inputs), specs)
    with part.defaults():
        return function.get_concrete_function()


def _extremes(part, representative):
    """Return the extremes of all products' inputs and outputs on representative inputs."""
    observed = Observed()
    model = litert_form(part.model, observed)

    def observe(*inputs):
        part.function(model, *inputs)
        return observed.extremes

    with part.defaults():
        run = tf.function(observe, list(part.inputs.values())).get_concrete_function()
    result = {}
    for inputs in representative:
        found = run(*[tf.constant(array) for array in inputs])
        for site, ends in found.items():
            new, old = [float(end) for end in ends], result.get(site)
            pick = (min, max, min, max, max)
            result[site] = [f(a, b) for f, a, b in zip(pick, new, old or new, strict=True)]
    return result


def finish(content, part, quantize, sparse, facts):
    """Return a converted file's bytes with signature, metadata and sparse tensors.

    Args:
        content: Bytes from `convert`.
        part, quantize, sparse: As in `convert`.
        facts: Metadata that JSON can write.
    """
    parsed = flatbuffer.parse(content)
    flatbuffer.name_signature(parsed, list(part.inputs), [part.output], part.name)
    flatbuffer.strip_names(parsed)
    if sparse and quantize != "none":
        sparse_tensors.encode_sparse(parsed)
    return flatbuffer.serialize(parsed, facts)
