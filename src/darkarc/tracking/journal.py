"""The durable journal of one run: what was measured is on disk before any server hears of it.

A journal is a file of JSON lines. Three kinds of line:

    {"run": {"token": …, "run_id": …, …}, "crc": …}     the run of all records; the last such line counts
    {"seq": 7, "kind": "metrics", "time_ms": …, "body": {…}, "crc": …}
    {"ack": 7, "run_id": …, "crc": …}                   everything up to 7 has reached that run

A killed process leaves at most a truncated last line, which is dropped; any other damage is noticed by
the line's CRC-32. Timestamps are part of a record, so that sending it twice writes one point.
"""

import bisect
import contextlib
import json
import logging
import os
import threading
import time
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkarc.tracking._lock import FileLock, Locked
from darkarc.tracking.errors import JournalError

_logger = logging.getLogger(__name__)

FSYNC_EVERY_S = 1.0
"""A power failure costs at most this much of the journal; a killed process costs nothing."""


@dataclass(frozen=True)
class Record:
    seq: int
    kind: str
    time_ms: int
    body: dict[str, Any]


class Journal:
    """An open journal, held by one process at a time.

    `append` never raises on a full or vanished disk: the record is then kept in memory and a warning
    given once, so that training goes on. Thread-safe.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self.run: dict[str, Any] = {}
        self.run_id: str | None = None
        self.records: list[Record] = []
        self.acknowledged = 0
        self._points: dict[tuple[str, int], float] = {}
        self._guard = threading.RLock()
        self._unwritten: list[bytes] = []
        self._synced_at = 0.0
        self._told = False
        self._lock = FileLock(self.path.with_name(self.path.name + ".lock"), wait=False)
        try:
            self._lock.acquire()
        except Locked as error:
            raise JournalError(
                f"{self.path}: in use by another process; wait until it has ended, or end it"
            ) from error
        except OSError as error:
            raise JournalError(
                f"{self._lock.path}: cannot be written ({error.strerror}); make its folder one of this user's"
            ) from error
        try:
            self._good_bytes = self._read()
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(self._good_bytes)
        except BaseException:
            self._lock.release()
            raise

    @property
    def pending(self) -> list[Record]:
        """Records that the store has not acknowledged, oldest first."""
        with self._guard:
            first = bisect.bisect_right(self.records, self.acknowledged, key=lambda record: record.seq)
            return self.records[first:]

    def begin(self, *, run_id: str | None, **facts: Any) -> None:
        """Name the run that all records, also those already here, belong to from now on."""
        with self._guard:
            self.run = {"token": uuid.uuid4().hex, "run_id": run_id, **facts}
            self.run_id = run_id
            self.acknowledged = 0
            self._write({"run": self.run}, sync=True)

    def append(self, kind: str, body: Mapping[str, Any], *, sync: bool = False) -> Record:
        """Add a record; `sync` waits until the disk has it."""
        with self._guard:
            seq = self.records[-1].seq + 1 if self.records else 1
            record = Record(seq, kind, time.time_ns() // 1_000_000, dict(body))
            self._keep(record)
            self._write(vars(record), sync=sync)
            return record

    def acknowledge(self, seq: int, run_id: str) -> None:
        """Everything up to `seq` is in run `run_id`. Losing this line only means to send again."""
        with self._guard:
            self.acknowledged = max(self.acknowledged, seq)
            self.run_id = run_id
            self._write({"ack": seq, "run_id": run_id}, sync=False)

    def point(self, key: str, step: int) -> float | None:
        """Value last recorded for a curve at a step: a resumed run does not draw it twice."""
        with self._guard:
            return self._points.get((key, step))

    def last_step(self, prefix: str) -> int | None:
        """Highest step of the curves whose names begin with `prefix`."""
        with self._guard:
            return max((step for key, step in self._points if key.startswith(prefix)), default=None)

    def close(self) -> None:
        with self._guard:
            try:
                if not self._file.closed:
                    self._sync()
            except OSError as error:
                self._tell(error)
            finally:
                self._file.close()
                self._lock.release()

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        if record.kind == "metrics":
            step = record.body["step"]
            self._points |= {(key, step): value for key, value in record.body["values"].items()}

    def _write(self, line: dict[str, Any], *, sync: bool) -> None:
        """Write the line, and before it whatever an earlier failure left unwritten."""
        self._unwritten.append(_encode(line))
        data = b"".join(self._unwritten)
        try:
            if self._file.closed:
                self._reopen()
                data = b"".join(self._unwritten)
            written = 0
            while written < len(data):
                written += self._file.write(data[written:]) or 0
            self._good_bytes += len(data)
            self._unwritten.clear()
            if sync or time.monotonic() - self._synced_at > FSYNC_EVERY_S:
                self._sync()
        except OSError as error:
            self._tell(error)
            with contextlib.suppress(OSError):
                self._file.close()

    def _reopen(self) -> None:
        """After a failed write: cut a half-written line off; if the file has gone, write it anew."""
        self._file = self.path.open("ab", buffering=0)
        if self._file.seek(0, os.SEEK_END) < self._good_bytes:
            self._file.truncate(0)
            self._good_bytes = 0
            self._unwritten = [
                _encode({"run": self.run}),
                *(_encode(vars(record)) for record in self.records),
            ]
            if self.run_id:
                self._unwritten.append(_encode({"ack": self.acknowledged, "run_id": self.run_id}))
        else:
            self._file.truncate(self._good_bytes)

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            _logger.warning(
                "%s: cannot write the journal (%s); the run goes on, but what a kill now interrupts is not "
                "recorded. Make room or restore the folder.",
                self.path,
                error,
            )

    def _read(self) -> int:
        """Take in what is there; returns the length in bytes of the undamaged beginning."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return 0
        good = 0
        lines = content.splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                self._take(_decode(line))
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) and not line.endswith(b"\n"):
                    return good
                raise JournalError(
                    f"{self.path}: line {number} is damaged ({error}); move the file away to start "
                    "a new run, or cut it before that line to keep what comes before"
                ) from error
            good += len(line)
        return good

    def _take(self, line: dict[str, Any]) -> None:
        if "run" in line:
            self.run = dict(line["run"])
            self.run_id = self.run["run_id"]
            self.acknowledged = 0
        elif "ack" in line:
            self.acknowledged = max(self.acknowledged, int(line["ack"]))
            self.run_id = line["run_id"]
        else:
            self._keep(Record(line["seq"], line["kind"], line["time_ms"], line["body"]))


def _encode(line: dict[str, Any]) -> bytes:
    text = json.dumps(line, separators=(",", ":"), ensure_ascii=True)
    return f'{text[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def _decode(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ValueError("it is cut off")
    body, marker, checksum = line.decode("ascii").rstrip("\n").rpartition(',"crc":"')
    text = body + "}"
    if not marker or checksum != f'{zlib.crc32(text.encode()):08x}"}}':
        raise ValueError("its checksum does not fit")
    parsed = json.loads(text)
    if not isinstance(parsed, dict):
        raise ValueError("it is not a record")
    return parsed
