"""A lock that processes share, released by the kernel when its holder dies."""

import fcntl
import os
import threading
from pathlib import Path
from types import TracebackType

_held: set[Path] = set()
_held_guard = threading.Condition()


class Locked(OSError):
    """Another process, or another part of this one, holds the lock."""


class FileLock:
    """Exclusive lock on a file of its own.

    POSIX record locks, because children made by fork do not inherit them: an orphaned worker never
    keeps the lock of a killed parent. They do not exclude threads of one process, so a set of held
    paths does. `wait=False` raises `Locked` at once instead of waiting.
    """

    def __init__(self, path: Path, *, wait: bool) -> None:
        self.path = path.resolve()
        self._wait = wait
        self._descriptor: int | None = None

    def acquire(self) -> None:
        with _held_guard:
            while self.path in _held:
                if not self._wait:
                    raise Locked(f"{self.path}: held by another part of this process")
                _held_guard.wait()
            _held.add(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | (0 if self._wait else fcntl.LOCK_NB))
            except (BlockingIOError, PermissionError) as error:  # POSIX allows EAGAIN and EACCES
                if self._wait:
                    raise
                raise Locked(f"{self.path}: held by another process") from error
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        with _held_guard:
            _held.discard(self.path)
            _held_guard.notify_all()

    def __enter__(self) -> "FileLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
