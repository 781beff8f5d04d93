"""Image files of every kind, read block by block: memory does not grow with the length of a stack."""

import contextlib
import errno
import gzip
import math
import os
import resource
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import numpy as np

from darkarc.data._npy import BadFile, NoPixels, read_bytes, read_header
from darkarc.data._sources import ArchiveSource
from darkarc.data._unpacking import check_chunks, check_tiles
from darkarc.data.deeplense import MAX_PIXELS, MIN_SIDE, decode_deeplense
from darkarc.data.store import Store

_BLOCK_BYTES = 8 * 2**20
_MAX_CHUNK_BYTES = 256 * 2**20
_MAX_EXPANSION = 200
_FREE_BYTES = 256 * 2**20
_SPOOLED_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Block:
    """Images (n, height, width) of one file. `inside` names the array in its container ("" if it is the
    only one), `first` is the index of the first image in its stack, None for a single image."""

    inside: str
    first: int | None
    images: np.ndarray


@dataclass(frozen=True)
class _Stack:
    """How images lie in an array of 2 to 4 axes: `n` of them (None: one that is no stack)."""

    n: int | None
    shape: tuple[int, int]
    selection: tuple[Any, ...]

    def blocks(self, inside: str, read: Callable[[tuple[Any, ...]], np.ndarray]) -> Iterator[Block]:
        """`read` takes an index of the array and gives that part of it."""
        height, width = self.shape
        if self.n is None:
            yield Block(inside, None, np.asarray(read(self.selection)).reshape(1, height, width))
            return
        step = max(1, _BLOCK_BYTES // (8 * height * width))
        for begin in range(0, self.n, step):
            part = np.asarray(read((slice(begin, min(begin + step, self.n)), *self.selection)))
            yield Block(inside, begin, part.reshape(-1, height, width))


def stack_of(shape: Sequence[int]) -> _Stack:
    """Read a shape: (H, W), (N, H, W), (H, W, 1), (N, 1, H, W) or (N, H, W, 1); ValueError for others."""
    match tuple(shape):
        case (height, width):
            stack = _Stack(None, (height, width), (slice(None), slice(None)))
        case (1, height, width):
            stack = _Stack(None, (height, width), (0,))
        case (height, width, 1):
            stack = _Stack(None, (height, width), (slice(None), slice(None), 0))
        case (n, height, width):
            stack = _Stack(n, (height, width), ())
        case (n, 1, height, width):
            stack = _Stack(n, (height, width), (0,))
        case (n, height, width, 1):
            stack = _Stack(n, (height, width), (slice(None), slice(None), 0))
        case (_, _, _, _):
            raise ValueError(f"shape {tuple(shape)} has several channels; expected one, as (N, 1, H, W)")
        case _:
            raise ValueError(f"shape {tuple(shape)} is not one of images; expected (H, W) or (N, H, W)")
    height, width = stack.shape
    if stack.n == 0 or min(height, width) < MIN_SIDE or height * width > MAX_PIXELS:
        raise ValueError(
            f"shape {tuple(shape)} does not hold images of at least {MIN_SIDE} x {MIN_SIDE} pixels"
        )
    return stack


def npy_blocks(path: Path) -> Iterator[Block]:
    """`.npy` in every DeepLense layout, or a stack of any length."""
    with path.open("rb") as file:
        header = read_header(file.read(10_012), path)
    if header.dtype is None or len(header.shape) < 2 or (len(header.shape) == 2 and min(header.shape) <= 2):
        yield Block("", None, decode_deeplense(read_bytes(path), path, with_mass=False).image[None])
        return
    size = path.stat().st_size - header.offset
    if size != header.n_bytes:
        word = "truncated" if size < header.n_bytes else "longer than it says"
        raise BadFile(path, f"{word}: {size} bytes of numbers, its header promises {header.n_bytes}")
    stack = stack_of(header.shape)
    order: Any = "F" if header.fortran else "C"
    mapped = np.memmap(path, header.dtype, "r", header.offset, header.shape, order)
    yield from stack.blocks("", lambda index: np.array(mapped[index]))


def npz_blocks(path: Path) -> Iterator[Block | BadFile]:
    """Each array of an `.npz`, unpacked as a stream; what cannot be images is passed over.

    Object arrays, and images in Fortran order, are refused one by one: the others are read.
    """
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
        found, other = False, ""
        for info in members:
            if info.file_size > _FREE_BYTES + _MAX_EXPANSION * info.compress_size:
                raise BadFile(path, f"{info.filename} unpacks to over {_MAX_EXPANSION} times its size")
            inside = "" if len(members) == 1 else info.filename.removesuffix(".npy")
            with archive.open(info) as file:
                start = file.read(10_012)
                name = info.filename.removesuffix(".npy")
                try:
                    header = read_header(start, info.filename)
                except NoPixels as error:
                    other = other or str(error)
                    continue
                except BadFile as bad:
                    found = True
                    yield BadFile(name, bad.reason)
                    continue
                if header.dtype is None:
                    found = True
                    yield BadFile(name, "an object array; an .npz is read without pickle")
                    continue
                if header.offset + header.n_bytes != info.file_size:
                    raise BadFile(path, f"{info.filename}: its header does not agree with its size")
                try:
                    stack = stack_of(header.shape)
                except ValueError as error:
                    other = other or f"{info.filename}: {error}"
                    continue
                found = True
                if header.fortran:
                    yield BadFile(name, "in Fortran order; save it in C order")
                    continue
                n_ahead = header.offset
                reader = _Ahead(start[n_ahead:], file, header.dtype, header.shape)
                yield from stack.blocks(inside, reader.read)
        if not found:
            raise BadFile(path, other or "no array in it")


class _Ahead:
    """Reads a C-ordered array from a stream, block after block from its beginning."""

    def __init__(self, start: bytes, file: Any, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self._start, self._file, self._dtype, self._shape = start, file, dtype, shape

    def read(self, index: tuple[Any, ...]) -> np.ndarray:
        first = index[0]
        if isinstance(first, slice) and first.stop is not None:
            shape = (first.stop - first.start, *self._shape[1:])
            index = (slice(None), *index[1:])
        else:
            shape = self._shape
        size = math.prod(shape) * self._dtype.itemsize
        content, self._start = self._start[:size], self._start[size:]
        content += self._file.read(size - len(content))
        if len(content) != size:
            raise ValueError(f"truncated: {len(content)} bytes where {size} are promised")
        return np.frombuffer(content, self._dtype).reshape(shape)[index]


def fits_blocks(path: Path) -> Iterator[Block]:
    """Every image of a FITS file, (H, W) or cubes, plain or packed by gzip; other units are passed over."""
    from astropy.io import fits

    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    # A file of our own: astropy leaves the one that it opened open where it fails.
    with path.open("rb") as raw, _unpacked(path, raw) as file:
        if file.read(6) != b"SIMPLE":
            # Astropy would unpack other archives, too, to whatever size.
            raise BadFile(path, "not a FITS file (it does not begin with SIMPLE)")
        file.seek(0)
        units = _heeding(path, lambda: list(fits.open(file, memmap=False)))
        numbered = enumerate(units)
        images = [(number, unit) for number, unit in numbered if isinstance(unit, kinds) and unit.shape]
        if not images:
            raise BadFile(path, "no image in it")
        if any(isinstance(unit, fits.CompImageHDU) for _, unit in images):
            _heeding(path, lambda: check_tiles(path, file))
        found, other = False, ""
        for number, unit in images:
            try:
                stack = stack_of(unit.shape)
            except ValueError as error:
                other = other or f"extension {number}: {error}"
                continue
            found = True
            if isinstance(unit, fits.CompImageHDU):
                _check_chunk(path, getattr(unit, "tile_shape", None) or unit.shape, 8)
            inside = "" if len(images) == 1 else str(number)
            read = partial(_read_section, path, unit)
            yield from stack.blocks(inside, read)
        if not found:
            raise BadFile(path, f"no image in it; {other}")


def _unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    """The file itself; or what gzip has packed in it, in memory or (if it is large) a nameless file."""
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    if not packed:
        return raw
    left = _FREE_BYTES + _MAX_EXPANSION * os.fstat(raw.fileno()).st_size
    content = SpooledTemporaryFile(_SPOOLED_BYTES)  # noqa: SIM115  # the caller closes it
    try:
        with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
            while piece := stream.read(2**20):
                left -= len(piece)
                if left < 0:
                    raise BadFile(path, f"it unpacks to over {_MAX_EXPANSION} times its size")
                content.write(piece)
        content.seek(0)
    except BaseException as error:
        with contextlib.suppress(OSError):
            content.close()
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if isinstance(error, OSError) and error.errno == errno.EFBIG and limit != resource.RLIM_INFINITY:
            # The page's workers, for one, write no file at all: what fits into memory is the most.
            most = max(_SPOOLED_BYTES, limit) // 2**20
            raise BadFile(path, f"it unpacks to over {most} MB, the most here; unpack it first") from error
        raise
    return content


def _read_section(path: Path, unit: Any, index: tuple[Any, ...]) -> np.ndarray:
    return _heeding(path, lambda: unit.section[index])


def _heeding(path: Path, call: Callable[[], Any]) -> Any:
    """Astropy only warns of a truncated file, and of much that is harmless."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    if any("truncated" in str(warning.message) for warning in caught):
        raise BadFile(path, "truncated")
    return result


def hdf5_blocks(path: Path) -> Iterator[Block]:
    """Every data set of 2 to 4 axes of an HDF5 file, once; nothing outside the file is followed."""
    import h5py

    # Where nothing was written, a few bytes may stand for any number of pixels.
    left = _FREE_BYTES + _MAX_EXPANSION * path.stat().st_size
    with h5py.File(path, "r") as file:
        names = list(_datasets(file, path, set()))
        found, other = False, ""
        for name in names:
            data = file[name]
            if data.dtype.kind not in "fiu" or not 2 <= data.ndim <= 4:
                other = other or f"{name} holds {data.dtype} of shape {data.shape}"
                continue
            try:
                stack = stack_of(data.shape)
            except ValueError as error:
                other = other or f"{name}: {error}"
                continue
            if data.is_virtual or data.external:
                raise BadFile(path, f"{name} lies in another file; only what is in this one is read")
            _check_chunk(path, data.chunks or (), data.dtype.itemsize)
            check_chunks(path, data)
            left -= math.prod(data.shape) * data.dtype.itemsize
            if left < 0:
                raise BadFile(path, f"{name} unpacks to over {_MAX_EXPANSION} times its size")
            found = True
            yield from stack.blocks("" if len(names) == 1 else name, data.__getitem__)
        if not found:
            raise BadFile(path, f"no image in it; {other}" if other else "no data set in it")


def _datasets(group: Any, path: Path, seen: set[int], prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Names below a group; what several links lead to has the first one's."""
    import h5py

    if depth > 16:
        raise BadFile(path, "its groups are nested over 16 deep")
    for name in sorted(group):
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise BadFile(path, f"{prefix}{name} links to another file; only what is in this one is read")
        if not isinstance(link, h5py.HardLink):
            continue
        kind = group.get(name, getclass=True)
        if kind not in (h5py.Dataset, h5py.Group):
            continue
        address = h5py.h5o.get_info(group.id, name.encode()).addr
        if address in seen:
            continue
        seen.add(address)
        if kind is h5py.Dataset:
            yield f"{prefix}{name}"
        else:
            yield from _datasets(group[name], path, seen, f"{prefix}{name}/", depth + 1)


def _check_chunk(path: Path, chunk: Sequence[int], item_bytes: int) -> None:
    if math.prod(chunk) * item_bytes > _MAX_CHUNK_BYTES:
        raise BadFile(path, f"compressed in pieces of {tuple(chunk)}, over {_MAX_CHUNK_BYTES} bytes unpacked")


def store_blocks(path: Path) -> Iterator[Block]:
    """The images of a store, in its order."""
    store = Store.open(path)
    step = max(1, _BLOCK_BYTES // (8 * store.shape[0] * store.shape[1]))
    for begin in range(0, len(store), step):
        yield Block("", begin, store.images(slice(begin, begin + step)))


def archive_blocks(path: Path) -> Iterator[Block | BadFile]:
    """The `.npy` files of an archive of DeepLense's; a bad one does not end the others."""
    found = False
    for file in ArchiveSource(path).files():
        found = True
        try:
            image = decode_deeplense(file.read(), file.name, with_mass=False).image
        except BadFile as bad:
            yield bad
        else:
            yield Block(file.name, None, image[None])
    if not found:
        raise BadFile(path, "no .npy file in it")
