"""Pickles of numbers, texts, lists and NumPy arrays, read without running anything in them.

A pickle is a program for a small stack machine. Python's own machine calls any function that the
program names, and fills the memory if the program asks for it. The machine here, a subclass of
the standard library's Python version, knows only the instructions that build plain values and
charges them for the memory they take. The names under which NumPy writes arrays stand for methods
of its own; it calls no function that a pickle names.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from typing import Any

import numpy as np

# Memory that a pickle's values may take: this many bytes, plus this many times its own size.
# Small arrays take about 6 times their pickle's size.
FREE_MEMORY = 2**24
MEMORY_RATIO = 16
MAX_DEPTH = 1000

_CONTAINER = 64
_ARRAY = 128
_NUMBER = 32

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
# Names that a pickle may use, and the methods of `_RestrictedUnpickler` that they stand for.
_METHODS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    **{(module, "_reconstruct"): "reconstruct" for module in _MULTIARRAY},
    **{(module, "scalar"): "scalar" for module in _MULTIARRAY},
    **{(module, "_frombuffer"): "frombuffer" for module in _NUMERIC},
    # Spelling of bytes in pickles that Python 2 can read too.
    ("_codecs", "encode"): "encode",
    ("__builtin__", "bytes"): "empty_bytes",
    ("builtins", "bytes"): "empty_bytes",
}
_DTYPE = re.compile(r"(?:b1|\?|[iu][1248]|f[248]|O8?)")


def unpickle(data: bytes, start: int = 0) -> Any:
    """Read a pickle of any protocol that holds only plain values.

    Args:
        data: bytes that hold the pickle. Python 2's texts that are not ASCII are read as Latin-1,
            like NumPy's `encoding="latin1"`.
        start: position in `data` at which the pickle begins.

    Returns:
        None, a bool, number, text, bytes, list, tuple, dictionary with texts or bytes as keys, or
        a NumPy array of numbers or of such values.

    Raises:
        ValueError: if the pickle is damaged, asks for anything else (the message names it), or
            would take more memory than 16 MiB plus 16 times its size. Nothing in it is run.
    """
    try:
        return _RestrictedUnpickler(data, start).load()
    except RefusedPickle:
        raise
    except (
        pickle.UnpicklingError,
        LookupError,
        TypeError,
        ValueError,
        OverflowError,
        AttributeError,
        RecursionError,
        MemoryError,
        struct.error,
    ) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"is not a readable pickle: {reason[:200]}") from error


class RefusedPickle(ValueError):
    """Pickle that asks for more than plain values, or for more memory than they need."""


class _Dtype:
    """A NumPy dtype under construction: a code such as `f8`, and a byte order."""

    def __init__(self, code: str):
        self.code = code
        self.order = "="

    @property
    def dtype(self) -> np.dtype:
        order = self.order if self.order in "<>" and self.code[0] in "iuf" else ""
        return np.dtype(order + self.code)


class _Stream(io.BytesIO):
    """Bytes that are read in full or not at all."""

    def read(self, count: int) -> bytes:
        data = super().read(count)
        if len(data) < count:
            raise ValueError("it is cut short")
        return data

    def readline(self) -> bytes:
        line = super().readline()
        if not line.endswith(b"\n"):
            raise ValueError("it is cut short")
        return line


class _Instructions(dict):
    """Methods of the known instructions, by code."""

    def __missing__(self, code: int):
        raise RefusedPickle(
            f"has an instruction (0x{code:02x}) that builds more than arrays, numbers, texts and "
            "lists; nothing was run"
        )


# The public `pickle.Unpickler` cannot restrict instructions; its Python version looks each of them
# up in `dispatch`.
class _RestrictedUnpickler(pickle._Unpickler):
    dispatch = _Instructions()

    def __init__(self, data: bytes, start: int):
        stream = _Stream(data)
        stream.seek(start)
        super().__init__(stream, encoding="latin1")
        self.size = len(data)
        self.left = FREE_MEMORY + MEMORY_RATIO * self.size
        # Arrays whose content has not been set yet, by their identity.
        self.fresh: dict[int, np.ndarray] = {}

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise RefusedPickle(
                f"builds values of more than {MEMORY_RATIO} times its size of "
                f"{self.size:,} bytes; no file of sketches does"
            )

    # Instructions

    def load_mark(self):
        if len(self.metastack) == MAX_DEPTH:
            raise RefusedPickle(f"is nested more than {MAX_DEPTH} deep")
        super().load_mark()

    def load_stop(self):
        (value,) = self.stack
        if type(value) is _Dtype or callable(value) or self.fresh:
            raise ValueError("it ends before its value is complete")
        super().load_stop()

    def load_int(self):
        text = self.readline()[:-1]
        if text in (b"00", b"01"):
            self.append(text == b"01")
        else:
            self.append(int(text.removesuffix(b"L")))

    load_long = load_int

    def load_long1(self, width: int = 1):
        size = int.from_bytes(self.read(width), "little")
        if size > 128:
            raise RefusedPickle(f"holds a whole number of {size:,} bytes")
        self.append(int.from_bytes(self.read(size), "little", signed=True))

    def load_long4(self):
        self.load_long1(4)

    def load_bytearray8(self):
        # Read first: the standard library first allocates as much as the pickle claims.
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def load_append(self):
        self.extend([self.stack.pop()])

    def load_appends(self):
        self.extend(self.pop_mark())

    def extend(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("it appends to something other than a list")
        target.extend(items)

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def load_setitems(self):
        self.update(self.pop_mark())

    def load_dict(self):
        items = self.pop_mark()
        self.append({})
        self.update(items)

    def update(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("it puts items into something other than a dictionary")
        self.spend(_CONTAINER * len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Numbers can be chosen so that a dictionary of them takes quadratic time.
            if type(key) not in (str, bytes):
                raise RefusedPickle(f"has a dictionary's key of type {type(key).__name__}")
            target[key] = value

    def load_build(self):
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is _Dtype:
            _, order, *fields = state[:5]
            if order not in ("<", ">", "|", "=") or any(field is not None for field in fields):
                raise RefusedPickle("holds an array of records; numbers and objects are read")
            target.order = order
        elif type(target) is np.ndarray and self.fresh.pop(id(target), None) is not None:
            *_, shape, dtype, fortran, raw = state
            real, raw = self.check(shape, dtype, raw)
            # In place, because the pickle may refer to the array by number.
            target.__setstate__((1, shape, real, bool(fortran), raw))
        else:
            raise RefusedPickle(f"sets the state of a {type(target).__name__}; nothing was run")

    # Names

    def find_class(self, module: str, name: str):
        if (module, name) not in _METHODS:
            raise RefusedPickle(
                f"wants {module[:100]}.{name[:100]}; only NumPy arrays, numbers, texts and lists "
                "are read, and nothing was run"
            )
        return getattr(self, _METHODS[module, name])

    def ndarray(self, *_):
        raise RefusedPickle("calls ndarray; nothing was run")

    def empty_bytes(self) -> bytes:
        return b""

    def encode(self, text: str, encoding: str) -> bytes:
        if type(text) is not str or encoding != "latin1":
            raise RefusedPickle("encodes a text otherwise than as Latin-1")
        self.spend(len(text))
        return text.encode("latin-1")

    def dtype(self, code: str, align=False, copy=False) -> _Dtype:
        if type(code) is not str or not _DTYPE.fullmatch(code):
            code = code[:50] if type(code) is str else type(code).__name__
            raise RefusedPickle(f"holds an array of dtype {code!r}; numbers and objects are read")
        self.spend(_CONTAINER)
        return _Dtype(code)

    def scalar(self, dtype: _Dtype, raw) -> Any:
        if dtype.code.startswith("O"):
            raise RefusedPickle("holds a NumPy scalar that is an object")
        real, raw = self.check((), dtype, raw)
        return np.frombuffer(raw, real)[0].item()

    def reconstruct(self, kind, shape, code) -> np.ndarray:
        if getattr(kind, "__func__", None) is not _RestrictedUnpickler.ndarray:
            raise RefusedPickle("makes an array of another class than numpy.ndarray")
        array = np.empty(0)
        self.spend(_ARRAY)
        self.fresh[id(array)] = array
        return array

    def frombuffer(self, raw, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
        real, raw = self.check(shape, dtype, raw)
        return np.frombuffer(raw, real).reshape(shape, order="F" if order == "F" else "C")

    def check(self, shape: tuple, dtype: _Dtype, raw) -> tuple[np.dtype, bytes | list]:
        """Return an array's dtype and content after checking that they fit shape and memory."""
        # No message shows a value: its text may be far longer than the pickle.
        if type(dtype) is not _Dtype or type(shape) is not tuple:
            raise ValueError("an array in it has no dtype or shape")
        if len(shape) > 32 or any(type(n) is not int or not 0 <= n < 2**40 for n in shape):
            raise ValueError("an array in it has a shape that cannot be")
        count = math.prod(shape)
        real = dtype.dtype
        if type(raw) is str:  # Python 2's bytes
            raw = raw.encode("latin-1")
        if type(raw) not in ((list,) if real.hasobject else (bytes, bytearray)):
            raise ValueError("an array in it does not hold what its dtype says")
        if len(raw) != (count if real.hasobject else count * real.itemsize):
            raise ValueError(
                f"an array in it has the shape {shape} and dtype {real}, but {len(raw):,} "
                f"{'elements' if real.hasobject else 'bytes'}"
            )
        self.spend(_ARRAY + count * real.itemsize)
        return real, raw


def _charged(cost: int, method):
    def charged(self):
        self.spend(cost)
        method(self)

    return charged


# The bytes that each instruction is charged: those of the Python objects that it makes.
for cost, codes in {
    # Protocol and frame; mark, pop, duplicate, stop; None and bools; reading of the memo; texts
    # and bytes; integers of one byte; the empty tuple; changes and calls, which charge themselves.
    0: b"\x80\x95(012.N\x88\x89ghjSTUVX\x8c\x8dBC\x8e\x96K)aesubR",
    # Other integers and floats.
    _NUMBER: b"IJLM\x8a\x8bFG",
    # Lists, dictionaries and tuples; writing of the memo; names.
    _CONTAINER: b"]l}dt\x85\x86\x87pqr\x94c\x93",
}.items():
    for code in codes:
        method = getattr(_RestrictedUnpickler, pickle._Unpickler.dispatch[code].__name__)
        _RestrictedUnpickler.dispatch[code] = _charged(cost, method)
