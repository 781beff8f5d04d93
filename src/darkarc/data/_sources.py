"""Where DeepLense's files come from: a folder tree or an archive as downloaded, in one fixed order."""

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO

from darkarc.data._npy import MAX_FILE_BYTES, BadFile, read_bytes

_N_VOTERS = 101
_MAX_EXPANSION = 100
_FREE_BYTES = 64 * 2**20
_MAX_NAME_RECORD = 2**20


class IngestError(ValueError):
    """A folder or archive that cannot be ingested as a whole; the message says what to do."""


@dataclass(frozen=True)
class SourceFile:
    """One `.npy` file: its name below the source, and where its bytes are (or why they are not)."""

    name: str
    content: str | bytes | BadFile

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.name.split("/"))

    @property
    def n_bytes(self) -> int:
        """Bytes already in memory."""
        return len(self.content) if isinstance(self.content, bytes) else 0

    def read(self) -> bytes:
        """The file's bytes; raises `BadFile`."""
        if isinstance(self.content, BadFile):
            raise self.content
        if isinstance(self.content, bytes):
            return self.content
        return read_bytes(self.content)


@dataclass(frozen=True)
class Listing:
    """What a source holds, known before any image is read.

    `n_files` counts `.npy` files (None: not known before the end), `digest` names and sizes,
    `n_other` files that are no `.npy`; `changed` is another where a file was written anew. `voters` are some
    100 to 200 files spread over all of it (an archive's first ones), `folders` the folders of files below the
    source (an archive's voters').
    """

    n_files: int | None
    digest: str
    changed: str
    n_other: int
    voters: tuple[SourceFile, ...]
    folders: tuple[tuple[str, ...], ...]


class FolderSource:
    """The `.npy` files below a folder, sorted by name folder by folder; hidden ones are left out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # A person may have pointed inside a published set, at `…/Model_II_test/axion`.
        resolved = root.resolve()
        self.parents = (resolved.parent.name, resolved.name)

    def listing(self) -> Listing:
        digest, changed, n_files, n_other = hashlib.sha256(), hashlib.sha256(), 0, 0
        voters: list[SourceFile] = []
        stride = 1
        folders: dict[str, None] = {}
        for name, entry in _walk(self.root):
            if not is_npy(name):
                n_other += 1
                continue
            status = entry.stat()
            digest.update(f"{name}\0{status.st_size}\0".encode("utf-8", "surrogateescape"))
            changed.update(f"{name}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
            folders[name.rpartition("/")[0]] = None
            if n_files % stride == 0:
                voters.append(_source_file(name, entry))
                if len(voters) == 2 * _N_VOTERS:
                    del voters[1::2]
                    stride *= 2
            n_files += 1
        parts = tuple(tuple(folder.split("/")) if folder else () for folder in folders)
        return Listing(n_files, digest.hexdigest(), changed.hexdigest(), n_other, tuple(voters), parts)

    def files(self) -> Iterator[SourceFile]:
        return (_source_file(name, entry) for name, entry in _walk(self.root) if is_npy(name))


class ArchiveSource:
    """The `.npy` members of a `.tgz`, `.tar.gz` or `.tar`, in the archive's order, never unpacked to disk."""

    def __init__(self, path: Path) -> None:
        self.root = path
        self.parents = ("", re.sub(r"\.(tgz|tar|tar\.gz)$", "", path.name, flags=re.IGNORECASE))
        self.n_bytes = path.stat().st_size
        self.n_read_bytes = 0

    def listing(self) -> Listing:
        """The archive's size, its first and its last MiB stand for its names, known only from unpacking."""
        digest = hashlib.sha256(str(self.n_bytes).encode())
        with self.root.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, self.n_bytes - 2**20))
            digest.update(file.read(2**20))
        voters = tuple(self._first_files())
        folders = tuple(dict.fromkeys(voter.parts[:-1] for voter in voters))
        changed = f"{self.n_bytes} {self.root.stat().st_mtime_ns}"
        return Listing(None, digest.hexdigest(), changed, 0, voters, folders)

    def _first_files(self) -> Iterator[SourceFile]:
        n_bytes = 0
        for file in islice(self.files(), _N_VOTERS):
            yield file
            n_bytes += file.n_bytes
            if n_bytes > MAX_FILE_BYTES:
                return

    def files(self) -> Iterator[SourceFile]:
        """Raises `IngestError` where the archive itself is damaged or expands beyond all reason."""
        n = 0
        try:
            with self.root.open("rb") as raw:
                plain = raw.read(2) != b"\x1f\x8b"
                raw.seek(0)
                stream: IO[bytes] = raw if plain else _Bounded(raw)  # type: ignore[assignment]  # reads only
                with tarfile.open(fileobj=stream, mode="r|", tarinfo=_BoundedTarInfo) as archive:
                    for member in archive:
                        self.n_read_bytes = raw.tell()
                        # Else tarfile keeps every member it has seen.
                        archive.members.clear()  # type: ignore[attr-defined]  # not in its stub
                        if not member.isdir() and is_npy(member.name):
                            n += 1
                            yield _member(archive, member)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise IngestError(
                f"{self.root}: damaged or truncated after {n} images ({error}); download it again"
            ) from error


