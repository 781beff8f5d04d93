"""Rows of a store that is being written: a file that grows batch by batch and survives a kill."""

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from darkarc.data._manifest import SAMPLE_SCHEMA

_HEAD = struct.Struct("<4sQ32s")
_MAGIC = b"DAR1"
ROW_GROUP = 65536


class RowJournal:
    """Batches of rows, each behind its length and SHA-256; a torn end is found and can be cut off."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")

    def append(self, batch: pa.RecordBatch) -> None:
        payload = batch.serialize().to_pybytes()
        head = _HEAD.pack(_MAGIC, len(payload), hashlib.sha256(payload).digest())
        self._file.write(head + payload)
        self._file.flush()

    def batches(self) -> Iterator[tuple[pa.RecordBatch, int]]:
        """The whole batches from the start, each with the offset of its end in bytes."""
        size = os.fstat(self._file.fileno()).st_size
        self._file.seek(0)
        while len(head := self._file.read(_HEAD.size)) == _HEAD.size:
            magic, length, digest = _HEAD.unpack(head)
            if magic != _MAGIC or length > size - self._file.tell():
                return
            payload = self._file.read(length)
            if hashlib.sha256(payload).digest() != digest:
                return
            yield pa.ipc.read_record_batch(pa.py_buffer(payload), SAMPLE_SCHEMA), self._file.tell()

    def cut(self, end: int) -> None:
        """Forget what lies behind an offset."""
        self._file.seek(end)
        self._file.truncate()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def write_parquet(self, path: Path) -> None:
        """All rows as Parquet, in groups that do not depend on the batches they came in."""
        with pq.ParquetWriter(path, SAMPLE_SCHEMA, compression="zstd") as writer:
            waiting: list[pa.RecordBatch] = []
            n_waiting = 0
            for batch, _ in self.batches():
                waiting.append(batch)
                n_waiting += batch.num_rows
                if n_waiting >= ROW_GROUP:
                    table = pa.Table.from_batches(waiting).combine_chunks()
                    whole = n_waiting - n_waiting % ROW_GROUP
                    writer.write_table(table.slice(0, whole), row_group_size=ROW_GROUP)
                    waiting = table.slice(whole).to_batches()
                    n_waiting -= whole
            if n_waiting:
                writer.write_table(pa.Table.from_batches(waiting).combine_chunks(), row_group_size=ROW_GROUP)
