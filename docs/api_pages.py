"""Hooks of MkDocs: the API reference from the package's real names, and formulas without scripts.

The package's modules load their names on first use, so their source does not show them. The hooks
import the modules to list the names, and document each name from the file that defines it.
"""

import html
import re
import types

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File

import keras_sparse_dm
from keras_sparse_dm.commands.options import quiet_start

PACKAGE = keras_sparse_dm.__name__
# Constants of more lines are shown by name alone.
LONGEST_VALUE = 8
# Names that every user needs come before the others.
FIRST = ("sparsify", "DynamicSparsity")
# Formulas as pymdownx.arithmatex marks them.
FORMULA = re.compile(r"\\\((.*?)\\\)|\\\[(.*?)\\\]", re.DOTALL)


def public_names(module):
    """Return `{name: object}` of a module's public names, without its submodules and version."""
    names = [*filter(module.__all__.__contains__, FIRST), *module.__all__]
    names = {name: getattr(module, name) for name in names if name[0] != "_"}
    return {n: o for n, o in names.items() if not isinstance(o, types.ModuleType)}


def public_modules():
    """Return the package and its public modules."""
    modules = {getattr(keras_sparse_dm, name) for name in keras_sparse_dm.__all__}
    modules = [m for m in modules if isinstance(m, types.ModuleType)]
    return [keras_sparse_dm, *sorted(modules, key=lambda module: module.__name__)]


def definition(package, module, name, value):
    """Return griffe's description of a public object.

    Args:
        package: What griffe has read of the package.
        module: The public module that shows the object.
        name: The public name.
        value: The object.

    Raises:
        LookupError: if no module, or more than one, defines a constant of that name.
    """
    if hasattr(value, "__qualname__"):
        return package[f"{value.__module__}.{value.__qualname__}".removeprefix(f"{PACKAGE}.")]
    shown = module.__name__.removeprefix(PACKAGE).removeprefix(".")
    # `sparsity` also shows names of `masks`, and `models` those of `presets`.
    for source in (package[shown] if shown else package, package["masks"], package):
        found = [m.members.get(name) for m in source.modules.values()]
        found = [member for member in found if member is not None and not member.is_alias]
        if len(found) == 1:
            return found[0]
    raise LookupError(f"{name} of {module.__name__} is defined in {found}, not in one module.")


def page(module, names, package):
    """Return the Markdown of a module's page.

    Args:
        module: The module.
        names: `{name: object}` of what it shows.
        package: What griffe has read of the package.
    """
    short = module.__name__.replace(PACKAGE, "ksd", 1)
    lines = [f"# `{short}`", "", module.__doc__, ""]
    for name, value in names.items():
        defined = definition(package, module, name, value)
        short_value = defined.endlineno - defined.lineno < LONGEST_VALUE
        lines += [
            f"::: {defined.path}",
            "    options:",
            f"      heading: {short}.{name}",
            f"      toc_label: {name}",
            f"      show_attribute_values: {str(short_value or not defined.is_attribute).lower()}",
            "",
        ]
    return "\n".join(lines)


def on_files(files, config):
    package = griffe.load(PACKAGE)
    with quiet_start():
        names = {module: public_names(module) for module in public_modules()}
    for module in names:
        name = module.__name__.removeprefix(PACKAGE).removeprefix(".")
        files.append(
            File.generated(
                config,
                f"api/{name or 'index'}.md",
                content=page(module, names[module], package),
            )
        )
    return files


def on_page_content(content, **kwargs):
    """Set formulas as MathML, which browsers show without scripts from other sites."""
    # A return value has no name before the dash.
    content = re.sub(r'(<li class="doc-section-item field-body">)\s*–', r"\1", content)
    return re.sub(
        r'(?<=class="arithmatex">).*?(?=</(?:span|div)>)',
        lambda formula: FORMULA.sub(to_mathml, formula[0]),
        content,
        flags=re.DOTALL,
    )


def to_mathml(formula):
    inline, block = formula.groups()
    display = "block" if inline is None else "inline"
    return convert(html.unescape(block if inline is None else inline), display=display)
