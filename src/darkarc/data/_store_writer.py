"""Writing a store: aside, resumable after a kill, complete or absent."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa

from darkarc.data._manifest import (
    DTYPES,
    MANIFEST,
    SAMPLE_COLUMNS,
    SAMPLE_SCHEMA,
    SAMPLES,
    Attachment,
    Manifest,
    Shard,
    StoreError,
    partial_folder,
    pixel_sha256,
    plain_name,
    shard_header,
)
from darkarc.data._row_journal import RowJournal
from darkarc.data._store_reader import Store, file_sha256
from darkarc.durable import hold, sync

_IDENTITY = "writer.json"
_JOURNAL = "rows.journal"
_FSYNC_BYTES = 256 * 2**20


class StoreWriter:
    """Writes a store to `<path>.partial/`, which becomes `<path>/` on `commit`.

    The rows of each `append` go to a journal with their own checksum, the images to the shards
    before them; after a kill the journal is read back and checked against the pixels, and
    `n_written` tells how many samples stand (always the end of an `append`). A writer with
    another identity (any argument but `resume` and `replace`) starts over. One process at a time.

    Raises `StoreError` where something else already stands at `path`, or another process writes.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str,
        origin: str,
        instrument: str,
        shape: tuple[int, int],
        dtype: str,
        parameters: Mapping[str, Any],
        shard_bytes: int = 256 * 2**20,
        resume: bool = True,
        replace: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise StoreError(f"dtype {dtype!r}: a store holds one of {', '.join(DTYPES)}")
        self.path = Path(os.path.abspath(path))
        self.folder = partial_folder(self.path)
        self.n_written = 0
        self._shape = (int(shape[0]), int(shape[1]))
        self._dtype = np.dtype(dtype)
        self._origin = origin
        self._replace = replace
        self._per_shard = max(1, shard_bytes // (self._shape[0] * self._shape[1] * self._dtype.itemsize))
        self._identity = {
            "name": name,
            "origin": origin,
            "instrument": instrument,
            "shape": list(self._shape),
            "dtype": dtype,
            "parameters": json.loads(json.dumps(dict(parameters), allow_nan=False)),
        }
        self._attachments: dict[str, bytes] = {}
        self._shard: IO[bytes] | None = None
        self._unsynced_bytes = 0
        self._refuse_what_stands_there()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder)
        identity = json.dumps([self._identity, self._per_shard], sort_keys=True)
        identity_file = self.folder / _IDENTITY
        if not (resume and identity_file.exists() and identity_file.read_text() == identity):
            _empty(self.folder, set())
            identity_file.write_text(identity)
        self._journal = RowJournal(self.folder / _JOURNAL)
        self._recover()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; what was appended stays for a later writer to go on with."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        self._journal.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def start_over(self) -> None:
        """Forget what was written so far."""
        self._close_shard()
        self._journal.cut(0)
        self.n_written = 0
        _empty(self.folder, {_IDENTITY, _JOURNAL})

    def discard(self) -> None:
        """Remove the unfinished store."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def append(self, images: np.ndarray, rows: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
        """Add images (n, height, width) of the store's type, or one that converts (float64, wider integers).

        `rows`: columns of `SAMPLE_COLUMNS`, each of length n; a missing column and a NaN become null.
        `sample_id` is needed, `origin` defaults to the writer's, `pixel_sha256` is computed if not given.
        """
        images = self._checked(images)
        if len(images) == 0:
            return
        batch = self._rows(images, rows)
        try:
            self._write_images(images)
            self._journal.append(batch)
            self._sync_now_and_then(images.nbytes)
        except OSError as error:
            # The files may end in half an image: only a new writer knows where to go on.
            self.close()
            raise StoreError(
                f"{self.folder}: cannot write ({error}); make room and run the same command again: it goes on"
            ) from error
        self.n_written += len(images)

    def attach(self, name: str, content: bytes) -> None:
        """Put a small file beside the images, listed and hashed in the manifest."""
        if (
            not plain_name(name)
            or name in (MANIFEST, SAMPLES, _IDENTITY, _JOURNAL)
            or name.startswith("images-")
        ):
            raise StoreError(f"{name!r} cannot be the name of a file of a store")
        self._attachments[name] = content

    def commit(self) -> Store:
        """Finish the files, write the manifest last, and move the folder to its place."""
        if self.n_written == 0:
            raise StoreError(f"{self.path}: no image was written; a store holds at least one")
        self._close_shard()
        shards = self._finished_shards()
        self._journal.write_parquet(self.folder / SAMPLES)
        sync(self.folder / SAMPLES)
        for name, content in self._attachments.items():
            (self.folder / name).write_bytes(content)
            sync(self.folder / name)
        _empty(
            self.folder, {SAMPLES, _IDENTITY, _JOURNAL, *self._attachments, *(item.file for item in shards)}
        )
        manifest = Manifest(
            name=self._identity["name"],
            origin=self._origin,
            instrument=self._identity["instrument"],
            shape=self._shape,
            dtype=self._dtype.name,
            n_samples=self.n_written,
            shards=shards,
            samples_sha256=file_sha256(self.folder / SAMPLES),
            samples_bytes=(self.folder / SAMPLES).stat().st_size,
            parameters=self._identity["parameters"],
            files=tuple(self._attached(name) for name in sorted(self._attachments)),
        )
        (self.folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        sync(self.folder / MANIFEST)
        (self.folder / _IDENTITY).unlink()
        (self.folder / _JOURNAL).unlink()
        sync(self.folder)
        self._move_into_place()
        self.close()
        return Store.open(self.path, verify=False)

    # What stands at the target

    def _refuse_what_stands_there(self) -> None:
        if not self.path.exists():
            return
        if (self.path / MANIFEST).exists():
            if not self._replace:
                raise StoreError(f"{self.path}: a complete store stands there; remove it or write elsewhere")
        elif not self.path.is_dir() or any(self.path.iterdir()):
            raise StoreError(f"{self.path}: something that is not a store stands there; write elsewhere")

    def _move_into_place(self) -> None:
        self._refuse_what_stands_there()
        old = self.path.with_name(self.path.name + ".replaced")
        shutil.rmtree(old, ignore_errors=True)
        if self.path.exists():
            self.path.rename(old)
        self.folder.rename(self.path)
        sync(self.path.parent)
        shutil.rmtree(old, ignore_errors=True)

    # Images

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.ndim != 3 or images.shape[1:] != self._shape:
            raise StoreError(
                f"expected images of shape (n, {self._shape[0]}, {self._shape[1]}), found {images.shape}"
            )
        if self._dtype.kind == "f":
            fits = images.dtype.kind in "fiu"
        elif fits := images.dtype.kind in "iu":
            bounds = np.iinfo(self._dtype)
            fits = not images.size or (bounds.min <= images.min() and images.max() <= bounds.max)
        if not fits:
            raise StoreError(f"images are {images.dtype}, the store holds {self._dtype}: convert them first")
        return np.ascontiguousarray(images, self._dtype.newbyteorder("<"))

    def _rows(self, images: np.ndarray, rows: Mapping[str, Sequence[Any] | np.ndarray]) -> pa.RecordBatch:
        unknown = sorted(set(rows) - set(SAMPLE_COLUMNS))
        if unknown or "sample_id" not in rows:
            found = ", ".join(unknown) or "no sample_id"
            raise StoreError(f"rows: expected columns {', '.join(SAMPLE_COLUMNS)}, found {found}")
        n = len(images)
        filled = {"origin": [self._origin] * n, **rows}
        if filled.get("pixel_sha256") is None:
            filled["pixel_sha256"] = [pixel_sha256(image) for image in images]
        columns = []
        for column in SAMPLE_SCHEMA:
            values = filled.get(column.name)
            array = pa.nulls(n, column.type) if values is None else _column(values, column)
            if len(array) != n:
                raise StoreError(f"rows: {column.name} has {len(array)} values for {n} images")
            columns.append(array)
        if columns[0].null_count:
            raise StoreError("rows: sample_id must not be null")
        return pa.RecordBatch.from_arrays(columns, schema=SAMPLE_SCHEMA)

    def _write_images(self, images: np.ndarray) -> None:
        done = 0
        while done < len(images):
            number, inside = divmod(self.n_written + done, self._per_shard)
            if inside == 0 and self._shard is not None:
                self._close_shard()
            if self._shard is None:
                self._shard = self._open_shard(number, inside)
            part = images[done : done + self._per_shard - inside]
            self._shard.write(part.data)
            done += len(part)
        if self._shard is not None:
            self._shard.flush()

    def _sync_now_and_then(self, n_bytes: int) -> None:
        self._unsynced_bytes += n_bytes
        if self._unsynced_bytes >= _FSYNC_BYTES:
            if self._shard is not None:
                os.fsync(self._shard.fileno())
            self._journal.sync()
            self._unsynced_bytes = 0

    def _shard_path(self, number: int) -> Path:
        return self.folder / f"images-{number:05d}.npy"

    def _open_shard(self, number: int, inside: int) -> IO[bytes]:
        path = self._shard_path(number)
        header = shard_header(self._per_shard, self._shape, self._dtype.name)
        if inside == 0:
            path.touch()
        file = path.open("r+b")
        # Also where the shard goes on: an interrupted commit may have set a smaller count.
        file.write(header)
        image_bytes = self._shape[0] * self._shape[1] * self._dtype.itemsize
        file.seek(len(header) + inside * image_bytes)
        file.truncate()
        return file

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.flush()
            os.fsync(self._shard.fileno())
            self._shard.close()
            self._shard = None

    def _finished_shards(self) -> tuple[Shard, ...]:
        counts = [
            min(self._per_shard, self.n_written - begin)
            for begin in range(0, self.n_written, self._per_shard)
        ]
        paths = [self._shard_path(number) for number in range(len(counts))]
        if paths:
            with paths[-1].open("r+b") as file:
                file.write(shard_header(counts[-1], self._shape, self._dtype.name))
        for path in paths:
            sync(path)
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(file_sha256, paths))
        return tuple(
            Shard(path.name, n, digest, path.stat().st_size)
            for path, n, digest in zip(paths, counts, digests, strict=True)
        )

    # Rows

    def _recover(self) -> None:
        """Find what an earlier writer left whole, and cut off the rest."""
        end = 0
        for batch, offset in self._journal.batches():
            if self._pixels_written(self.n_written, batch.num_rows) != batch["pixel_sha256"].to_pylist():
                break
            self.n_written += batch.num_rows
            end = offset
        self._journal.cut(end)
        number, inside = divmod(self.n_written, self._per_shard)
        if inside:
            self._shard = self._open_shard(number, inside)

    def _pixels_written(self, begin: int, n: int) -> list[str]:
        """Hashes of the images that stand at begin, begin + 1, … in the shards: at most n."""
        offset = len(shard_header(0, self._shape, self._dtype.name))
        image_bytes = self._shape[0] * self._shape[1] * self._dtype.itemsize
        hashes: list[str] = []
        while len(hashes) < n:
            number, inside = divmod(begin + len(hashes), self._per_shard)
            wanted = min(n - len(hashes), self._per_shard - inside)
            path = self._shard_path(number)
            if not path.exists():
                break
            with path.open("rb") as file:
                file.seek(offset + inside * image_bytes)
                found = [hashlib.sha256(file.read(image_bytes)).hexdigest() for _ in range(wanted)]
            hashes += found
        return hashes

    def _attached(self, name: str) -> Attachment:
        content = self._attachments[name]
        return Attachment(name, hashlib.sha256(content).hexdigest(), len(content))


def _column(values: Sequence[Any] | np.ndarray, column: pa.Field) -> pa.Array:
    try:
        return pa.array(values, column.type, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise StoreError(f"rows: {column.name} is not {column.type}: {error}") from error


def _lock(folder: Path) -> int:
    try:
        return hold(folder)  # without a lock the journal's checks still hold
    except BlockingIOError as error:
        raise StoreError(f"{folder}: another process is writing this store; wait for it to end") from error


def _empty(folder: Path, kept: set[str]) -> None:
    for child in folder.iterdir():
        if child.name in kept:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
