"""Pickles of numbers, texts, lists and NumPy arrays, read without running anything in them.

A pickle is a program for a small machine with a stack. Python's own machine calls whatever the
program names, and fills the memory if the program wants that. This one knows only the
instructions that build plain values, and for the names under which NumPy writes arrays it does
itself what they stand for; it calls no function that a pickle names.
"""

from __future__ import annotations

import ast
import math
import re
import struct
from typing import Any

import numpy as np

# Memory that a pickle's values may take: this many bytes, and as many times its own size. Of
# small arrays with their headers it is about 6 times.
FREE_MEMORY = 2**24
MEMORY_RATIO = 16
MAX_DEPTH = 1000

_CONTAINER = 64
_ARRAY = 128
_NUMBER = 32

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
# The names that a pickle may use; each stands for itself until REDUCE.
_GLOBALS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    **{(module, "_reconstruct"): "reconstruct" for module in _MULTIARRAY},
    **{(module, "scalar"): "scalar" for module in _MULTIARRAY},
    **{(module, "_frombuffer"): "frombuffer" for module in _NUMERIC},
    # How bytes are spelled in the pickles that Python 2 can read too.
    ("_codecs", "encode"): "encode",
    ("__builtin__", "bytes"): "bytes",
    ("builtins", "bytes"): "bytes",
}
_DTYPE = re.compile(r"(?:b1|\?|[iu][1248]|f[248]|O8?)")


class _Global:
    """A name on the stack."""

    def __init__(self, kind: str):
        self.kind = kind


class _Dtype:
    """A NumPy dtype in the making: a code such as `f8`, and an order of bytes."""

    def __init__(self, code: str):
        self.code = code
        self.order = "="

    @property
    def dtype(self) -> np.dtype:
        order = self.order if self.order in "<>" and self.code[0] in "iuf" else ""
        return np.dtype(order + self.code)


def unpickle(data: bytes, start: int = 0) -> Any:
    """Reads a pickle, of any protocol, that holds plain values only.

    Args:
        data: bytes that hold the pickle. Texts of Python 2 that are not ASCII are taken for
            Latin-1, as NumPy's `encoding="latin1"` does.
        start: where in `data` it begins.

    Returns:
        None, a truth value, number, text, bytes, list, tuple, dictionary with texts for keys, or
        a NumPy array of numbers or of such values.

    Raises:
        ValueError: if the pickle is damaged, wants anything else (the message gives its name), or
            would take more memory than 16 MiB and 16 times its size. Nothing in it is run.
    """
    try:
        return _Machine(data, start).run()
    except RefusedPickle:
        raise
    except (
        LookupError,
        TypeError,
        ValueError,
        OverflowError,
        AttributeError,
        SyntaxError,
        RecursionError,
        MemoryError,
        struct.error,
    ) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"is no pickle that can be read: {reason[:200]}") from error


class RefusedPickle(ValueError):
    """A pickle that wants more than plain values, or more memory than they need."""


