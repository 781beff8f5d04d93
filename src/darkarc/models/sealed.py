"""Sealed folders: a few files and a manifest with their SHA-256, on disk completely or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from darkarc.durable import sync, write_file

MANIFEST = "manifest.json"


class SealError(ValueError):
    """A sealed folder that is absent, incomplete or changed; the message names the file."""


def write_sealed(folder: str | Path, files: Mapping[str, bytes]) -> Path:
    """Write `files` and their manifest beside `folder`, flush them to the disk, then rename.

    A folder already there is replaced; a kill at any moment leaves a complete one or none.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    entries = {}
    for name, content in files.items():
        write_file(partial / name, content)
        entries[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest = json.dumps({"files": entries}, indent=2, sort_keys=True) + "\n"
    write_file(partial / MANIFEST, manifest.encode())
    sync(partial)
    if folder.exists():
        # A non-empty folder cannot be renamed over: the old one steps aside for an instant.
        old = folder.with_name(f"{folder.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
        os.rename(partial, folder)
        shutil.rmtree(old)
    else:
        os.rename(partial, folder)
    sync(folder.parent)
    return folder


def sealed_sha256(folder: str | Path) -> str:
    """SHA-256, in hexadecimal, of the manifest: one name for all that is in a sealed folder.

    Raises `SealError` if there is none.
    """
    return hashlib.sha256(_manifest(Path(folder))).hexdigest()


def _manifest(folder: Path) -> bytes:
    try:
        return (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise SealError(f"{folder}: no readable {MANIFEST}, so nothing complete was written here") from error


def read_sealed(folder: str | Path) -> dict[str, bytes]:
    """The content of every file of a sealed folder, checked against its manifest.

    Raises `SealError` that names the folder, the file and what is wrong with it.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    try:
        entries = json.loads(manifest)["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SealError(f"{folder / MANIFEST}: damaged: {error}") from error
    contents = {}
    for name, entry in entries:
        if Path(name).name != name or not isinstance(entry, dict):
            raise SealError(f"{folder / MANIFEST}: damaged: the entry {name!r} names no file of this folder")
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise SealError(f"{folder / name}: listed in {MANIFEST} but not readable: {error}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != entry.get("sha256"):
            raise SealError(
                f"{folder / name}: {len(content)} bytes with SHA-256 {found[:12]}…, but {MANIFEST} says "
                f"{entry.get('bytes')} bytes with {str(entry.get('sha256'))[:12]}…: truncated or changed"
            )
        contents[name] = content
    return contents
