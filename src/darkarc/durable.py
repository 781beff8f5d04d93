"""Files that are complete or absent: written aside, flushed to the disk, then renamed."""

import contextlib
import fcntl
import os
from pathlib import Path
from tempfile import TemporaryFile


def write_file(path: str | Path, content: bytes | str) -> Path:
    """Put `content` (text as UTF-8) at `path`; a kill at any moment leaves the old file or the new one.

    A disk that is full leaves the old one, and nothing beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.partial")
    try:
        with aside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    sync(path.parent)
    return path


def sync(path: str | Path) -> None:
    """Flush a file's bytes, or the renames in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hold(path: Path) -> int:
    """Hold a file or a folder for this process, until the descriptor is closed or the process ends.

    Raises `BlockingIOError` if another one holds it. On a network file system without locks nothing is held.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        pass
    return descriptor


def why_unwritable(path: Path) -> str:
    """Why no file can be put at `path`, told before hours of work; "" if one can. Makes its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            return f"{path} is a folder" if path.is_dir() else ""
    except FileExistsError:
        return f"{path.parent} is a file"
    except OSError as error:
        return error.strerror or str(error)
