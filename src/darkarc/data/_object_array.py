"""DeepLense's pickled object arrays, rebuilt without pickle.

Files of one data set differ only in the bytes of their numbers. What the interpreter made of one file is
therefore kept, and serves for every later file that equals it, byte for byte, everywhere else.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from darkarc.data._pickle_interpreter import Array, ByteString, ForbiddenPickle, Interpreter, Numbers, kind_of

__all__ = ["ForbiddenPickle", "Objects", "read_object_array"]

MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Objects:
    """An object array, or a list: its shape, and its elements in C order."""

    shape: tuple[int, ...]
    _elements: list[Any]
    _content: memoryview

    def elements(self) -> list[Any]:
        """Arrays of numbers (read-only views of the file's bytes), numbers, text, None, or `Objects`."""
        if len(self._elements) != math.prod(self.shape):
            raise ForbiddenPickle(
                f"its pickle holds an object array of shape {self.shape} with other content"
            )
        return [_resolve(element, self._content) for element in self._elements]


@dataclass(frozen=True)
class _Template:
    """What was made of one file, and the bytes that made it so: all but those of the numbers."""

    array: Array
    fixed: tuple[tuple[int, bytes], ...]

    def fits(self, content: memoryview) -> bool:
        return all(content[begin : begin + len(fixed)] == fixed for begin, fixed in self.fixed)


_MAX_TEMPLATES = 16
_MAX_FIXED_BYTES = 4096
_templates: dict[int, _Template] = {}


def read_object_array(content: bytes | memoryview) -> Objects:
    """Interpret the pickle of one object array; raises `ForbiddenPickle` that names what is forbidden."""
    content = memoryview(content)
    if len(content) > MAX_BYTES:
        raise ForbiddenPickle(f"an object array of {len(content)} bytes; at most {MAX_BYTES} are read")
    template = _templates.get(len(content))
    if template is not None and template.fits(content):
        array: Any = template.array
    else:
        interpreter = Interpreter(content)
        array = interpreter.run()
        if isinstance(array, Array) and template is None and len(_templates) < _MAX_TEMPLATES:
            _keep(array, interpreter.places, content)
    objects = _resolve(array, content)
    if not isinstance(objects, Objects):
        raise ForbiddenPickle(f"its pickle holds {kind_of(objects)}, not an object array")
    return objects


def _keep(array: Array, places: list[ByteString], content: memoryview) -> None:
    """Make a template, unless the bytes of a number also served as text."""
    if any(place.is_text for place in places):
        return
    ends = [(0, 0), *sorted((place.begin, place.end) for place in places), (len(content), len(content))]
    fixed = tuple((end, bytes(content[end:begin])) for (_, end), (begin, _) in pairwise(ends))
    if sum(len(part) for _, part in fixed) <= _MAX_FIXED_BYTES:
        _templates[len(content)] = _Template(array, fixed)


def _resolve(element: Any, content: memoryview) -> Any:
    if isinstance(element, Numbers):
        return element.of(content)
    if isinstance(element, Array):
        if element.numbers is not None:
            return element.numbers.of(content)
        if element.elements is None:
            raise ForbiddenPickle("its pickle holds an array without content")
        return Objects(element.shape, element.elements, content)
    if isinstance(element, list):
        return Objects((len(element),), element, content)
    if element is None or isinstance(element, int | float | str):
        return element
    raise ForbiddenPickle(f"its pickle holds {kind_of(element)} where an array or a number is expected")
