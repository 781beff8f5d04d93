"""The memory of an ingest: which pixels were seen, which files refused, how far it came.

It lies on disk beside the unfinished store, so that the number of files costs no memory and a killed
ingest goes on where the store's writer stands.
"""

import csv
import io
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from darkarc.data._manifest import StoreError
from darkarc.data._npy import BadFile
from darkarc.data._screening import Accepted
from darkarc.data._sources import IngestError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen
    (pixels BLOB PRIMARY KEY, file TEXT UNIQUE, split TEXT, batch INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refused (file TEXT, reason TEXT, batch INTEGER);
CREATE TABLE IF NOT EXISTS batches (batch INTEGER PRIMARY KEY, n_files INTEGER, n_samples INTEGER);
CREATE TABLE IF NOT EXISTS source (changed TEXT);
"""


class Ledger:
    """A small database; a batch of files enters it before its images enter the store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(_SCHEMA)
        self.n_files = 0
        self._n_samples = 0
        self._batch = 0

    def close(self) -> None:
        self._database.close()

    @property
    def source(self) -> str | None:
        """`Listing.changed` of the files that this ledger is of; None if it does not know."""
        row = self._database.execute("SELECT changed FROM source").fetchone()
        return row[0] if row else None

    @source.setter
    def source(self, changed: str) -> None:
        self._database.execute("INSERT INTO source VALUES (?)", (changed,))

    def go_back_to(self, n_samples: int) -> bool:
        """Forget what came after the n-th sample; False where the ledger does not know that point."""
        execute = self._database.execute
        execute("BEGIN")
        execute("DELETE FROM batches WHERE n_samples > ?", (n_samples,))
        last = execute("SELECT batch, n_files, n_samples FROM batches ORDER BY batch DESC LIMIT 1").fetchone()
        self._batch, self.n_files, self._n_samples = last or (0, 0, 0)
        for table in ("seen", "refused"):
            execute(f"DELETE FROM {table} WHERE batch > ?", (self._batch,))
        execute("COMMIT")
        return self._n_samples == n_samples

    def enter(self, results: Sequence[Accepted | BadFile]) -> tuple[list[Accepted], list[BadFile]]:
        """Record a batch; images seen before, in it or earlier, are among the refused.

        Raises `IngestError` for an image of a published split that another file outside of it shares.
        """
        try:
            return self._enter(results)
        except sqlite3.Error as error:
            raise StoreError(
                f"{self._path}: cannot write ({error}); make room and run the same command again: it goes on"
            ) from error

    def _enter(self, results: Sequence[Accepted | BadFile]) -> tuple[list[Accepted], list[BadFile]]:
        execute = self._database.execute
        execute("BEGIN")
        accepted: list[Accepted] = []
        refused: list[BadFile] = []
        self._batch += 1
        for result in results:
            bad = result if isinstance(result, BadFile) else self._twice(result)
            if bad is not None:
                refused.append(bad)
                execute("INSERT INTO refused VALUES (?, ?, ?)", (bad.path, bad.reason, self._batch))
            elif isinstance(result, Accepted):
                accepted.append(result)
        self.n_files += len(results)
        self._n_samples += len(accepted)
        execute("INSERT INTO batches VALUES (?, ?, ?)", (self._batch, self.n_files, self._n_samples))
        execute("COMMIT")
        return accepted, refused

    def _twice(self, sample: Accepted) -> BadFile | None:
        """Record an image's pixels; what is wrong where they, or the file's name, are already known."""
        execute = self._database.execute
        pixels = bytes.fromhex(sample.pixel_sha256)
        try:
            execute("INSERT INTO seen VALUES (?, ?, ?, ?)", (pixels, sample.name, sample.split, self._batch))
        except sqlite3.IntegrityError:
            first = execute("SELECT file, split FROM seen WHERE pixels = ?", (pixels,)).fetchone()
            if first is None:
                return BadFile(sample.name, "a second file of this name in the archive")
            if first[1] != sample.split:
                raise _leak(*sorted([first, (sample.name, sample.split)], key=_rank)) from None
            return BadFile(sample.name, f"the same image as {first[0]}")
        return None

    @property
    def n_refused(self) -> int:
        return self._database.execute("SELECT count(*) FROM refused").fetchone()[0]

    def first_refused(self) -> BadFile | None:
        """The first file refused so far."""
        row = self._database.execute("SELECT file, reason FROM refused ORDER BY rowid LIMIT 1").fetchone()
        return BadFile(*row) if row else None

    def rejected_csv(self) -> bytes:
        """The refused files and why, in the order they were met: columns file, reason."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "reason"])
        writer.writerows(self._database.execute("SELECT file, reason FROM refused ORDER BY rowid"))
        return text.getvalue().encode("utf-8")


def _rank(file: tuple[str, str | None]) -> int:
    """Test files come before those of other published splits, and these before the rest."""
    return 0 if file[1] == "test" else 2 if file[1] is None else 1


def _leak(kept: tuple[str, str | None], other: tuple[str, str | None]) -> IngestError:
    where = f"in the published {other[1]} set" if other[1] else "outside of it"
    return IngestError(
        f"{kept[0]} lies in the published {kept[1]} set, and {other[0]}, {where}, is the same image: "
        f"remove {other[0]}, or training sees an image of the {kept[1]} set"
    )
