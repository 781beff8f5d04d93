"""Where the checkpoints of trials go: a folder of this machine, one that all machines reach, or a bucket."""

import contextlib
import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from darkarc.tuning.study import StudyError

REMOTE = ("s3", "gs", "gcs", "hdfs", "abfs", "abfss")
"""What pyarrow, and with it Ray, opens by a URI."""


def storage_place(storage: str | None, folder: Path) -> str:
    """An absolute folder, which is there and can be written to, or the URI of a remote one.

    `storage` is what the user asks for: a folder, also a relative one, a `file://` URL, or a URI such as
    s3://bucket/studies. Without it `folder` is taken. Raises `StudyError` where it cannot be.
    """
    if storage is None:
        return str(folder)
    url = urlsplit(storage)
    if url.scheme in REMOTE:
        return storage
    if url.scheme not in ("", "file") or url.netloc not in ("", "localhost"):
        raise StudyError(
            f"--storage {storage}: neither a folder nor a place that Ray can open; give a folder that all "
            f"machines reach, file:///folder, or a URI that begins with {', '.join(REMOTE)}"
        )
    place = os.path.abspath(unquote(url.path) if url.scheme else storage)
    try:
        os.makedirs(place, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise StudyError(
            f"--storage {storage}: cannot write there ({error.strerror or error}); make the folder, give "
            "yourself the right to write to it, or name another one"
        ) from error
    return place


def remove_sessions(place: str, names: list[str]) -> None:
    """Remove what sessions of a study that is over have left in its storage; no harm if that fails."""
    from pyarrow.fs import FileSystem

    with contextlib.suppress(OSError, ValueError, NotImplementedError):
        filesystem, path = FileSystem.from_uri(place)
        for name in names:
            with contextlib.suppress(OSError):
                filesystem.delete_dir(f"{path}/{name}")
