"""Files of named tensors: PyTorch files, read without running code in them, and safetensors."""

import pickle
import re
import zipfile
from pathlib import Path

import ml_dtypes  # noqa: F401  # adds bfloat16 to NumPy
import numpy as np
import safetensors.numpy

from keras_sparse_dm.files import whole_file
from keras_sparse_dm.lazy import lazy_module

torch = lazy_module("torch")

PYTORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
SAFETENSORS = ".safetensors"
# First bytes of PyTorch files: a zip archive, or a bare pickle before version 1.6.
_PYTORCH_BEGINNINGS = (b"PK", b"\x80")
# Objects beside the weights in checkpoints of PyTorch Lightning, such as the published ones:
# classes of callbacks, scores as NumPy scalars, settings of OmegaConf.
_IGNORED_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf")
_IGNORED = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
    "typing.Any",
    "typing.Union",
    *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "int", "list", "str")),
)


class _Ignored:
    """Replacement for all objects in a file that are not tensors."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def _plain_dict(*args):
    """Return a plain dictionary for a `defaultdict`, which PyTorch's unpickler cannot fill."""
    return {}


def read_tensors(path):
    """Read a file of tensors.

    Args:
        path: A `.ckpt`, `.pt`, `.pth` or `.bin` file of PyTorch, with the tensors at the top or
            under `"state_dict"`, or a `.safetensors` file. Other objects of PyTorch Lightning are
            ignored.

    Returns:
        `{name: tensor}`; values of a `.safetensors` file are read when a tensor is used.

    Raises:
        ValueError: for a file that does not exist, is damaged or of another kind, or holds other
            objects.
        ImportError: if a package that reads the file is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`source` must be an existing file or a dictionary; received {path}.")
    if path.suffix.lower() == SAFETENSORS:
        return _read_safetensors(path)
    with open(path, "rb") as file:
        beginning = file.read(2)
    if path.suffix.lower() not in PYTORCH_SUFFIXES or not beginning.startswith(_PYTORCH_BEGINNINGS):
        raise ValueError(
            f"`source` must be a PyTorch file ({', '.join(PYTORCH_SUFFIXES)}) or a .safetensors "
            f"file; received {path}, which is neither."
        )
    return _read_pytorch(path)


def write_tensors(path, tensors):
    """Write a file of tensors; a PyTorch file holds `{"state_dict": tensors}`.

    Args:
        path: A file name with an extension that `read_tensors` knows.
        tensors: `{name: float32 array}`.

    Raises:
        ValueError: for another extension.
        ImportError: if a package that writes the file is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix == SAFETENSORS:
        save_file = safetensors.numpy.save_file
        with whole_file(path) as temporary:
            # Transformers and diffusers require this entry.
            save_file(tensors, temporary, metadata={"format": "pt"})
    elif suffix in PYTORCH_SUFFIXES:
        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        with whole_file(path) as temporary:
            torch.save({"state_dict": state}, temporary)
    else:
        raise ValueError(
            f"`path` must end in {', '.join((*PYTORCH_SUFFIXES, SAFETENSORS))}; received {path}."
        )


class _StoredTensor:
    """A tensor of an open safetensors file."""

    def __init__(self, file, name):
        self._file = file
        self._name = name
        self.shape = tuple(file.get_slice(name).get_shape())

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._file.get_tensor(self._name), dtype)


def _read_safetensors(path):
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"`source` {path} cannot be read as a safetensors file: {error}."
        ) from None
    return {name: _StoredTensor(file, name) for name in file.keys()}  # noqa: SIM118


def _read_pytorch(path):
    content, ignored = None, list(_IGNORED)
    while content is None:
        try:
            # These names all become `_Ignored`; nothing of them runs.
            stand_ins = [(_Ignored, name) for name in ignored]
            stand_ins.append((_plain_dict, "collections.defaultdict"))
            with torch.serialization.safe_globals(stand_ins):
                content = torch.load(
                    path,
                    map_location="cpu",
                    weights_only=True,
                    # Often only a part of a checkpoint is used. Old files cannot be mapped.
                    mmap=zipfile.is_zipfile(path),
                )
        except OSError:
            raise
        except Exception as error:  # a damaged file can raise anything
            refused = re.search(r"GLOBAL ([\w.]+)", str(error))
            if not (isinstance(error, pickle.UnpicklingError) and refused):
                raise ValueError(
                    f"`source` {path} cannot be read as a PyTorch file of weights: "
                    f"{_reason(error)}."
                ) from None
            name = refused[1]
            if name.split(".")[0] not in _IGNORED_PACKAGES or name in ignored:
                raise ValueError(_more_than_weights(path, name)) from None
            ignored.append(name)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in state.items()
    ):
        received = sorted(map(str, content)) if isinstance(content, dict) else type(content)
        raise ValueError(
            f"`source` {path} must hold named tensors, alone or under 'state_dict'; it holds "
            f"{str(received)[:200]}."
        )
    return state


def _more_than_weights(path, name):
    return (
        f"`source` {path} holds more than weights ({name}), "
        "and loading that could run code from the file; none was run. If you trust where it "
        "comes from, write its weights alone to a file that loads, in an environment that has "
        "what it was saved with:\n"
        f"    state = torch.load({str(path)!r}, map_location='cpu', weights_only=False)\n"
        "    torch.save({'state_dict': state['state_dict']}, 'weights.ckpt')"
    )


def _reason(error):
    # Leaves out PyTorch's advice to load the file unsafely.
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
