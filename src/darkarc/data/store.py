"""The packed store: one data set as a few memory-mapped shards, a table and a manifest.

`docs/store.md` describes the format. `StoreWriter` makes one, `Store.open` reads one.
"""

from darkarc.data._manifest import (
    SAMPLE_COLUMNS,
    SAMPLE_SCHEMA,
    SCHEMA_VERSION,
    Attachment,
    Manifest,
    Shard,
    StoreError,
    pixel_sha256,
)
from darkarc.data._store_reader import Store
from darkarc.data._store_writer import StoreWriter

__all__ = [
    "SAMPLE_COLUMNS",
    "SAMPLE_SCHEMA",
    "SCHEMA_VERSION",
    "Attachment",
    "Manifest",
    "Shard",
    "Store",
    "StoreError",
    "StoreWriter",
    "pixel_sha256",
]
