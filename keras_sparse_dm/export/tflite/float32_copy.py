"""Copies of a model that compute in float32, as `.tflite` files do."""

import contextlib
import random
import re
import types
import warnings
from dataclasses import replace

import keras
import numpy as np

from keras_sparse_dm._keras import flatten_layers

# Half precision in the name of a type or a policy, such as "int8_from_mixed_bfloat16".
HALF = re.compile(r"(mixed_)?b?float16")


def has_half_precision(model):
    """Tell whether any layer has weights, inputs or computations in half precision."""
    return any(map(_is_half, flatten_layers(model)))


def _is_half(layer):
    return any(HALF.search(str(dtype)) for dtype in (layer.compute_dtype, layer.dtype))


def in_float32(part):
    """Return a `Part` with a float32 copy of its model.

    Raises:
        ValueError: if the model cannot be rebuilt from its configuration.
    """
    return replace(part, model=rebuilt_in_float32(part), defaults=_float32_defaults)


def rebuilt_in_float32(part):
    """Return a float32 model with the weights and masks of a part's model.

    Raises:
        ValueError: if the model cannot be rebuilt from its configuration.
    """
    model = part.model
    try:
        # Hides Keras's warnings about the model's own lambdas and about layers not built yet.
        with _float32_defaults(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rebuilt = _from_float32_config(model)
            if not all(layer.built for layer in flatten_layers(rebuilt)):
                # A first call builds the rest.
                part.function(rebuilt, *part.draw(np.random.default_rng(0)))
        for layer in flatten_layers(rebuilt):
            # A layer's own code may set half precision whatever its configuration says.
            if _is_half(layer):
                policy = layer.dtype_policy.name.removeprefix("map_")
                layer.dtype_policy = HALF.sub("float32", policy)
        _copy_state(model, rebuilt)
    except Exception as error:  # the model's own code may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"`model` {model.name!r} has layers in half precision, and cannot be rebuilt in "
            f"float32, as a TFLite file computes, from its configuration (`get_config`): {reason}"
        ) from error
    return rebuilt


def _copy_state(model, rebuilt):
    """Copy weights and masks from a model or layer to its copy."""
    if isinstance(model, keras.Model):
        # One level at a time: the copy has several layers for one that nested models share.
        for layer, new in zip(model.layers, rebuilt.layers, strict=True):
            _copy_state(layer, new)
        pairs = [(model, rebuilt)]
    else:
        pairs = zip(flatten_layers(model), flatten_layers(rebuilt), strict=True)
    for layer, new in pairs:
        # The file does not use a layer that a first call does not build.
        if new.built:
            state = {}
            layer.save_own_variables(state)
            new.load_own_variables(state)


def _from_float32_config(model):
    """Return a new model from a model's configuration, with float32 for half-precision types."""
    layers = flatten_layers(model)
    # Classes and functions that Keras cannot find by their names in the configuration.
    custom = {
        keras.saving.get_registered_name(cls): cls
        for layer in layers
        for cls in type(layer).__mro__
        if issubclass(cls, keras.layers.Layer) and cls.__module__.split(".")[0] != "keras"
    }

    def own_function(node, key):
        """Return the layer's own function for an entry of its configuration; None without one."""
        name, written = node["config"].get("name"), node["config"][key]
        if not isinstance(written, dict):
            return None
        found = {
            layer: getattr(layer, key, None)
            for layer in layers
            if layer.name == name and type(layer).__name__ == node.get("class_name")
        }
        found = {k: value for k, value in found.items() if isinstance(value, types.FunctionType)}
        if len(set(found.values())) > 1:
            # Layers of different models may have the same name.
            serialize = keras.saving.serialize_keras_object
            found = {
                k: v for k, v in found.items() if serialize(k.get_config().get(key)) == written
            }
        return next(iter(found.values()), None)

    def changed(node, is_dtype=False):
        if isinstance(node, (list, tuple)):
            items = [changed(item, is_dtype) for item in node]
            return tuple(items) if isinstance(node, tuple) else items
        if not isinstance(node, dict):
            return HALF.sub("float32", node) if is_dtype and isinstance(node, str) else node
        result = {
            key: changed(value, is_dtype or str(key).endswith("dtype"))
            for key, value in node.items()
            # Nobody trains the copy.
            if key != "compile_config"
        }
        for key in node["config"] if isinstance(node.get("config"), dict) else ():
            # Keras would restore a lambda without the names that it refers to.
            function = own_function(node, key)
            if function is not None:
                name = f"function {len(custom)}"
                custom[name] = function
                result["config"][key] = {
                    "module": "builtins",
                    "class_name": "function",
                    "config": name,
                    "registered_name": name,
                }
        return result

    config = changed(keras.saving.serialize_keras_object(model))
    return keras.saving.deserialize_keras_object(config, custom, safe_mode=False)


@contextlib.contextmanager
def _float32_defaults():
    """Context with float32 as Keras's default types, which restores Python's random state."""
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    # Initializers without a seed draw one here.
    seeds = random.getstate()
    try:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
        random.setstate(seeds)
