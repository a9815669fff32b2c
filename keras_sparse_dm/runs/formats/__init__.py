"""Registry of the formats that a run's model is exported in. Loads no Keras.

Another format is a module here and a line in `FORMATS`. The module has three functions:

- `write(run, folder, name, **options)` writes files, whose names begin with `name`, and yields the
  `ExportedFile` of each; the options are those of `export_run`, and `metadata`;
- `load(path)` returns the `Exported` model of a file that `write` has written;
- `snippet(folder, run, file)` returns lines of Python that load an `ExportedFile` and call it.
"""

from pathlib import Path
from typing import NamedTuple

from keras_sparse_dm.places import load_place


class Format(NamedTuple):
    """Facts about a format.

    Attributes:
        module: Its module.
        ending: Ending of its files, or "" for a folder.
        quantizations: Types of the weights that it can have.
        inside: File by which a folder of the format is known, or "".
    """

    module: str
    ending: str
    quantizations: tuple[str, ...]
    inside: str = ""

    def function(self, name):
        """Return the function of the module that is called `write`, `load` or `snippet`."""
        return load_place(f"{self.module}:{name}")


FORMATS = {
    "sparse": Format(f"{__name__}.sparse", ".sparse", ("none", "float16", "bfloat16")),
    "tflite": Format(f"{__name__}.tflite", ".tflite", ("none", "float16", "int8_dynamic", "int8")),
    "saved_model": Format(f"{__name__}.saved_model", "", ("none",), "saved_model.pb"),
}


def format_of(path):
    """Return the name of the format of a file or folder, or None for a folder of something else.

    A file of any other ending counts as a sparse checkpoint.
    """
    path = Path(path)
    for name, facts in FORMATS.items():
        known = path / facts.inside if facts.inside else path
        if known.is_file() and (facts.inside or path.suffix.lower() == facts.ending):
            return name
    return "sparse" if path.is_file() else None
