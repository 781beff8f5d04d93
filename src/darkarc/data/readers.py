"""What `darkarc predict` takes: image files of every kind, folders of them, and stores, as one stream."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from darkarc.data._formats import (
    Block,
    archive_blocks,
    fits_blocks,
    hdf5_blocks,
    npy_blocks,
    npz_blocks,
    store_blocks,
)
from darkarc.data._manifest import MANIFEST
from darkarc.data._npy import BadFile

__all__ = ["READERS", "ImageItem", "iter_images", "said_of"]

Reader = Callable[[Path], Iterator[Block | BadFile]]

READERS: dict[str, Reader] = {
    ".npy": npy_blocks,
    ".npz": npz_blocks,
    ".fits": fits_blocks,
    ".fit": fits_blocks,
    ".fts": fits_blocks,
    ".fits.gz": fits_blocks,
    ".fit.gz": fits_blocks,
    ".fts.gz": fits_blocks,
    ".fits.fz": fits_blocks,
    ".fit.fz": fits_blocks,
    ".h5": hdf5_blocks,
    ".hdf5": hdf5_blocks,
    ".tgz": archive_blocks,
    ".tar.gz": archive_blocks,
    ".tar": archive_blocks,
}
"""File name endings, and what reads them."""

PACKED = (".gz", ".bz2", ".xz", ".zst", ".z")
"""Endings that say nothing of what is inside: the one before them is named, too."""
MOST_ENDINGS = 6
"""Kinds of files passed over that are named; all of them count."""


@dataclass(frozen=True)
class ImageItem:
    """One image, or why there is none: exactly one of `image` and `error` is None.

    `path` names the file, with `:name` after it where an array of several in it is meant; `index` is
    the position in a stack, None for a single image. `image` (height, width) is float32, or of the
    file's integer type.
    """

    path: str
    index: int | None
    image: np.ndarray | None
    error: str | None = None


def iter_images(paths: Iterable[str | Path], passed_over: Counter[str] | None = None) -> Iterator[ImageItem]:
    """Every image of files, folders (below them too, sorted) and stores, in the order given.

    passed_over: counts the other files of folders, but for hidden ones, by their endings, as they are met.

    Memory depends neither on the number of files nor on the length of a stack. A bad file gives an
    item with `error`, and the stream goes on.
    """
    counted = Counter[str]() if passed_over is None else passed_over
    for path in paths:
        yield from _expand(Path(path), counted)


def ending(name: str) -> str:
    """`.zip` of lenses.ZIP, `.fits.bz2` of a packed file, "" of README."""
    stem, last = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] + last if last in PACKED else last


def said_of(passed_over: Counter[str]) -> str:
    """`passed over 5 other files: 3 .zip, 2 .txt`; "" for none."""
    if not passed_over:
        return ""
    kinds = [f"{n} {kind or 'without an ending'}" for kind, n in passed_over.most_common(MOST_ENDINGS)]
    more = ["..."] if len(passed_over) > MOST_ENDINGS else []
    n = passed_over.total()
    return f"passed over {n} other {'file' if n == 1 else 'files'}: {', '.join([*kinds, *more])}"


def _expand(path: Path, passed_over: Counter[str]) -> Iterator[ImageItem]:
    try:
        there, is_store, is_folder = path.exists(), (path / MANIFEST).is_file(), path.is_dir()
    except OSError as error:
        yield _unreadable(path, error)
        return
    if not there:
        yield ImageItem(str(path), None, None, "no such file or folder")
    elif is_store:
        yield from _read(path, store_blocks)
    elif is_folder:
        n = 0
        for found in _below(path, set(), passed_over):
            n += 1
            if isinstance(found, ImageItem):
                yield found
            else:
                yield from _read(*found)
        if n == 0:
            yield ImageItem(str(path), None, None, f"no image file in it ({', '.join(READERS)})")
    elif reader := _reader(path):
        yield from _read(path, reader)
    else:
        endings = ", ".join(READERS)
        yield ImageItem(str(path), None, None, f"of unknown kind; expected {endings}, a folder or a store")


def _unreadable(path: Path, error: OSError) -> ImageItem:
    return ImageItem(str(path), None, None, f"cannot be read: {error.strerror}")


def _reader(path: Path) -> Reader | None:
    name = path.name.lower()
    return next((reader for ending, reader in READERS.items() if name.endswith(ending)), None)


def _below(
    folder: Path, seen: set[tuple[int, int]], passed_over: Counter[str]
) -> Iterator[tuple[Path, Reader] | ImageItem]:
    """Image files and stores below a folder, sorted; hidden ones are left out, loops of links cut."""
    try:
        status = folder.stat()
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        yield _unreadable(folder, error)
        return
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        try:
            is_folder = entry.is_dir()
            is_store = is_folder and (path / MANIFEST).is_file()
        except OSError as error:
            yield _unreadable(path, error)
            continue
        if is_store:
            yield path, store_blocks
        elif is_folder:
            yield from _below(path, seen, passed_over)
        elif reader := _reader(path):
            yield path, reader
        else:
            passed_over[ending(entry.name)] += 1


def _read(path: Path, reader: Reader) -> Iterator[ImageItem]:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            # Opening a pipe would wait for ever.
            raise BadFile(path, "not a regular file")
        for block in reader(path):
            if isinstance(block, BadFile):
                yield ImageItem(f"{path}:{block.path}", None, None, block.reason)
            else:
                yield from _items(path, block)
    except BadFile as bad:
        yield ImageItem(str(path), None, None, bad.reason)
    except Exception as error:
        # The libraries behind the formats raise what they like at a damaged file; the stream goes on.
        yield ImageItem(str(path), None, None, f"cannot be read: {error or type(error).__name__}")


def _items(path: Path, block: Block) -> Iterator[ImageItem]:
    name = f"{path}:{block.inside}" if block.inside else str(path)
    for number, image in enumerate(block.images):
        index = None if block.first is None else block.first + number
        try:
            yield ImageItem(name, index, _plain(image))
        except ValueError as error:
            yield ImageItem(name, index, None, str(error))


def _plain(image: np.ndarray) -> np.ndarray:
    """A copy as float32, or in the integer type it came in; ValueError for pixels that are no numbers."""
    if image.dtype.kind in "iu":
        return np.array(image, image.dtype.newbyteorder("="))
    if image.dtype.kind != "f":
        raise ValueError(f"its pixels are {image.dtype}; expected real numbers")
    with np.errstate(over="ignore"):
        converted = np.array(image, np.float32)
    n_bad = converted.size - int(np.isfinite(converted).sum())
    if n_bad:
        raise ValueError(f"{n_bad} of {converted.size} pixels are NaN, infinite or too large for float32")
    return converted
