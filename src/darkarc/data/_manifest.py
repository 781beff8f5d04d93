"""What a store is made of: its table's columns, its manifest, the errors of both."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"

SAMPLE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("class", pa.string()),
        ("log10_axion_mass_ev", pa.float64()),
        ("vortex_angle_rad", pa.float64()),
        ("log10_subhalo_mass_msun", pa.float64()),
        ("n_subhalos", pa.int32()),
        ("source_x_arcsec", pa.float64()),
        ("source_y_arcsec", pa.float64()),
        ("exposure_s", pa.float64()),
        ("group_id", pa.string()),
        ("origin", pa.string()),
        ("pixel_sha256", pa.string()),
        ("split", pa.string()),
    ]
)
"""Columns of `samples.parquet`, a row an image; null where a quantity does not apply."""

SAMPLE_COLUMNS: tuple[str, ...] = tuple(SAMPLE_SCHEMA.names)

DTYPES = ("float32", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
"""Pixel types a store can hold, little-endian on disk."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{64}")


class StoreError(ValueError):
    """A store that cannot be read or written; the message names the file and the remedy."""


@dataclass(frozen=True)
class Shard:
    """One `images-*.npy`: its name, how many images, SHA-256 of the file, its size in bytes."""

    file: str
    n: int
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Attachment:
    """A file beside the images that belongs to the store (`statistics.json`, `rejected.csv`)."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`: everything that identifies the content of a store.

    `shape` is (height, width) in pixels, `parameters` is whatever generated the images; no
    time and no machine is in it, so the same parameters give the same bytes.
    """

    name: str
    origin: str
    instrument: str
    shape: tuple[int, int]
    dtype: str
    n_samples: int
    shards: tuple[Shard, ...]
    samples_sha256: str
    samples_bytes: int
    parameters: dict[str, Any] = field(default_factory=dict)
    files: tuple[Attachment, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Canonical text: sorted keys, so equal manifests are equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, indent=1, allow_nan=False) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the manifest's content, hence of every file it lists."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def plain_name(name: object) -> bool:
    """Whether a file name stays in its folder: no separators, no leading dot."""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None


def read_manifest(folder: Path) -> Manifest:
    """Parse and check `manifest.json` of a folder; raises `StoreError`."""
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StoreError(_explain_absence(folder)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot read the manifest: {error}") from error
    try:
        tree = json.loads(text)
        return _parse(tree)
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(
            f"{path}: not a complete manifest ({type(error).__name__}: {error}); make the store again"
        ) from error


def _explain_absence(folder: Path) -> str:
    partial = partial_folder(folder)
    if partial.exists():
        return (
            f"{folder}: no store there yet; {partial} holds an unfinished one. "
            "Run the command that writes it again: it goes on where it stopped"
        )
    if not folder.exists():
        return f"{folder}: no such store; make one with `darkarc simulate` or `darkarc ingest`"
    return (
        f"{folder}: not a store (it has no {MANIFEST}); a store is a folder made by "
        "`darkarc simulate`, `darkarc ingest` or `darkarc prepare`"
    )


def partial_folder(folder: Path) -> Path:
    """Where a store is written before it is complete."""
    return folder.with_name(folder.name + ".partial")


def _parse(tree: Mapping[str, Any]) -> Manifest:
    if not isinstance(tree, dict):
        raise StoreError(f"expected an object, found a {type(tree).__name__}")
    version = tree.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"schema_version is {version!r}, this darkarc reads {SCHEMA_VERSION}; "
            "update darkarc or make the store again"
        )
    height, width = (_count(value, "shape") for value in tree["shape"])
    manifest = Manifest(
        name=_text(tree, "name"),
        origin=_text(tree, "origin"),
        instrument=_text(tree, "instrument"),
        shape=(height, width),
        dtype=_text(tree, "dtype"),
        n_samples=_count(tree["n_samples"], "n_samples"),
        shards=tuple(Shard(n=_count(item["n"], "shards.n"), **_file(item)) for item in tree["shards"]),
        samples_sha256=_digest(tree["samples_sha256"]),
        samples_bytes=_count(tree["samples_bytes"], "samples_bytes"),
        parameters=dict(tree["parameters"]),
        files=tuple(Attachment(**_file(item)) for item in tree["files"]),
    )
    if manifest.dtype not in DTYPES:
        raise StoreError(f"dtype is {manifest.dtype!r}; a store holds one of {', '.join(DTYPES)}")
    if height * width == 0:
        raise StoreError(f"shape is {manifest.shape}; both sides must be at least 1")
    total = sum(shard.n for shard in manifest.shards)
    if total != manifest.n_samples:
        raise StoreError(f"n_samples is {manifest.n_samples}, but the shards hold {total}")
    listed: list[Shard | Attachment] = [*manifest.shards, *manifest.files]
    names = [item.file for item in listed] + [MANIFEST, SAMPLES]
    if len(set(names)) != len(names):
        raise StoreError("a file is listed twice")
    return manifest


def _file(item: Mapping[str, Any]) -> dict[str, Any]:
    if not plain_name(item["file"]):
        raise StoreError(f"{item['file']!r} is not the name of a file in this folder")
    size = _count(item["bytes"], "bytes")
    return {"file": item["file"], "sha256": _digest(item["sha256"]), "bytes": size}


def _text(tree: Mapping[str, Any], key: str) -> str:
    if not isinstance(tree[key], str):
        raise StoreError(f"{key} is {tree[key]!r}; expected text")
    return tree[key]


def _count(value: object, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise StoreError(f"{key} is {value!r}; expected a count")
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise StoreError(f"{value!r} is not a SHA-256")
    return value


def shard_header(n: int, shape: tuple[int, int], dtype: str) -> bytes:
    """The 128-byte `.npy` header (format 1.0) of a shard of n images.

    Its length does not depend on n, so a shard can be appended to and its header set at the end.
    """
    descr = np.dtype(dtype).newbyteorder("<").str
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({n}, {shape[0]}, {shape[1]}), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode("ascii") + b"\n"


def pixel_sha256(image: np.ndarray) -> str:
    """SHA-256, in hexadecimal, of an image's pixels: little-endian, row by row, without a header."""
    little = image.dtype.newbyteorder("<")
    return hashlib.sha256(np.ascontiguousarray(image, dtype=little).data).hexdigest()
