"""What a search may see of a prepared store: train and validation, and of train no more than a share."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from darkarc.data.store import Store

SPLITS = ("train", "validation")


class HiddenSplit(ValueError):
    """An image was asked for that a search must not see."""


@dataclass(frozen=True)
class SearchView(Store):
    """A prepared store as a search sees it: rows of the other splits have no split, and no image.

    `share` of the train split's groups are kept, drawn by (seed, group). Nothing is copied: images
    come from the same memory-mapped shards, in the same page cache, for all trials of a machine.
    """

    share: float = 1.0
    seed: int = 0

    @classmethod
    def of(cls, store: Store, share: float = 1.0, seed: int = 0) -> "SearchView":
        return cls(store.path, store.manifest, share, seed)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return (SearchView, (self.path, self.manifest, self.share, self.seed))

    @property
    def digest(self) -> str:
        facts = f"search {self.manifest.digest} {self.share!r} {self.seed if self.share < 1 else 0}"
        return hashlib.sha256(facts.encode()).hexdigest()

    @cached_property
    def samples(self) -> pa.Table:
        table = Store(self.path, self.manifest).samples
        split = np.asarray(table["split"].to_pylist(), dtype=object)
        groups = table["group_id"].to_pylist()
        kept = {group for group in set(groups) if self._draw(group) < self.share}
        seen = np.array(
            [
                name == "validation" or (name == "train" and group in kept)
                for name, group in zip(split, groups, strict=True)
            ]
        )
        visible = [name if kept else None for name, kept in zip(split, seen, strict=True)]
        column = pa.array(visible, pa.string())
        return table.set_column(table.column_names.index("split"), "split", column)

    @cached_property
    def _visible(self) -> np.ndarray:
        return self.samples["split"].is_valid().to_numpy()

    def _gather(self, indices: np.ndarray) -> np.ndarray:
        hidden = indices[~self._visible[indices]]
        if len(hidden):
            raise HiddenSplit(f"image {hidden[0]} of {self.path} is not part of this search's data")
        return super()._gather(indices)

    def _draw(self, group: str | None) -> float:
        """A number in [0, 1) for a group, the same on every machine."""
        content = hashlib.blake2b(f"{self.seed}:{group}".encode(), digest_size=8).digest()
        return int.from_bytes(content, "big") / 2**64


def open_view(path: str | Path, share: float, seed: int) -> SearchView:
    """Open a prepared store for a trial; its files were verified once, by the driver."""
    return SearchView.of(Store.open(path, verify=False), share, seed)
