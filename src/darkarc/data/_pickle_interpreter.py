"""A reader of pickles that can only make arrays and numbers.

It knows the few opcodes that numpy writes for an object array of arrays and floats. It imports nothing, calls
nothing that a file names, and allocates nothing that the file does not itself contain: the callables it knows
(numpy's `_reconstruct`, `scalar`, `dtype`) are markers here, their arguments are checked, and arrays are
places in the file's own bytes.
"""

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_OPCODES = 1_000_000
_MAX_NDIM = 4
_TRUNCATED = "its pickle ends too early: the file is truncated"
_NUMBER = re.compile(r"f[248]|[iu][1248]")
_STRUCTS = {code: struct.Struct(f"<{code}") for code in "BHIQi"}
_DOUBLE = struct.Struct(">d")

_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",  # numpy 1
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",  # numpy 2
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
}


class ForbiddenPickle(ValueError):
    """A pickle that asks for something else than arrays and numbers, or that is damaged."""


@dataclass(frozen=True)
class Global:
    role: str


@dataclass
class ByteString:
    """A byte string by its place in the file; `is_text` once its content has been looked at."""

    begin: int
    end: int
    is_text: bool = False


@dataclass
class DType:
    """`numpy.dtype(code)`; its byte order comes with a later BUILD."""

    code: str
    order: str = "|"

    def resolve(self) -> np.dtype:
        return np.dtype(self.order + self.code)


@dataclass(frozen=True)
class Numbers:
    """An array of numbers, or (shape None) one number: its type, and the place of its bytes."""

    dtype: np.dtype
    shape: tuple[int, ...] | None
    fortran: bool
    place: ByteString

    def of(self, content: memoryview) -> Any:
        flat = np.frombuffer(content[self.place.begin : self.place.end], self.dtype)
        if self.shape is None:
            return flat[0].item()
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


@dataclass
class Array:
    """An array as `_reconstruct` makes it: empty until a BUILD gives it numbers, or elements."""

    numbers: Numbers | None = None
    shape: tuple[int, ...] = ()
    elements: list[Any] | None = None


