"""The `.npy` format, read without numpy's loader: a header, then plain numbers or an object array."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from darkarc.data._object_array import ForbiddenPickle, Objects, read_object_array

MAX_FILE_BYTES = 64 * 2**20

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000
_MAX_NDIM = 4
_DESCR = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?)([a-zA-Z]\d{0,4})['"]""")
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
# As numpy and Python 2 write it; int() takes no more than this, whatever else counts as a digit or a blank.
_SHAPE = re.compile(r"""['"]shape['"] *: *\(((?: *[0-9]{1,20}L? *,)*(?: *[0-9]{1,20}L?)? *)\)""")
_PIXELS = re.compile(r"f[248]|[iu][1248]")


class BadFile(ValueError):
    """A file that cannot be used: `path`, and `reason`, a phrase for a person."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return (BadFile, (self.path, self.reason))


def read_bytes(path: str | Path) -> bytes:
    """All bytes of a file that holds one image; raises `BadFile`."""
    try:
        with open(path, "rb", buffering=0) as file:
            # Not read(MAX_FILE_BYTES + 1): that would set so much memory aside for every file.
            content = file.read(min(os.fstat(file.fileno()).st_size, MAX_FILE_BYTES) + 1)
    except OSError as error:
        raise BadFile(path, f"cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise BadFile(path, f"over {MAX_FILE_BYTES} bytes; no image of a lens is that large")
    return content


class NoPixels(BadFile):
    """An array that cannot be one of images: of text, of flags, of too many axes."""


@dataclass(frozen=True)
class NpyHeader:
    """What stands before the numbers; `dtype` is None for an object array, `offset` in bytes."""

    dtype: np.dtype | None
    fortran: bool
    shape: tuple[int, ...]
    offset: int

    @property
    def n_bytes(self) -> int:
        """Bytes of numbers that must follow the header."""
        return 0 if self.dtype is None else math.prod(self.shape) * self.dtype.itemsize


def read_header(start: bytes | memoryview, path: str | Path) -> NpyHeader:
    """Parse a `.npy` header from the first bytes of a file (10,012 suffice).

    Raises `BadFile`, and `NoPixels` where only the type or the number of axes is not an image's.
    """
    if bytes(start[:6]) != _MAGIC:
        raise BadFile(path, "not an .npy file (it does not begin with \\x93NUMPY)")
    if len(start) < 12:
        raise BadFile(path, "truncated in its header")
    if start[6] not in (1, 2, 3):
        raise BadFile(path, f".npy format {start[6]}.{start[7]} is unknown; 1.0 to 3.0 are read")
    begin = 10 if start[6] == 1 else 12
    length = int.from_bytes(start[8:begin], "little")
    if length > _MAX_HEADER:
        raise BadFile(path, f"its header claims {length} bytes; at most {_MAX_HEADER} are read")
    if len(start) < begin + length:
        raise BadFile(path, "truncated in its header")
    text = bytes(start[begin : begin + length]).decode("latin1")
    descr, order, shape = _DESCR.search(text), _ORDER.search(text), _SHAPE.search(text)
    if not (descr and order and shape):
        raise NoPixels(path, "its header does not describe a plain array of numbers or an object array")
    sides = tuple(int(side) for side in shape[1].replace("L", "").split(",") if side.strip())
    if len(sides) > _MAX_NDIM or any(side >= 2**40 for side in sides):
        raise NoPixels(path, f"its shape {shape[0][-80:]} is not an image's or a stack's")
    return NpyHeader(_dtype(descr[1], descr[2], path), order[1] == "True", sides, begin + length)


def read_npy(content: bytes | memoryview, path: str | Path) -> np.ndarray | Objects:
    """The array in the bytes of a `.npy` file: a read-only view of them, or an object array's elements.

    Raises `BadFile` for anything truncated, longer than it says, or not made of numbers.
    """
    header = read_header(content, path)
    body = memoryview(content)[header.offset :]
    if header.dtype is None:
        return _read_objects(body, header, path)
    if len(body) != header.n_bytes:
        word = "truncated" if len(body) < header.n_bytes else "longer than it says"
        raise BadFile(path, f"{word}: {len(body)} bytes of numbers, its header promises {header.n_bytes}")
    flat = np.frombuffer(body, header.dtype)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def _read_objects(body: memoryview, header: NpyHeader, path: str | Path) -> Objects:
    try:
        objects = read_object_array(body)
    except ForbiddenPickle as error:
        raise BadFile(path, str(error)) from error
    if objects.shape != header.shape:
        raise BadFile(path, f"its header promises shape {header.shape}, its content has {objects.shape}")
    return objects


def _dtype(order: str, code: str, path: str | Path) -> np.dtype | None:
    if code in ("O", "O8", "O4"):
        return None
    if not _PIXELS.fullmatch(code):
        raise NoPixels(path, f"its values are of type {code!r}; an image holds real numbers")
    return np.dtype(order.replace("=", "<") + code)