class _Machine:
    def __init__(self, data: bytes, start: int):
        self.data = data
        self.position = start
        self.stack: list = []
        self.marked: list[list] = []
        self.memo: dict[int, Any] = {}
        self.fresh: dict[int, np.ndarray] = {}
        self.left = FREE_MEMORY + MEMORY_RATIO * len(self.data)

    def run(self):
        data = self.data
        while True:
            operation = data[self.position]
            self.position += 1
            handler = _OPERATIONS.get(operation)
            if handler is None:
                if operation == _STOP:
                    (value,) = self.stack
                    if type(value) in (_Global, _Dtype) or self.fresh:
                        raise ValueError("it ends before its value is complete")
                    return value
                raise RefusedPickle(
                    f"has an instruction (0x{operation:02x} at byte {self.position - 1}) that "
                    "builds more than arrays, numbers, texts and lists; nothing was run"
                )
            handler(self)

    # Reading

    def take(self, count: int) -> bytes:
        start = self.position
        end = self.position = start + count
        if not start <= end <= len(self.data):
            raise ValueError("it is cut short")
        return self.data[start:end]

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.position)
        text = self.data[self.position : end]
        self.position = end + 1
        return text.decode("ascii")

    # Building

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise RefusedPickle(
                f"builds values of more than {MEMORY_RATIO} times its size of "
                f"{len(self.data):,} bytes; no file of sketches does"
            )

    def push(self, value, size: int = 0) -> None:
        if size:
            self.spend(size)
        self.stack.append(value)

    def mark(self) -> None:
        if len(self.marked) == MAX_DEPTH:
            raise RefusedPickle(f"is nested more than {MAX_DEPTH} deep")
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list:
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def remember(self, key: int) -> None:
        self.spend(_CONTAINER)
        self.memo[key] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("it takes from an empty stack")
        self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]
        self.spend(_CONTAINER)

    def extend(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("it appends to something else than a list")
        target.extend(items)

    def update(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("it puts items into something else than a dictionary")
        self.spend(_CONTAINER * len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Numbers could be chosen so that a dictionary of them takes for ever.
            if type(key) not in (str, bytes):
                raise RefusedPickle(f"has a dictionary's key of type {type(key).__name__}")
            target[key] = value

    def dictionary(self, items: list) -> None:
        self.push({}, _CONTAINER)
        self.update(items)

    def find(self, module: str, name: str) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name in it is no text")
        kind = _GLOBALS.get((module, name))
        if kind is None:
            raise RefusedPickle(
                f"wants {module[:100]}.{name[:100]}; only NumPy arrays, numbers, texts and lists "
                "are read, and nothing was run"
            )
        self.push(_Global(kind), _CONTAINER)

    def found(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.find(module, name)

    def reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack.pop()
        if type(function) is not _Global or type(arguments) is not tuple:
            raise RefusedPickle("calls something that is not by name; nothing was run")
        make = getattr(self, f"make_{function.kind}", None)
        if make is None:
            raise RefusedPickle(f"calls {function.kind}; nothing was run")
        self.stack.append(make(*arguments))

    def make_bytes(self) -> bytes:
        return b""

    def make_encode(self, text: str, encoding: str) -> bytes:
        if type(text) is not str or encoding != "latin1":
            raise RefusedPickle("encodes a text in another way than as Latin-1")
        self.spend(len(text))
        return text.encode("latin-1")

    def make_dtype(self, code: str, align=False, copy=False) -> _Dtype:
        if type(code) is not str or not _DTYPE.fullmatch(code):
            code = code[:50] if type(code) is str else type(code).__name__
            raise RefusedPickle(f"holds an array of dtype {code!r}; numbers and objects are read")
        self.spend(_CONTAINER)
        return _Dtype(code)

    def make_scalar(self, dtype: _Dtype, raw) -> Any:
        if dtype.code.startswith("O"):
            raise RefusedPickle("holds a NumPy scalar that is an object")
        real, raw = self.check((), dtype, raw)
        return np.frombuffer(raw, real)[0].item()

    def make_reconstruct(self, kind, shape, code) -> np.ndarray:
        if type(kind) is not _Global or kind.kind != "ndarray":
            raise RefusedPickle("makes an array of another class than numpy.ndarray")
        array = np.empty(0)
        self.spend(_ARRAY)
        self.fresh[id(array)] = array
        return array

    def make_frombuffer(self, raw, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
        real, raw = self.check(shape, dtype, raw)
        return np.frombuffer(raw, real).reshape(shape, order="F" if order == "F" else "C")

    def check(self, shape: tuple, dtype: _Dtype, raw) -> tuple[np.dtype, bytes | list]:
        """Dtype and content of an array, once they are known to fit the shape and the memory."""
        # No message shows a value: written out, one may be far larger than it is.
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

    def build(self) -> None:
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
            # In place, for the pickle may refer to the array by number.
            target.__setstate__((1, shape, real, bool(fortran), raw))
        else:
            raise RefusedPickle(f"sets the state of a {type(target).__name__}; nothing was run")

    # Instructions with texts and numbers of their own

    def py2_string(self, text: bytes) -> None:
        self.push(text.decode("latin-1"))

    def quoted_string(self) -> None:
        value = ast.literal_eval("b" + self.line())
        if type(value) is not bytes:
            raise ValueError("a text in it is none")
        self.py2_string(value)

    def unicode_line(self) -> None:
        end = self.data.index(b"\n", self.position)
        self.push(self.take(end - self.position).decode("raw-unicode-escape"))
        self.position = end + 1

    def text(self, form: struct.Struct) -> None:
        self.push(self.take(self.number(form)).decode("utf-8", "surrogatepass"))

    def integer_line(self) -> None:
        text = self.line()
        if text in ("00", "01"):
            self.push(text == "01")
        else:
            self.push(int(text.removesuffix("L")), _NUMBER)

    def long(self, form: struct.Struct) -> None:
        size = self.number(form)
        if size > 128:
            raise RefusedPickle(f"holds a whole number of {size:,} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True), _NUMBER)


_U1, _U2, _U4, _U8 = (struct.Struct(form) for form in ("<B", "<H", "<I", "<Q"))
_I4 = struct.Struct("<i")
_F8 = struct.Struct(">d")
_STOP = ord(".")

_OPERATIONS = {
    # Frames and versions change nothing.
    0x80: lambda m: m.take(1),
    0x95: lambda m: m.take(8),
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop,
    ord("1"): lambda m: m.since_mark(),
    ord("2"): lambda m: m.push(m.stack[-1]),
    # Constants and numbers
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): _Machine.integer_line,
    ord("L"): _Machine.integer_line,
    ord("J"): lambda m: m.push(m.number(_I4), _NUMBER),
    ord("K"): lambda m: m.push(m.number(_U1)),
    ord("M"): lambda m: m.push(m.number(_U2), _NUMBER),
    0x8A: lambda m: m.long(_U1),
    0x8B: lambda m: m.long(_U4),
    ord("F"): lambda m: m.push(float(m.line()), _NUMBER),
    ord("G"): lambda m: m.push(m.number(_F8), _NUMBER),
    # Texts and bytes
    ord("S"): _Machine.quoted_string,
    ord("T"): lambda m: m.py2_string(m.take(m.number(_U4))),
    ord("U"): lambda m: m.py2_string(m.take(m.number(_U1))),
    ord("V"): _Machine.unicode_line,
    ord("X"): lambda m: m.text(_U4),
    0x8C: lambda m: m.text(_U1),
    0x8D: lambda m: m.text(_U8),
    ord("B"): lambda m: m.push(m.take(m.number(_U4))),
    ord("C"): lambda m: m.push(m.take(m.number(_U1))),
    0x8E: lambda m: m.push(m.take(m.number(_U8))),
    0x96: lambda m: m.push(bytearray(m.take(m.number(_U8)))),
    # Containers
    ord("]"): lambda m: m.push([], _CONTAINER),
    ord("a"): lambda m: m.extend([m.stack.pop()]),
    ord("e"): lambda m: m.extend(m.since_mark()),
    ord("l"): lambda m: m.push(m.since_mark(), _CONTAINER),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.since_mark()), _CONTAINER),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("}"): lambda m: m.push({}, _CONTAINER),
    ord("d"): lambda m: m.dictionary(m.since_mark()),
    ord("s"): lambda m: m.update([m.stack.pop(), m.stack.pop()][::-1]),
    ord("u"): lambda m: m.update(m.since_mark()),
    # The memo
    ord("g"): lambda m: m.push(m.memo[int(m.line())]),
    ord("h"): lambda m: m.push(m.memo[m.number(_U1)]),
    ord("j"): lambda m: m.push(m.memo[m.number(_U4)]),
    ord("p"): lambda m: m.remember(int(m.line())),
    ord("q"): lambda m: m.remember(m.number(_U1)),
    ord("r"): lambda m: m.remember(m.number(_U4)),
    0x94: lambda m: m.remember(len(m.memo)),
    # Names
    ord("c"): lambda m: m.find(m.line(), m.line()),
    0x93: _Machine.found,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
}