class Interpreter:
    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._running = True
        self.places: list[ByteString] = []

    def run(self) -> Any:
        content, operations, end = self._content, _OPERATIONS, len(self._content)
        for _ in range(MAX_OPCODES):
            if self._at >= end:
                raise ForbiddenPickle(_TRUNCATED)
            code = content[self._at]
            self._at += 1
            operation = operations.get(code)
            if operation is None:
                raise ForbiddenPickle(
                    f"its pickle has opcode 0x{code:02x} at byte {self._at - 1}, "
                    "which arrays and numbers do not need"
                )
            operation(self)
            if not self._running:
                break
        else:
            raise ForbiddenPickle(f"its pickle has over {MAX_OPCODES} opcodes")
        if self._at != end:
            raise ForbiddenPickle(f"{end - self._at} bytes follow the end of its pickle")
        return self._pop()

    # The file's bytes

    def _take(self, n: int) -> memoryview:
        begin, self._at = self._at, self._at + n
        if self._at > len(self._content):
            raise ForbiddenPickle(_TRUNCATED)
        return self._content[begin : self._at]

    def _bytes(self, code: str) -> None:
        begin = self._at + _STRUCTS[code].size
        self._at = begin + self._number(code)
        if self._at > len(self._content):
            raise ForbiddenPickle(_TRUNCATED)
        self._stack.append(ByteString(begin, self._at))

    def _ascii(self, value: object, longest: int) -> str:
        """A short text; Python 2 wrote such texts as bytes. Empty where it is none, or too long."""
        if isinstance(value, ByteString) and value.end - value.begin <= longest:
            value.is_text = True
            return bytes(self._content[value.begin : value.end]).decode("ascii", "replace")
        return value if isinstance(value, str) and len(value) <= longest else ""

    def _number(self, code: str) -> int:
        layout = _STRUCTS[code]
        return layout.unpack(self._take(layout.size))[0]

    def _line(self) -> str:
        text = bytes(self._content[self._at : self._at + 256])
        length = text.find(b"\n")
        if length < 0:
            raise ForbiddenPickle("its pickle has a name without an end")
        self._at += length + 1
        return text[:length].decode("utf-8", "backslashreplace")

    # The stack

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ForbiddenPickle("its pickle takes from an empty stack")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise ForbiddenPickle("its pickle has no mark where one is needed")
        begin = self._marks.pop()
        items = self._stack[begin:]
        del self._stack[begin:]
        return items

    def _tuple(self, n: int) -> None:
        items = [self._pop() for _ in range(n)]
        self._stack.append(tuple(reversed(items)))

    def _remember(self, key: int) -> None:
        if not self._stack:
            raise ForbiddenPickle("its pickle remembers from an empty stack")
        self._memo[key] = self._stack[-1]

    def _recall(self, key: int) -> None:
        if key not in self._memo:
            raise ForbiddenPickle("its pickle recalls what it never remembered")
        self._stack.append(self._memo[key])

    def _append(self, items: list[Any]) -> None:
        target = self._pop()
        if not isinstance(target, list):
            raise ForbiddenPickle(f"its pickle appends to {kind_of(target)}")
        target.extend(items)
        self._stack.append(target)

    # Names and calls

    def _find(self, module: object, name: object) -> None:
        role = _GLOBALS.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if role is None:
            raise ForbiddenPickle(
                f"its pickle asks for {ascii(str(module)[:80])[1:-1]}.{ascii(str(name)[:80])[1:-1]}; "
                "only arrays and numbers are read"
            )
        self._stack.append(Global(role))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ForbiddenPickle("its pickle asks for a global whose name is not text")
        self._find(module, name)

    def _call(self) -> None:
        arguments, callee = self._pop(), self._pop()
        role = callee.role if isinstance(callee, Global) else ""
        calls = {"reconstruct": self._reconstruct, "dtype": self._dtype, "scalar": self._scalar}
        if not isinstance(arguments, tuple) or role not in calls:
            raise ForbiddenPickle(f"its pickle calls {kind_of(callee)}")
        made = calls[role](arguments)
        if made is None:
            raise ForbiddenPickle(f"its pickle calls numpy's {role} with unusual arguments")
        self._stack.append(made)

    def _reconstruct(self, arguments: tuple[Any, ...]) -> Array | None:
        """`_reconstruct(ndarray, (0,), b"b")`: what numpy writes for every array."""
        match arguments:
            case (Global(role="ndarray"), (0,), code) if self._ascii(code, 1) == "b":
                return Array()
        return None

    def _dtype(self, arguments: tuple[Any, ...]) -> DType | None:
        match arguments:
            case (text, bool() | 0 | 1, bool() | 0 | 1):
                code = self._ascii(text, 2)
                if code in ("O8", "O4", "O"):
                    return DType("O")
                if _NUMBER.fullmatch(code):
                    return DType(code)
                raise ForbiddenPickle(f"its pickle holds values of type {code or '?'!a}, not numbers")
        return None

    def _scalar(self, arguments: tuple[Any, ...]) -> Numbers | None:
        match arguments:
            case (DType() as dtype, ByteString() as place) if dtype.code != "O":
                resolved = dtype.resolve()
                if place.end - place.begin == resolved.itemsize:
                    self.places.append(place)
                    return Numbers(resolved, None, False, place)
        return None

    def _build(self) -> None:
        state, target = self._pop(), self._pop()
        if isinstance(target, DType):
            self._set_order(target, state)
        elif isinstance(target, Array) and target.numbers is None and target.elements is None:
            self._fill(target, state)
        else:
            raise ForbiddenPickle(f"its pickle sets the state of {kind_of(target)}")
        self._stack.append(target)

    def _set_order(self, dtype: DType, state: Any) -> None:
        """The state of a plain dtype: (version, byte order, no subarray, no names, no fields, …)."""
        match state:
            case (3 | 4, text, None, None, None, int(), int(), int(), *rest) if rest in ([], [None]):
                order = self._ascii(text, 1)
                if order in ("<", ">", "|"):
                    dtype.order = order
                    return
        raise ForbiddenPickle("its pickle holds a structured type, not plain numbers")

    def _fill(self, target: Array, state: Any) -> None:
        """An array's state: (version, shape, dtype, Fortran order, bytes or list of elements)."""
        match state:
            case (1, tuple() as shape, DType() as dtype, bool() | 0 | 1 as fortran, content):
                pass
            case _:
                raise ForbiddenPickle("its pickle holds an array in an unusual form")
        if len(shape) > _MAX_NDIM or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
            raise ForbiddenPickle("its pickle holds an array of an unusual shape")
        size = math.prod(shape)
        if dtype.code == "O":
            if not isinstance(content, list) or len(content) != size or (fortran and len(shape) > 1):
                raise ForbiddenPickle(f"its pickle holds an object array of shape {shape} with other content")
            target.shape, target.elements = shape, content
            return
        resolved = dtype.resolve()
        if not isinstance(content, ByteString) or content.end - content.begin != size * resolved.itemsize:
            raise ForbiddenPickle(f"its pickle holds an array of shape {shape} with other content")
        self.places.append(content)
        target.numbers = Numbers(resolved, shape, bool(fortran), content)

    def _stop(self) -> None:
        self._running = False

    def _skip_frame(self) -> None:
        if self._number("Q") > len(self._content) - self._at:
            raise ForbiddenPickle(_TRUNCATED)

    def _protocol(self) -> None:
        version = self._take(1)[0]
        if version > 5:
            raise ForbiddenPickle(f"its pickle has protocol {version}; at most 5 is read")

    def _long(self) -> None:
        # Integers of up to 8 bytes: counts and sides of images, not numbers to choke on.
        size = self._take(1)[0]
        if size > 8:
            raise ForbiddenPickle(f"its pickle has an integer of {size} bytes")
        self._stack.append(int.from_bytes(self._take(size), "little", signed=True))

    def _text(self, code: str) -> None:
        raw = bytes(self._take(self._number(code)))
        self._stack.append(raw.decode("utf-8", "backslashreplace"))


