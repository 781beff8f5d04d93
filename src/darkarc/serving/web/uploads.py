"""Uploads: a multipart body to files in a folder, as it arrives, ended at the first byte too many."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from darkarc.config import ServeConfig
from darkarc.data.readers import READERS
from darkarc.serving.web.settings import MEGABYTE

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

ENDINGS = tuple(ending for ending in READERS if "tar" not in ending and ending != ".tgz")
"""What is read from the page. Archives are not: `darkarc predict` takes them."""

LONGEST_NAME = 200
LONGEST_HEADERS = 4096


class Refused(Exception):
    """A request that is not answered: HTTP status, and a sentence for the one who sent it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Upload:
    """One file: the name that the sender gave it, where it lies, and why it is not read ("" if it is)."""

    name: str
    path: Path
    reason: str = ""


def shown_name(raw: bytes) -> str:
    """A sender's file name for display and table: no folders, no control characters, no formula.

    It never becomes the name of a file here. A spreadsheet takes a cell that begins with one of =+-@ for a
    formula; with ./ in front it is still the same file.
    """
    name = raw.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    # What a browser writes for the characters that would end the header.
    for code, character in (("%22", '"'), ("%0D", ""), ("%0A", "")):
        name = name.replace(code, character)
    name = "".join(character for character in name if character.isprintable()).strip()[-LONGEST_NAME:]
    return f"./{name}" if name[:1] in tuple("=+-@") else name or "unnamed"


def declared_too_large(length: str | None, limits: ServeConfig) -> Refused | None:
    """Whether the request says of itself that it is too large, before a byte of it is read."""
    if length is not None and (not length.isdecimal() or int(length) > limits.max_request_mb * MEGABYTE):
        return _too_large_request(limits)
    return None


def _too_large_request(limits: ServeConfig) -> Refused:
    return Refused(
        413,
        f"a request holds at most {limits.max_request_mb:g} MB; send fewer files, or use `darkarc predict`",
    )


async def receive(
    stream: AsyncIterator[bytes], content_type: str, folder: Path, limits: ServeConfig
) -> list[Upload]:
    """Write the files of a multipart body into `folder`, under names of our own. Raises `Refused`."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise Refused(415, "expected files as multipart/form-data, as a browser or `curl -F files=@…` sends")
    writer = _Writer(folder, limits)
    total = 0
    try:
        parser = MultipartParser(boundary, writer.callbacks())
        async for chunk in stream:
            total += len(chunk)
            if total > limits.max_request_mb * MEGABYTE:
                raise _too_large_request(limits)
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise Refused(400, "the upload is damaged or cut short; send it again") from error
    finally:
        writer.close()
    if not writer.complete:
        raise Refused(400, "the upload is cut short; send it again")
    if not writer.uploads:
        raise Refused(400, "no file in the request; give one as `files`")
    return writer.uploads


class _Writer:
    """Callbacks of the multipart parser."""

    def __init__(self, folder: Path, limits: ServeConfig) -> None:
        self.folder, self.limits = folder, limits
        self.uploads: list[Upload] = []
        self.complete = False
        self._file: BinaryIO | None = None
        self._start()

    def _start(self) -> None:
        self._name, self._value, self._headers, self._header_bytes = b"", b"", dict[bytes, bytes](), 0
        self._written = 0

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._start,
            "on_header_field": self._on_name,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self.close,
            "on_end": self._on_end,
        }

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _count_header(self, begin: int, end: int) -> None:
        self._header_bytes += end - begin
        if self._header_bytes > LONGEST_HEADERS:
            raise Refused(400, "the headers of a file are too long; is its name?")

    def _on_name(self, data: bytes, begin: int, end: int) -> None:
        self._count_header(begin, end)
        self._name += data[begin:end]

    def _on_value(self, data: bytes, begin: int, end: int) -> None:
        self._count_header(begin, end)
        self._value += data[begin:end]

    def _on_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"filename" not in options:
            return  # a field of a form, not a file
        if len(self.uploads) >= self.limits.max_files:
            raise Refused(
                413,
                f"a request holds at most {self.limits.max_files} files; for more there is `darkarc predict`",
            )
        name = shown_name(options[b"filename"])
        ending = next((e for e in ENDINGS if name.lower().endswith(e)), None)
        if ending is None:
            reason = f"of unknown kind; the page reads {', '.join(ENDINGS)}"
            self.uploads.append(Upload(name, self.folder / "nowhere", reason))
            return
        path = self.folder / f"{len(self.uploads):05d}{ending}"
        self.uploads.append(Upload(name, path))
        self._file = path.open("xb")

    def _on_data(self, data: bytes, begin: int, end: int) -> None:
        self._written += end - begin
        if self._written > self.limits.max_file_mb * MEGABYTE:
            name = self.uploads[-1].name if self.uploads else "a field"
            raise Refused(
                413,
                f"{name}: over {self.limits.max_file_mb:g} MB, the most that a file on this page may have",
            )
        if self._file is not None:
            self._file.write(data[begin:end])

    def _on_end(self) -> None:
        self.complete = True
