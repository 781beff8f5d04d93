"""The prediction table: its columns, a journal that survives a kill, and the finished .csv or .parquet."""

import csv
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from darkarc.durable import sync

PROBABILITIES = ("p_axion", "p_cdm", "p_no_sub")
QUANTILES = ("log10_mass_median", "log10_mass_q05", "q16", "q84", "q95")
COLUMNS = ("path", *PROBABILITIES, *QUANTILES, "flag")
"""`path` (with #index within a file of several images), class probabilities, median and quantiles of the
target (for `log10_axion_mass_ev` log10 of eV), and what to know before using them; null where withheld."""

ENDINGS = (".csv", ".parquet")
DECIMALS = 6
_ROWS_AT_ONCE = 20_000
_JOURNAL_FORMAT = 2

Row = dict[str, Any]


class TableError(ValueError):
    """A table that cannot be written as asked."""


def table_row(
    path: str, flag: str, probabilities: Sequence[float] = (), quantiles: Sequence[float] = ()
) -> Row:
    """One row; the three class probabilities and the five `QUANTILES` are there or withheld."""
    values: Row = dict.fromkeys(COLUMNS)
    for names, numbers in ((PROBABILITIES, probabilities), (QUANTILES, quantiles)):
        if len(numbers):
            values |= {name: round(float(x), DECIMALS) for name, x in zip(names, numbers, strict=True)}
    return values | {"path": printable(path), "flag": printable(flag)}


def printable(text: str) -> str:
    """Text that UTF-8 can hold: bytes of a file name that are no UTF-8 become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_ending(out: Path) -> None:
    """Raises `TableError` unless `out` ends in .csv or .parquet."""
    if out.suffix.lower() not in ENDINGS:
        raise TableError(f"{out}: expected a table that ends in {' or '.join(ENDINGS)}, found {out.suffix!r}")


class Journal:
    """Rows that are already answered, on disk beside the table, a line a batch with the digest of its images.

    The first line holds the `identity` of the work: the same command after a kill finds its batches, another
    one starts over. Used as a context manager; a second process on the same table is refused.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
        self._out, self.path = out, out.with_name(f"{out.name}.partial")
        self._header = json.dumps({"format": _JOURNAL_FORMAT, **identity}, sort_keys=True).encode() + b"\n"
        self._resume = resume

    def __enter__(self) -> "Journal":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise TableError(
                f"--out {self._out}: no table can be written there ({error.strerror}); give a file in a "
                "folder of yours"
            ) from error
        self._file = os.fdopen(descriptor, "r+b")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise TableError(f"{self.path}: another process is writing this table; wait for it") from error
        known = self._file.readline() == self._header
        if known and self._resume:
            self._drop_torn_line()
        else:
            self.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def clear(self) -> None:
        """Forget all batches."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(self._header)
        self._sync()

    def append(self, rows: list[Row], images: str) -> None:
        """Add a batch and the digest of its images; it is durable when this returns."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps([images, [list(row.values()) for row in rows]]).encode() + b"\n")
        self._sync()

    def batches(self) -> Iterator[tuple[list[Row], str]]:
        """Rows and digest of every batch so far, in order, one in memory at a time."""
        position = len(self._header)
        while True:
            self._file.seek(position)
            line = self._file.readline()
            if not line:
                return
            position = self._file.tell()
            images, rows = json.loads(line)
            yield [dict(zip(COLUMNS, values, strict=True)) for values in rows], images

    def remove(self) -> None:
        """Delete the journal, once the table stands."""
        self.path.unlink(missing_ok=True)

    def _drop_torn_line(self) -> None:
        end = self._file.tell()
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
        self._file.truncate(end)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def write_table(out: Path, rows: Iterator[Row]) -> None:
    """Write the table beside `out`, flush it to the disk and rename it; memory is constant in its length."""
    check_ending(out)
    aside = out.with_name(f"{out.name}.writing")
    try:
        if out.suffix.lower() == ".csv":
            _write_csv(aside, rows)
        else:
            _write_parquet(aside, rows)
        sync(aside)
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)
    sync(out.parent)


def _write_csv(path: Path, rows: Iterator[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, rows: Iterator[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ("path", "flag")
    schema = pa.schema([(name, pa.string() if name in texts else pa.float64()) for name in COLUMNS])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while chunk := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