def kind_of(value: Any) -> str:
    if isinstance(value, Global):
        return f"numpy's {value.role}"
    return {
        DType: "a dtype",
        Array: "an array",
        np.ndarray: "an array of numbers",
        ByteString: "bytes",
    }.get(type(value), f"a {type(value).__name__}")


_OPERATIONS: dict[int, Callable[[Interpreter], None]] = {
    0x80: lambda m: m._protocol(),
    0x95: lambda m: m._skip_frame(),
    ord("."): lambda m: m._stop(),
    # names, calls, state
    ord("c"): lambda m: m._find(m._line(), m._line()),
    ord("i"): lambda m: m._find(m._line(), m._line()),
    0x93: lambda m: m._stack_global(),
    ord("R"): lambda m: m._call(),
    ord("b"): lambda m: m._build(),
    # memory
    ord("q"): lambda m: m._remember(m._take(1)[0]),
    ord("r"): lambda m: m._remember(m._number("I")),
    0x94: lambda m: m._remember(len(m._memo)),
    ord("h"): lambda m: m._recall(m._take(1)[0]),
    ord("j"): lambda m: m._recall(m._number("I")),
    # plain values
    ord("N"): lambda m: m._stack.append(None),
    0x88: lambda m: m._stack.append(True),
    0x89: lambda m: m._stack.append(False),
    ord("K"): lambda m: m._stack.append(m._number("B")),
    ord("M"): lambda m: m._stack.append(m._number("H")),
    ord("J"): lambda m: m._stack.append(m._number("i")),
    0x8A: lambda m: m._long(),
    ord("G"): lambda m: m._stack.append(_DOUBLE.unpack(m._take(8))[0]),
    0x8C: lambda m: m._text("B"),
    ord("X"): lambda m: m._text("I"),
    # bytes, and Python 2's strings
    ord("C"): lambda m: m._bytes("B"),
    ord("B"): lambda m: m._bytes("I"),
    0x8E: lambda m: m._bytes("Q"),
    ord("U"): lambda m: m._bytes("B"),
    ord("T"): lambda m: m._bytes("I"),
    # tuples and lists
    ord("("): lambda m: m._marks.append(len(m._stack)),
    ord(")"): lambda m: m._stack.append(()),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("t"): lambda m: m._stack.append(tuple(m._pop_to_mark())),
    ord("]"): lambda m: m._stack.append([]),
    ord("a"): lambda m: m._append([m._pop()]),
    ord("e"): lambda m: m._append(m._pop_to_mark()),
}
