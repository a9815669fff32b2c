"""Saving and loading of layers that became sparse after they were made.

A Keras file holds each layer's class and arguments. That is enough to restore a sparse layer,
and a functional model of sparse layers. A layer that makes its sublayers by itself (a
subclassed model, a block of one's own, `Bidirectional`) would make them plain again. So where
such a layer holds sublayers that were turned sparse, or is itself of a class that has no
sparse twin of its own, its class becomes one that is the same but for its configuration, which
says which sublayers to turn sparse again.
"""

import functools

import keras

_PACKAGE = "keras_sparse_dm"


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Sparsified:
    """What a restorable layer is saved as; loading it returns the layer itself."""

    _plain_class = None
    # What is to be turned sparse once it is built, as in the configuration.
    _to_turn = None

    def __call__(self, *args, **kwargs):
        outputs = super().__call__(*args, **kwargs)
        if self._to_turn is not None:
            if not _is_as_saved(self, self._to_turn):
                raise _cannot_be_restored(self)
            _turn_as_saved(self, self._to_turn)
            object.__setattr__(self, "_to_turn", None)
        return outputs

    def get_config(self):
        plain, restorable = self._plain_class, type(self)
        object.__setattr__(self, "__class__", plain)
        try:
            layer = keras.saving.serialize_keras_object(self)
        finally:
            object.__setattr__(self, "__class__", restorable)
        # The restored layer is compiled from the outer configuration.
        layer.pop("compile_config", None)
        return {"layer": layer, **(self._to_turn or _as_turned(self))}

    def get_build_config(self):
        # The layer's own is inside.
        return None

    @classmethod
    def from_config(cls, config, custom_objects=None):
        if "layer" not in config and cls._plain_class is not None:
            # The arguments of the plain class, as its own code may pass them.
            return cls._plain_class.from_config(config)
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(
            config.pop("layer"), custom_objects=custom_objects
        )
        if _is_as_saved(layer, config):
            _turn_as_saved(layer, config)
        elif 0 in config["sparse_layers"]:
            raise _cannot_be_restored(layer)
        else:
            # Without a `build` of its own it builds its sublayers when it is first called.
            object.__setattr__(layer, "__class__", _restorable_twin(type(layer)))
            object.__setattr__(layer, "_to_turn", config)
        return layer


def turn_sparse(model, layers):
    """Turns layers of a model into their sparse twins, so that the model can be saved and loaded.

    Args:
        model: The built `keras.Model` or layer that holds them. It and all in it stay the same
            objects; some change their class.
        layers: Built layers whose classes, or ones that they derive from, have a twin.
    """
    from keras_sparse_dm.layers.masked import MaskedKernels, has_sparse_kernel, make_sparse

    def turn(layers):
        for layer in layers:
            if not isinstance(layer, MaskedKernels):
                make_sparse(layer)
                object.__setattr__(layer, "_turned_sparse", True)

    turn(layers)
    # Other layers with the same kernels have the same masks.
    turn([layer for layer in model._flatten_layers() if has_sparse_kernel(layer)])
    for layer in model._flatten_layers():
        if not isinstance(layer, Sparsified) and _forgets_sparse_layers(layer):
            object.__setattr__(layer, "__class__", _restorable_twin(type(layer)))


def restorable_class(plain, bases):
    """Returns a class of those bases that is saved as `plain` with its sparse sublayers."""
    cls = type(
        plain.__name__,
        (Sparsified, *bases),
        {"__module__": plain.__module__, "__doc__": plain.__doc__, "_plain_class": plain},
    )
    # Saved under the name of `Sparsified`, whose `from_config` is to be found on loading.
    keras.saving.register_keras_serializable(_PACKAGE, Sparsified.__name__)(cls)
    keras.saving.get_custom_objects()[f"{_PACKAGE}>{Sparsified.__name__}"] = Sparsified
    return cls


@functools.cache
def _restorable_twin(cls):
    return restorable_class(cls, (cls,))


def _forgets_sparse_layers(layer):
    """Whether a layer's configuration would restore sublayers as plain that are sparse now."""
    from keras_sparse_dm.layers.masked import TWINS

    # What these two hold is in their configuration.
    if type(layer).__name__ in ("Functional", "Sequential") and _is_of_keras(type(layer)):
        return False
    # A twin is restored by its own class; what it holds besides may not be.
    own = {0} if type(layer) in TWINS.values() else set()
    return not own >= set(_turned_sparse(layer))


def _is_of_keras(cls):
    return cls.__module__.split(".")[0] == "keras"


def _turned_sparse(layer):
    """Positions, among a layer's own and all its sublayers, of those that were turned sparse."""
    layers = enumerate(layer._flatten_layers())
    return [i for i, child in layers if getattr(child, "_turned_sparse", False)]


def _is_as_saved(layer, config):
    """Whether a layer has built all the sublayers that it had when it was saved."""
    from keras_sparse_dm.layers.masked import twin_class

    layers = layer._flatten_layers()
    return len(layers) == config["layers"] and all(
        layers[i].built and twin_class(type(layers[i])) for i in config["sparse_layers"]
    )


def _as_turned(layer):
    from keras_sparse_dm.layers.masked import target_of

    layers, turned = layer._flatten_layers(), _turned_sparse(layer)
    return {
        "sparse_layers": turned,
        "mask_targets": [[target_of(k).to_list() for k, _ in layers[i].masks] for i in turned],
        "layers": len(layers),
    }


def _turn_as_saved(layer, config):
    layers = layer._flatten_layers()
    turned = [layers[i] for i in config["sparse_layers"]]
    turn_sparse(layer, turned)
    for child, targets in zip(turned, config["mask_targets"], strict=True):
        child.set_mask_targets(targets)


def _cannot_be_restored(layer):
    return ValueError(
        f"{type(layer).__name__} {layer.name!r} cannot be restored from its configuration, for it "
        "does not build the sublayers it had when it was saved. Make and build the model yourself, "
        "call `sparsify` on it as before, then `load_weights`."
    )
