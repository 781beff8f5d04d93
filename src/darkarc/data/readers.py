"""What `darkarc predict` takes: image files of every kind, folders of them, and stores, as one stream."""

import os
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

__all__ = ["READERS", "ImageItem", "iter_images"]

READERS: dict[str, Callable[[Path], Iterator[Block | BadFile]]] = {
    ".npy": npy_blocks,
    ".npz": npz_blocks,
    ".fits": fits_blocks,
    ".fit": fits_blocks,
    ".h5": hdf5_blocks,
    ".hdf5": hdf5_blocks,
    ".tgz": archive_blocks,
    ".tar.gz": archive_blocks,
    ".tar": archive_blocks,
}
"""File name endings, and what reads them."""


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


def iter_images(paths: Iterable[str | Path]) -> Iterator[ImageItem]:
    """Every image of files, folders (below them too, sorted) and stores, in the order given.

    Memory depends neither on the number of files nor on the length of a stack. A bad file gives an
    item with `error`, and the stream goes on.
    """
    for path in paths:
        yield from _expand(Path(path))


def _expand(path: Path) -> Iterator[ImageItem]:
    if not path.exists():
        yield ImageItem(str(path), None, None, "no such file or folder")
    elif (path / MANIFEST).is_file():
        yield from _read(path, store_blocks)
    elif path.is_dir():
        n = 0
        for found in _below(path, set()):
            n += 1
            if isinstance(found, ImageItem):
                yield found
            else:
                yield from _read(found, store_blocks if found.is_dir() else _reader(found) or npy_blocks)
        if n == 0:
            yield ImageItem(str(path), None, None, f"no image file in it ({', '.join(READERS)})")
    elif reader := _reader(path):
        yield from _read(path, reader)
    else:
        endings = ", ".join(READERS)
        yield ImageItem(str(path), None, None, f"of unknown kind; expected {endings}, a folder or a store")


def _reader(path: Path) -> Callable[[Path], Iterator[Block | BadFile]] | None:
    name = path.name.lower()
    return next((reader for ending, reader in READERS.items() if name.endswith(ending)), None)


def _below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path | ImageItem]:
    """Image files and stores below a folder, sorted; hidden ones are left out, loops of links cut."""
    try:
        status = folder.stat()
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        yield ImageItem(str(folder), None, None, f"cannot be read: {error.strerror}")
        return
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            if _reader(path):
                yield path
        elif (path / MANIFEST).is_file():
            yield path
        else:
            yield from _below(path, seen)


def _read(path: Path, reader: Callable[[Path], Iterator[Block | BadFile]]) -> Iterator[ImageItem]:
    if path.exists() and not (path.is_file() or path.is_dir()):
        # Opening a pipe would wait for ever.
        yield ImageItem(str(path), None, None, "not a regular file")
        return
    try:
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
