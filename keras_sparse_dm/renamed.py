"""Old public names, which work for one more version and warn."""

import functools
import importlib
import warnings


def _warn(old, new, stacklevel=3):
    warnings.warn(
        f"{old} is now {new}; the old name will go in the next version.",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def also_old_names(module, names, otherwise):
    """Return a module's `__getattr__` that also finds its old names.

    Args:
        module: Name of the module.
        names: `{old name: "module:name"}` with the present places, inside this package.
        otherwise: The module's own `__getattr__`.
    """

    def __getattr__(name):
        if name not in names:
            return otherwise(name)
        package = __name__.split(".")[0]
        place, _, new = names[name].partition(":")
        present = ".".join(part for part in (package, place, new) if part)
        _warn(f"{module}.{name}", present)
        found = importlib.import_module(f"{package}.{place}")
        return getattr(found, new) if new else found

    return __getattr__


def old_argument(old, new):
    """Return a decorator of a function that also accepts a keyword argument's old name.

    Args:
        old: The old name.
        new: The present name. The decorated function raises a TypeError if it receives both.
    """

    def decorate(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            if old in kwargs:
                name = function.__name__
                if new in kwargs:
                    raise TypeError(f"`{name}` takes `{new}` alone; received `{old}` as well.")
                _warn(f"The argument `{old}` of `{name}`", f"`{new}`")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def old_method(old, method):
    """Return a method with an old name, which calls the present one.

    Args:
        old: The old name.
        method: The present method, as a function.
    """

    def call(self, *args, **kwargs):
        kind, new = type(self).__name__, method.__name__
        _warn(f"{kind}.{old}", new)
        return getattr(self, new)(*args, **kwargs)

    call.__name__ = old
    call.__doc__ = f"Call `{method.__name__}`; the old name will go in the next version."
    return call
