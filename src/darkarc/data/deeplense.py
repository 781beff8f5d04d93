"""DeepLense's files: images and axion masses in every published layout, classes from names.

Facts of the layouts: github.com/mwt5345/DeepLenseSim, github.com/ML4SCI/DeepLense.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from darkarc.data._npy import BadFile, read_bytes, read_npy
from darkarc.data._object_array import ForbiddenPickle, Objects

__all__ = [
    "BadFile",
    "RawSample",
    "class_of",
    "decode_deeplense",
    "instrument_of",
    "read_deeplense",
    "split_of",
]

CLASS_NAMES = {
    "axion": "axion",
    "cdm": "cdm",
    "no_sub": "no_sub",
    "vort": "axion",
    "sphere": "cdm",
    "no": "no_sub",
}
"""Both published spellings of the classes."""

MIN_SIDE = 8
"""Pixels; nothing smaller is an image of a lens."""

MAX_PIXELS = 2**24

_PREFIX = re.compile(rf"({'|'.join(sorted(CLASS_NAMES, key=len, reverse=True))})(?=[_\-.\d])")
_MODEL = re.compile(r"model_(i|ii|iii|iv)(_test)?")
_SPLITS = {
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "train": None,
    "training": None,
}


@dataclass(frozen=True)
class RawSample:
    """One file: `image` (height, width) in its own type, and log10(m / eV), None where there is no mass."""

    image: np.ndarray
    log10_mass_ev: float | None


def read_deeplense(path: str | Path) -> RawSample:
    """Read one `.npy` file of any published layout; executes nothing.

    Layouts: a 2-D array; an object array `[image, mass in eV]`, whose image may itself be an object
    array of rows; a flat image (side² numbers), alone, above a label row, or beside a label.
    Raises `BadFile` with the path and the reason.
    """
    return decode_deeplense(read_bytes(path), path)


def decode_deeplense(content: bytes, path: str | Path, with_mass: bool = True) -> RawSample:
    """`read_deeplense` of a file's bytes; `path` names it in errors.

    `with_mass` false: a label beside the image is not looked at (cdm and no_sub have no mass).
    """
    array = read_npy(content, path)
    try:
        if isinstance(array, np.ndarray):
            image, label = _split_label_row(array)
        else:
            image, label = _split_objects(array)
    except (ForbiddenPickle, _NotAnImage) as error:
        raise BadFile(path, str(error)) from error
    return RawSample(image, _log10_mass(label, path) if with_mass and label is not None else None)


class _NotAnImage(ValueError):
    """A layout that is none of the published ones."""


def _split_label_row(array: np.ndarray) -> tuple[np.ndarray, float | None]:
    """A plain array: an image in some shape, or two rows, a flat image and its label repeated."""
    if array.ndim == 2 and array.shape[0] == 2 and _side(array.shape[1]):
        labels = array[1]
        label = float(labels[0]) if (labels == labels[0]).all() else None
        return as_image(array[0]), label
    return as_image(array), None


def _split_objects(array: Objects) -> tuple[np.ndarray, float | None]:
    if len(array.shape) == 2 and min(array.shape) >= MIN_SIDE:
        return as_image(_stack_rows(array)), None
    if array.shape not in ((1,), (2,)):
        raise _NotAnImage(
            f"an object array of shape {array.shape}; the published ones are [image, mass in eV]"
        )
    image, *rest = array.elements()
    if isinstance(image, Objects):
        image = _stack_rows(image)
    if not isinstance(image, np.ndarray):
        raise _NotAnImage(f"its first element is a {type(image).__name__}, not an image")
    return as_image(image), _label(rest[0]) if rest else None


def _stack_rows(array: Objects) -> np.ndarray:
    """Row vectors as (n, length), single numbers as they lie."""
    rows = array.elements()
    if rows and all(type(row) in (int, float) for row in rows):
        return np.array(rows).reshape(array.shape)
    vectors = [row for row in rows if isinstance(row, np.ndarray) and row.size == max(row.shape, default=0)]
    if not rows or len(vectors) != len(rows):
        raise _NotAnImage("its image is an object array of something else than rows of numbers")
    lengths = {row.size for row in vectors}
    if len(lengths) != 1 or len(rows) * max(lengths) > MAX_PIXELS:
        raise _NotAnImage("the rows of its image differ in length, or are too many")
    return np.stack([row.reshape(-1) for row in vectors])


def _label(element: Any) -> float | None:
    """A mass in eV, or None where the label is not one number."""
    if isinstance(element, Objects) and element.shape in ((), (1,)):
        element = element.elements()[0]
    if isinstance(element, np.ndarray) and element.size == 1:
        element = element.reshape(-1)[0].item()
    if isinstance(element, int | float) and not isinstance(element, bool):
        return float(element)
    return None


def as_image(array: np.ndarray) -> np.ndarray:
    """An array (H, W), (1, H, W), (H, W, 1) or flat (side²,) as one image (H, W)."""
    shape = array.shape
    if array.ndim == 3 and shape[0] == 1:
        array = array[0]
    elif array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    elif array.ndim == 2 and 1 in shape:
        array = array.reshape(-1)
    if array.ndim == 1 and (side := _side(len(array))):
        array = array.reshape(side, side)
    if array.ndim != 2 or min(array.shape) < MIN_SIDE or array.size > MAX_PIXELS:
        raise _NotAnImage(f"an array of shape {shape}, which is not one image")
    return array


def _side(n: int) -> int:
    """Side of a flat square image of n pixels; 0 if it is not one."""
    side = math.isqrt(n)
    return side if side * side == n and side >= MIN_SIDE else 0


def _log10_mass(mass_ev: float, path: str | Path) -> float:
    if -60 < mass_ev < -5:
        raise BadFile(
            path, f"its mass is {mass_ev:g}: evidently log10 of the mass; the files hold the mass in eV"
        )
    if not (mass_ev > 0 and math.isfinite(mass_ev)):
        raise BadFile(path, f"its mass is {mass_ev:g} eV; expected a positive number")
    return math.log10(mass_ev)


# Classes, splits and instruments from names


def class_of(parts: Sequence[str]) -> str:
    """The class that a path's parts name: its nearest class folder, else its file's prefix.

    Raises ValueError with the reason where neither names a class, or where they disagree.
    """
    *folders, file = parts
    prefix = _PREFIX.match(file.lower())
    from_file = CLASS_NAMES[prefix[1]] if prefix else None
    from_folder = next(
        (CLASS_NAMES[name.lower()] for name in reversed(folders) if name.lower() in CLASS_NAMES), None
    )
    if from_folder and from_file and from_folder != from_file:
        raise ValueError(f"its folder says {from_folder}, its name says {from_file}")
    found = from_folder or from_file
    if found is None:
        names = ", ".join(CLASS_NAMES)
        raise ValueError(f"neither folder nor name says its class ({names}), as axion/axion_sim_1.npy does")
    return found


def split_of(folders: Sequence[str], above: Sequence[str] = ()) -> str | None:
    """The published split that folder names tell: "test", "validation", or None for training.

    Of the folders `above` the one that is read, only names such as Model_II_test count: a project may
    lie in a folder that happens to be called test.
    """
    for name in reversed(folders):
        if name.lower() in _SPLITS:
            return _SPLITS[name.lower()]
        if _MODEL.fullmatch(name.lower()):
            break
    models = [_MODEL.fullmatch(name.lower()) for name in (*above, *folders)]
    return "test" if any(model[2] for model in models if model) else None


def instrument_of(folders: Sequence[str]) -> str | None:
    """The preset, such as "model_ii", that folder names tell, or None."""
    for name in reversed(folders):
        model = _MODEL.fullmatch(name.lower())
        if model:
            return f"model_{model[1]}"
    return None
