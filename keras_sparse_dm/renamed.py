"""Old public names, which work for one more version and warn."""

import importlib
import warnings


def also_old_names(module, names, otherwise):
    """Return a module's `__getattr__` that knows its old names too.

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
        warnings.warn(
            f"{module}.{name} is now {present}; the old name will go in the next version.",
            DeprecationWarning,
            stacklevel=2,
        )
        found = importlib.import_module(f"{package}.{place}")
        return getattr(found, new) if new else found

    return __getattr__
