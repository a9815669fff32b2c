"""In-place conversion of a built model's layers to sparse layers and back.

A Keras file stores each layer's class and arguments. They suffice to restore a sparse layer, and a
functional model of sparse layers. But a layer that creates its own sublayers (a subclassed model, a
custom block, `Bidirectional`) would create plain ones on loading. If such a layer holds sublayers
that were turned sparse, or if its class only derives from a class with a sparse twin, it gets a
restorable class: a subclass whose configuration also lists the sublayers to turn sparse.
"""

import functools

import keras

from keras_sparse_dm._keras import flatten_layers
from keras_sparse_dm.layers.locations import locations
from keras_sparse_dm.layers.masked import (
    TWINS,
    VERSION,
    MaskedKernels,
    check_version,
    make_plain,
    make_sparse,
    own_kernels,
    parts,
    twin_class,
)

_PACKAGE = "keras_sparse_dm"


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Sparsified:
    """Base of restorable classes, under whose name they are saved and loaded."""

    _plain_class = None
    # Configuration of the sublayers to turn sparse once they are built.
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
        # View the same layer as an object of its plain class.
        plain = object.__new__(self._plain_class)
        object.__setattr__(plain, "__dict__", vars(self))
        layer = keras.saving.serialize_keras_object(plain)
        # The restored layer is compiled from the outer configuration.
        layer.pop("compile_config", None)
        return {"layer": layer, **(self._to_turn or _as_turned(self))}

    def get_build_config(self):
        # The plain layer's configuration contains its own.
        return None

    @classmethod
    def from_config(cls, config, custom_objects=None):
        if "layer" not in config and cls._plain_class is not None:
            # The layer's own code may call `from_config` with arguments of the plain class.
            return cls._plain_class.from_config(config)
        config = dict(config)
        check_version(config.get("version", 1))
        layer = keras.saving.deserialize_keras_object(
            config.pop("layer"), custom_objects=custom_objects
        )
        if _is_as_saved(layer, config):
            _turn_as_saved(layer, config)
        elif layer in _wanted(layer, config):
            raise _cannot_be_restored(layer)
        else:
            # A layer without its own `build` builds its sublayers in the first call.
            object.__setattr__(layer, "__class__", _restorable_twin(type(layer)))
            object.__setattr__(layer, "_to_turn", config)
        return layer


def turn_sparse(model, layers):
    """Turn layers of a model into their sparse twins; the model can then be saved and loaded.

    Args:
        model: The built `keras.Model` or layer that holds them. All objects stay the same, but
            some change their class. If anything fails, the model stays unchanged.
        layers: Built layers whose class, or a base of it, has a twin.
    """
    every = flatten_layers(model)
    before = [(layer, type(layer), getattr(layer, "_records", None)) for layer in every]
    try:
        _turn(layers)
        # Layers that share a kernel share its mask.
        records = {id(k): r for layer in layers for _, k, r in layer.mask_records()}
        tied = [
            layer
            for layer in every
            if any(id(kernel) in records for kernel, _ in own_kernels(layer).values())
        ]
        _turn(tied)
        for layer in tied:
            layer.share_masks(records)
        for layer in every:
            if not isinstance(layer, Sparsified) and _forgets_sparse_layers(layer):
                object.__setattr__(layer, "__class__", _restorable_twin(type(layer)))
    except BaseException:
        for layer, cls, records in before:
            if records is None:
                make_plain(layer, cls)
            else:
                layer.keep_masks(records)
                object.__setattr__(layer, "__class__", cls)
        raise


def turn_plain(model):
    """Turn all sparse layers of a model into plain Keras layers; the weights stay.

    Args:
        model: A `keras.Model` or layer; all objects in it stay the same.
    """
    for layer in flatten_layers(model):
        make_plain(layer, _plain_class(type(layer)))