def open_source(path: str | Path) -> FolderSource | ArchiveSource:
    """A folder or an archive; raises `IngestError` for anything else."""
    path = Path(path)
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise IngestError(f"{path}: no such folder or archive")
    if is_archive(path):
        return ArchiveSource(path)
    raise IngestError(f"{path}: expected a folder of .npy files, or a .tgz, .tar.gz or .tar of one")


def is_archive(path: Path) -> bool:
    """Whether a file's name is that of an archive that `ArchiveSource` reads."""
    return path.name.lower().endswith((".tgz", ".tar.gz", ".tar"))


def is_npy(name: str) -> bool:
    """Whether a name below a source is an image: `.npy`, and nothing on its way hidden."""
    if not name.lower().endswith(".npy"):
        return False
    return not any(part == "__MACOSX" or (part[:1] == "." and part.strip(".")) for part in name.split("/"))


def _walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Files below a folder with their names relative to it; links to folders are followed once."""
    seen: set[tuple[int, int]] = set()

    def walk(folder: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_dir():
                yield from walk(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_symlink() and not os.path.exists(entry.path):
                raise IngestError(f"{entry.path}: a link to a file that is not there; mend it or remove it")
            else:
                yield f"{prefix}{entry.name}", entry

    try:
        yield from walk(str(root), "")
    except OSError as error:
        raise IngestError(f"{error.filename or root}: cannot be read: {error.strerror}") from error


def _source_file(name: str, entry: os.DirEntry[str]) -> SourceFile:
    shown = _printable(name)
    # Opening a pipe would wait for ever.
    content = entry.path if entry.is_file() else BadFile(shown, "not a regular file")
    return SourceFile(shown, content)


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> SourceFile:
    name = _printable(member.name)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return SourceFile(name, BadFile(name, "its name in the archive leads out of it"))
    name = str(path)
    if not member.isreg() or member.issparse():
        return SourceFile(name, BadFile(name, "a link or a special file in the archive, not an image"))
    if member.size > MAX_FILE_BYTES:
        return SourceFile(name, BadFile(name, f"{member.size} bytes; at most {MAX_FILE_BYTES} are read"))
    file = archive.extractfile(member)
    assert file is not None
    return SourceFile(name, file.read())


class _BoundedTarInfo(tarfile.TarInfo):
    """Refuses records of names that tarfile would read into memory whatever their size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_BoundedTarInfo":
        info = super().frombuf(buf, encoding, errors)
        if not info.isreg() and not info.isdir() and info.size > _MAX_NAME_RECORD:
            raise tarfile.ReadError(f"a record of {info.size} bytes where a name is expected")
        return info


class _Bounded(io.RawIOBase):
    """Unpacked bytes of a gzip file; stops where they outgrow the packed ones beyond all reason."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._unpacked = gzip.GzipFile(fileobj=raw, mode="rb")
        self._n_bytes = 0

    def read(self, size: int = -1) -> bytes:
        content = self._unpacked.read(size)
        self._n_bytes += len(content)
        if self._n_bytes > _FREE_BYTES + _MAX_EXPANSION * self._raw.tell():
            raise tarfile.ReadError(f"it unpacks to over {_MAX_EXPANSION} times its size")
        return content
