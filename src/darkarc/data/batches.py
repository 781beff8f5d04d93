"""Batches of a prepared store on the device: resident in memory where they fit, else memory-mapped."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from darkarc.config import CLASSES, TARGET_CLASS
from darkarc.data.auxiliary import auxiliary_truths
from darkarc.data.store import Store
from darkarc.simulation.counter import hash_indices

PRIOR_TOLERANCE = 1e-6
"""A truth this far outside its prior range (in its units) is rounding; it is moved to the edge."""

LEAST_TO_VARY = 10
"""Among so many samples a target that never changes is a constant, not chance."""

CONSTANT_INSTEAD = {
    "n_subhalos": " (DeepLense's lenses all have 25; their total mass, log10_subhalo_mass_msun, varies)"
}


class BatchError(ValueError):
    """A split that cannot be trained on or evaluated."""


class Batch(NamedTuple):
    """images (B, 1, H, W) as stored; classes (B,) int64; truth (B, T) and auxiliary (B, 4) (in the order of
    `data.auxiliary.AUXILIARY`) float32, nan where not defined."""

    images: Tensor
    classes: Tensor
    truth: Tensor
    auxiliary: Tensor


def epoch_order(seed: int, epoch: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """(n,) permutation of 0..n-1: a pure function of (seed, epoch, n), the same on every device."""
    keys = hash_indices(seed, 2 * epoch, torch.arange(n, device=device))
    return torch.argsort(keys, stable=True)


class ImageSource:
    """One split of a prepared store.

    Images up to `memory_gb` in total are copied to the device once, in their stored type, and batches
    are gathered there; larger splits stay memory-mapped and only batches travel.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        targets: dict[str, tuple[float, float]],
        *,
        memory_gb: float = 4.0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises `BatchError` if the split is empty or a truth lies outside of its prior range."""
        table = store.samples
        self.rows = split_rows(store, split)
        names = np.asarray(table.column("class").to_pylist(), dtype=object)[self.rows]
        self.split = split
        self.device = torch.device(device)
        self.classes = torch.tensor([CLASSES.index(name) for name in names], device=self.device)
        truths = [
            _truth(table.column(name).to_numpy()[self.rows], names, name, prior, f"{store.path} ({split})")
            for name, prior in targets.items()
        ]
        self.truth = torch.from_numpy(np.stack(truths, axis=1)).to(self.device)
        self.auxiliary = torch.from_numpy(_auxiliary(store, self.rows, names)).to(self.device)
        self._store = store
        height, width = store.shape
        n_bytes = len(self.rows) * height * width * _type_in_torch(store.manifest.dtype).itemsize
        self.resident: Tensor | None = None
        if n_bytes <= memory_gb * 1e9:
            self.resident = self._read(self.rows).to(self.device)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, epoch: int, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Batch]]:
        """Batches of the samples `order`, each with its indices (B,); the same in every epoch."""
        for indices in order.split(batch_size):
            yield indices, self.batch(indices)

    def batch(self, indices: Tensor) -> Batch:
        """Samples of this split by their position in it; `indices` (B,) on the device."""
        if self.resident is not None:
            images = self.resident[indices]
        else:
            images = self._read(self.rows[indices.cpu().numpy()]).to(self.device, non_blocking=True)
        return Batch(images, self.classes[indices], self.truth[indices], self.auxiliary[indices])

    def _read(self, rows: np.ndarray) -> Tensor:
        return as_tensor(self._store.images(rows))


def as_tensor(images: np.ndarray) -> Tensor:
    """A copy of a store's images (N, H, W) as (N, 1, H, W), in a type that torch computes in."""
    return torch.from_numpy(np.array(images, _type_in_torch(images.dtype)))[:, None]


def _type_in_torch(dtype: np.typing.DTypeLike) -> np.dtype:
    """torch computes on few unsigned types; the next signed one holds every count."""
    dtype = np.dtype(dtype)
    return np.dtype(f"i{min(8, 2 * dtype.itemsize)}") if dtype.kind == "u" else dtype


def _auxiliary(store: Store, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(N, 4) float32; a vortex is an axion lens's alone."""
    columns = ("source_x_arcsec", "source_y_arcsec", "vortex_angle_rad")
    x, y, angle = (store.samples.column(name).to_numpy()[rows].astype(np.float64) for name in columns)
    return auxiliary_truths(x, y, np.where(classes == "axion", angle, np.nan))


def split_rows(store: Store, split: str) -> np.ndarray:
    """Rows of a split; raises `BatchError` if it is empty."""
    splits = np.asarray(store.samples.column("split").to_pylist(), dtype=object)
    rows = np.flatnonzero(splits == split)
    if len(rows) == 0:
        raise BatchError(f"{store.path}: no samples in the {split} split; raise prepare.{split}")
    return rows


def _truth(
    values: np.ndarray, classes: np.ndarray, target: str, prior: tuple[float, float], where: str
) -> np.ndarray:
    """(N,) float32 truth of a target: nan for samples of classes that do not have it."""
    truth = np.where(classes == TARGET_CLASS[target], values.astype(np.float64), np.nan)
    if not np.isfinite(truth).any():
        raise BatchError(
            f"{where}: no {TARGET_CLASS[target]} sample with a {target}, so there is nothing to learn it from"
        )
    known = truth[np.isfinite(truth)]
    if len(known) >= LEAST_TO_VARY and np.ptp(known) == 0:
        raise BatchError(
            f"{where}: {target} is {known[0]:g} in all {len(known)} {TARGET_CLASS[target]} samples: there is "
            f"nothing to learn, take it out of targets{CONSTANT_INSTEAD.get(target, '')}"
        )
    return within_prior(truth, target, prior, where)


def within_prior(truth: np.ndarray, target: str, prior: tuple[float, float], where: str) -> np.ndarray:
    """(N,) float32 truths, rounding at the ends of the prior range mended; nan stays nan.

    Raises `BatchError` for truths outside of it.
    """
    low, high = prior
    known = truth[np.isfinite(truth)]
    outside = (known < low - PRIOR_TOLERANCE) | (known > high + PRIOR_TOLERANCE)
    if outside.any():
        raise BatchError(
            f"{where}: {int(outside.sum())} of {len(known)} samples have {target} outside of its prior range "
            f"[{low:g}, {high:g}] (they span {known.min():g} to {known.max():g}): widen targets.{target}"
        )
    return np.clip(truth, low, high).astype(np.float32)
