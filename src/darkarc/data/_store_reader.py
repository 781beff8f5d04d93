"""Reading a store: checked on opening, images memory-mapped."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from darkarc.data._manifest import (
    SAMPLE_SCHEMA,
    SAMPLES,
    Attachment,
    Manifest,
    Shard,
    StoreError,
    read_manifest,
    shard_header,
)

_REMEDY = "the store is damaged: fetch it again (`dvc checkout`) or make it again"


@dataclass(frozen=True)
class Store:
    """A complete data set on disk: N images of one shape and type, and a table with a row for each."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> "Store":
        """Open a store. Sizes and headers are always checked, SHA-256 of every file if `verify`.

        Raises `StoreError` that names the file at fault and says what to do.
        """
        folder = Path(path)
        store = cls(folder, read_manifest(folder))
        files = store._files()
        for name, (_, size) in files.items():
            _check_size(folder / name, size)
        if verify:
            with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
                digests = pool.map(file_sha256, [folder / name for name in files])
                for (name, (expected, _)), found in zip(files.items(), digests, strict=True):
                    if found != expected:
                        raise StoreError(
                            f"{folder / name}: its SHA-256 is {found[:12]}…, the manifest says "
                            f"{expected[:12]}…; {_REMEDY}"
                        )
        store._check_contents()
        return store

    def __len__(self) -> int:
        return self.manifest.n_samples

    def __reduce__(self) -> tuple[type, tuple[Path, Manifest]]:
        # A copy in another process maps the files itself; the pixels never travel.
        return (Store, (self.path, self.manifest))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of every image, in pixels."""
        return self.manifest.shape

    @property
    def dtype(self) -> np.dtype:
        """Pixel type."""
        return np.dtype(self.manifest.dtype)

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the manifest: one name for the content of the whole store."""
        return self.manifest.digest

    @cached_property
    def samples(self) -> pa.Table:
        """The table, columns `SAMPLE_COLUMNS`; row i describes image i."""
        path = self.path / SAMPLES
        try:
            return pq.read_table(path, memory_map=True)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{path}: cannot read the table ({error}); {_REMEDY}") from error

    def images(self, which: slice | Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Images (n, height, width) in the stored type, in the order asked; a copy in memory.

        `which`: indices (repeats and negative ones as in numpy), a slice, or None for all. Raises
        IndexError for an index outside the store.
        """
        if which is None:
            which = slice(None)
        if isinstance(which, slice):
            indices = np.arange(len(self))[which]
        else:
            indices = np.asarray(which)
            if indices.size == 0:
                indices = indices.astype(np.int64)
            if indices.ndim != 1 or indices.dtype.kind not in "iu":
                raise IndexError(
                    f"expected a list of indices, found {indices.dtype} of shape {indices.shape}"
                )
        return self._gather(indices.astype(np.int64, copy=False))

    def _gather(self, indices: np.ndarray) -> np.ndarray:
        out = np.empty((len(indices), *self.shape), self.dtype)
        if len(indices) == 0:
            return out
        low, high = int(indices.min()), int(indices.max())
        if low < -len(self) or high >= len(self):
            wrong = low if low < -len(self) else high
            raise IndexError(f"image {wrong} is outside the store {self.path} of {len(self)} images")
        indices = np.where(indices < 0, indices + len(self), indices)
        # In the order of the files: neighbours on disk are read together.
        order = np.argsort(indices, kind="stable")
        in_order = indices[order]
        cuts = np.searchsorted(in_order, self._starts)
        for shard, (begin, end) in enumerate(pairwise(cuts)):
            mapped = self._maps[shard] if end > begin else None
            for position in range(begin, end):
                assert mapped is not None
                out[order[position]] = mapped[in_order[position] - self._starts[shard]]
        return out

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(shard.n for shard in self.manifest.shards)])

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        shape, dtype = self.shape, self.dtype.newbyteorder("<")
        maps = []
        for shard in self.manifest.shards:
            path = self.path / shard.file
            try:
                mapped = np.memmap(path, dtype, "r", offset=len(shard_header(0, shape, dtype.name)),
                                   shape=(shard.n, *shape))  # fmt: skip
            except (OSError, ValueError) as error:
                raise StoreError(f"{path}: cannot map the images ({error}); {_REMEDY}") from error
            maps.append(mapped.view(np.ndarray))
        return maps

    def _files(self) -> dict[str, tuple[str, int]]:
        manifest = self.manifest
        listed: list[Shard | Attachment] = [*manifest.shards, *manifest.files]
        files = {item.file: (item.sha256, item.bytes) for item in listed}
        return files | {SAMPLES: (manifest.samples_sha256, manifest.samples_bytes)}

    def _check_contents(self) -> None:
        image_bytes = self.shape[0] * self.shape[1] * self.dtype.itemsize
        for shard in self.manifest.shards:
            path = self.path / shard.file
            header = shard_header(shard.n, self.shape, self.dtype.name)
            if shard.n == 0 or shard.bytes != len(header) + shard.n * image_bytes:
                raise StoreError(f"{path}: {shard.bytes} bytes do not hold {shard.n} images; {_REMEDY}")
            with path.open("rb") as file:
                if file.read(len(header)) != header:
                    raise StoreError(
                        f"{path}: its header does not say {shard.n} x {self.shape[0]} x {self.shape[1]} "
                        f"{self.dtype.name}; {_REMEDY}"
                    )
        path = self.path / SAMPLES
        try:
            schema, rows = pq.read_schema(path), pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{path}: cannot read the table ({error}); {_REMEDY}") from error
        if not schema.equals(SAMPLE_SCHEMA) or rows != len(self):
            raise StoreError(
                f"{path}: expected {len(self)} rows of the columns {', '.join(SAMPLE_SCHEMA.names)}, found "
                f"{rows} of {', '.join(schema.names)}; {_REMEDY}"
            )


def _check_size(path: Path, expected: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise StoreError(f"{path}: this file of the store is missing; {_REMEDY}") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot read: {error}") from error
    if found != expected:
        raise StoreError(f"{path}: {found} bytes, the manifest says {expected}; {_REMEDY}")


def file_sha256(path: Path) -> str:
    """SHA-256, in hexadecimal, of a file; raises `StoreError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path}: cannot read: {error}") from error
