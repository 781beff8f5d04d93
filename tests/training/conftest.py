"""A prepared store of small images whose blob's width tells the target."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darkarc.config import Config, parse
from darkarc.data.store import Store, StoreWriter

SIDE = 12
SPLITS = {"train": 70, "validation": 30}


def blobs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, SIDE, SIDE) noisy Gaussian blobs and their (n,) log10 masses."""
    rng = np.random.default_rng(seed)
    log10_mass = rng.uniform(-24, -22, n)
    x = np.arange(SIDE) - (SIDE - 1) / 2
    radius = np.hypot(x, x[:, None])
    images = np.exp(-(radius**2) / (2 * (log10_mass + 25)[:, None, None] ** 2))
    return (images + 0.02 * rng.normal(size=images.shape)).astype(np.float32), log10_mass


def write_prepared(
    path: Path,
    *,
    instrument: str = "test camera",
    seed: int = 0,
    splits: dict[str, int] = SPLITS,
    auxiliary: bool = False,
) -> Store:
    writer = StoreWriter(
        path,
        name="blobs",
        origin="tests",
        instrument=instrument,
        shape=(SIDE, SIDE),
        dtype="float32",
        parameters={"seed": seed},
    )
    n = sum(splits.values())
    images, log10_mass = blobs(n, seed)
    classes = np.array([("axion", "axion", "cdm", "axion", "no_sub")[i % 5] for i in range(n)])
    split = np.repeat(list(splits), list(splits.values()))
    rng = np.random.default_rng(seed + 1)
    known = {
        "source_x_arcsec": rng.uniform(-0.35, 0.35, n),
        "source_y_arcsec": rng.uniform(-0.35, 0.35, n),
        "vortex_angle_rad": np.where(classes == "axion", rng.uniform(0, 6.28, n), np.nan),
    }
    writer.append(
        images,
        (known if auxiliary else {})
        | {
            "sample_id": [f"{i}" for i in range(n)],
            "class": list(classes),
            "log10_axion_mass_ev": np.where(classes == "axion", log10_mass, np.nan),
            "split": list(split),
        },
    )
    train = images[split == "train"]
    statistics = {
        "mean": float(train.mean()),
        "std": float(train.std()),
        "background": 0.0,
        "noise_level": 0.02,
        "shape": [SIDE, SIDE],
        "instrument": instrument,
        "reference": {},
    }
    writer.attach("statistics.json", json.dumps(statistics).encode())
    return writer.commit()


@pytest.fixture
def prepared(tmp_path: Path) -> Store:
    return write_prepared(tmp_path / "prepared")


@pytest.fixture
def settings() -> Callable[..., Config]:
    """A configuration that trains in a blink; keyword arguments override `train`."""

    def make(model: dict[str, Any] | None = None, seed: int = 0, **train: Any) -> Config:
        small = {"width": 0.25, "bins": 32, "dropout": 0.1, "stochastic_depth": 0.1}
        quick = {"epochs": 3, "batch_size": 16, "label_sigma_dex": 0.05}
        return parse({"seed": seed, "device": "cpu", "model": small | (model or {}), "train": quick | train})

    return make