def restorable_class(plain, bases):
    """Return a subclass of `bases` that is saved as `plain` with its sparse sublayers."""
    cls = type(
        plain.__name__,
        (Sparsified, *bases),
        {"__module__": plain.__module__, "__doc__": plain.__doc__, "_plain_class": plain},
    )
    # Keras saves it under the name of `Sparsified` and then loads it by `Sparsified.from_config`.
    keras.saving.register_keras_serializable(_PACKAGE, Sparsified.__name__)(cls)
    keras.saving.get_custom_objects()[f"{_PACKAGE}>{Sparsified.__name__}"] = Sparsified
    return cls


@functools.cache
def _restorable_twin(cls):
    return restorable_class(cls, (cls,))


def _plain_class(cls):
    """Return the plain class of a sparse or restorable class."""
    if issubclass(cls, Sparsified):
        cls = cls._plain_class
    plain = {twin: plain for plain, twin in TWINS.items()}
    return plain.get(cls, cls)


def _turn(layers):
    for layer in layers:
        if not isinstance(layer, MaskedKernels):
            # `make_sparse` would leave parts of custom classes plain.
            _turn([part for part in parts(layer) if type(part) not in TWINS])
            make_sparse(layer, _sparse_class(type(layer)))
            object.__setattr__(layer, "_turned_sparse", True)


@functools.cache
def _sparse_class(cls):
    # In a class derived from one with a twin, its own methods come before the twin's.
    return TWINS.get(cls) or restorable_class(cls, (cls, twin_class(cls)))


def _forgets_sparse_layers(layer):
    """Tell if a layer's configuration would restore sparse sublayers as plain ones."""
    # The configurations of these two models contain their layers.
    if type(layer).__name__ in ("Functional", "Sequential") and _is_of_keras(type(layer)):
        return False
    # A twin restores itself and its parts, but not other sublayers.
    restored = type(layer) in TWINS.values()
    return any(
        getattr(child, "_turned_sparse", False) and not (restored and child is layer)
        for child in flatten_layers(layer)
    )


def _is_of_keras(cls):
    return cls.__module__.split(".")[0] == "keras"


def _turned_sparse(layer):
    """Return `{location: layer}` of the sublayers that were turned sparse."""
    return {
        location: child
        for location, child in locations(layer).items()
        if getattr(child, "_turned_sparse", False)
    }


def _as_turned(layer):
    return {
        "version": VERSION,
        "sublayers": sorted(locations(layer)),
        "sparse_layers": {
            location: {name: r.target.to_list() for name, _, r in child.mask_records()}
            for location, child in _turned_sparse(layer).items()
        },
    }


def _wanted(layer, config):
    """Return `{sublayer: mask targets}` of the existing sublayers that a configuration names."""
    if config.get("version", 1) == 1:
        layers = flatten_layers(layer)
        positions = [i for i in config["sparse_layers"] if i < len(layers)]
        return {layers[i]: t for i, t in zip(positions, config["mask_targets"], strict=False)}
    sublayers = locations(layer)
    return {
        sublayers[location]: targets
        for location, targets in config["sparse_layers"].items()
        if location in sublayers
    }


def _is_as_saved(layer, config):
    """Tell if a layer has built all the sublayers that it had when it was saved."""
    if config.get("version", 1) == 1:
        complete = len(flatten_layers(layer)) == config["layers"]
    else:
        complete = set(config["sublayers"]) == set(locations(layer))
    wanted = _wanted(layer, config)
    return (
        complete
        and len(wanted) == len(config["sparse_layers"])
        and all(child.built and twin_class(type(child)) for child in wanted)
    )


def _turn_as_saved(layer, config):
    wanted = _wanted(layer, config)
    turn_sparse(layer, list(wanted))
    for child, targets in wanted.items():
        child.set_mask_targets(targets)


def _cannot_be_restored(layer):
    return ValueError(
        f"{type(layer).__name__} {layer.name!r} cannot be restored from its configuration, because "
        "it does not build the sublayers that it had when it was saved. Create and build the model "
        "yourself, call `sparsify` on it as before, then `load_weights`."
    )
