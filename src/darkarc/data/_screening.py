"""What makes one image unfit for a store, and what makes two images twins."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from darkarc.data._manifest import pixel_sha256
from darkarc.data._npy import BadFile
from darkarc.data._sources import SourceFile
from darkarc.data.deeplense import class_of, decode_deeplense, instrument_of, split_of


@dataclass(frozen=True)
class Format:
    """What all images of a set share: (height, width), and the type they are stored in."""

    shape: tuple[int, int]
    dtype: str


@dataclass(frozen=True)
class Rules:
    """What a set expects of each file. `parents`: names of folders above the source."""

    format: Format
    instrument: str | None
    log10_mass_range_ev: tuple[float, float]
    parents: tuple[str, ...]


@dataclass(frozen=True)
class Accepted:
    """An image fit for the store, in the store's type, and its row."""

    name: str
    image: np.ndarray
    class_name: str
    log10_mass_ev: float | None
    split: str | None
    pixel_sha256: str
    group_id: str


def format_of(image: np.ndarray) -> Format:
    """The format a set would have if all of it were like this image: floats become float32."""
    dtype = "float32" if image.dtype.kind == "f" else image.dtype.newbyteorder("=").name
    return Format((image.shape[0], image.shape[1]), dtype)


def examine(file: SourceFile, rules: Rules) -> Accepted | BadFile:
    """Read one file and hold it against the rules; never raises for a bad file."""
    try:
        return _accept(file, rules)
    except BadFile as bad:
        return BadFile(file.name, bad.reason)


def class_name_of(file: SourceFile, parents: tuple[str, ...]) -> str:
    """The class of a file; raises `BadFile`."""
    try:
        # Only the folder that was pointed at counts, not where that folder happens to lie.
        return class_of((*parents[-1:], *file.parts))
    except ValueError as error:
        raise BadFile(file.name, str(error)) from error


def _accept(file: SourceFile, rules: Rules) -> Accepted:
    content = file.read()
    class_name = class_name_of(file, rules.parents)
    folders = (*rules.parents, *file.parts[:-1])
    instrument = instrument_of(folders)
    if instrument != rules.instrument:
        raise BadFile(file.name, f"belongs to {instrument}, the others to {rules.instrument}")
    sample = decode_deeplense(content, file.name, with_mass=class_name == "axion")
    if class_name == "axion":
        _check_mass(file.name, sample.log10_mass_ev, rules.log10_mass_range_ev)
    image = screen(sample.image, rules.format, file.name)
    return Accepted(
        name=file.name,
        image=image,
        class_name=class_name,
        log10_mass_ev=sample.log10_mass_ev,
        split=split_of(file.parts[:-1], above=rules.parents),
        pixel_sha256=pixel_sha256(image),
        group_id=fingerprint(image),
    )


def _check_mass(name: str, log10_mass_ev: float | None, allowed: tuple[float, float]) -> None:
    low, high = allowed
    if log10_mass_ev is None:
        raise BadFile(name, "an axion image without a mass; expected an object array [image, mass in eV]")
    if not low - 1e-6 <= log10_mass_ev <= high + 1e-6:
        raise BadFile(
            name,
            f"its mass is {10**log10_mass_ev:.3g} eV, log10 {log10_mass_ev:.4g}; "
            f"expected log10 in [{low:g}, {high:g}]",
        )


def screen(image: np.ndarray, expected: Format, name: str) -> np.ndarray:
    """The image in the set's format; raises `BadFile` where it does not fit or cannot be real data."""
    if image.shape != expected.shape:
        sides = "{} x {} pixels, the set's images are {} x {}".format(*image.shape, *expected.shape)
        raise BadFile(name, sides)
    stored = np.dtype(expected.dtype)
    same = image.dtype.kind == "f" if stored.kind == "f" else np.can_cast(image.dtype, stored, "safe")
    if not same:
        raise BadFile(name, f"of type {image.dtype.name}, the set's images are {expected.dtype}")
    low, high = image.min(), image.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        n_bad = image.size - int(np.isfinite(image).sum())
        raise BadFile(name, f"{n_bad} of {image.size} pixels are NaN or infinite")
    if stored.kind == "f" and max(-low, high) > np.finfo(stored).max / 2:
        raise BadFile(name, f"pixels up to {max(-low, high):.3g}, too large for {stored.name}")
    converted = np.ascontiguousarray(image, dtype=stored)
    if converted.dtype != image.dtype:
        low, high = converted.min(), converted.max()
    if low == high:
        raise BadFile(name, f"constant: every pixel is {low:g}")
    if stored.kind == "i" and low < 0:
        raise BadFile(
            name, f"its lowest pixel is {low}; whole numbers are counts, and counts are not negative"
        )
    return converted


def fingerprint(image: np.ndarray) -> str:
    """A name that an image shares with its rotations and mirror images, bit for bit, and no other.

    Each pixel's bits are hashed together with the orbit of its position under the symmetries of the
    frame; the hashes are summed, so that order within an orbit does not count. 64 bits, hexadecimal:
    among a million images, one pair in ten million such sets would share a name by accident.
    """
    bits = image.view(f"u{image.dtype.itemsize}").astype(np.uint64)
    if image.dtype.kind == "f":
        # Minus zero is the same pixel as zero.
        bits[image == 0] = 0
    bits += _orbits(*image.shape)
    return f"d4-{int(_mix(bits).sum()):016x}"


@lru_cache(maxsize=8)
def _orbits(height: int, width: int) -> np.ndarray:
    """A random-looking number a pixel, equal at positions that rotations and flips of the frame exchange."""
    rows = np.abs(2 * np.arange(height) - (height - 1))[:, None]
    columns = np.abs(2 * np.arange(width) - (width - 1))[None, :]
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    # A turn by a quarter exchanges height and width: the short side is named first.
    return _mix((low.astype(np.uint64) << np.uint64(32)) + high.astype(np.uint64) + np.uint64(1))


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), in place: each bit depends on all."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words
