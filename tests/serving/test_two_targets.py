"""Two targets of two classes: train, recalibrate, save, load, evaluate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from darkarc.config import DEFAULT_TARGET, Config, parse
from darkarc.data.store import Store, StoreWriter
from darkarc.evaluation import evaluate
from darkarc.models import load_regressor, save_regressor
from darkarc.tracking.tracker import NullTracker
from darkarc.training import train
from darkarc.training.recalibrate import recalibrate

SIDE = 16
SUBHALOS = "log10_subhalo_mass_msun"
SPLITS = {"train": 120, "validation": 40, "calibration": 120, "test": 40}


def write_store(path: Path, fitted_statistics: Callable[[np.ndarray], dict[str, Any]]) -> Store:
    """Blobs whose width tells the mass of the particle (axion) or of the subhaloes (cdm, squares)."""
    rng = np.random.default_rng(0)
    n = sum(SPLITS.values())
    classes = np.array([("axion", "cdm")[i % 2] for i in range(n)], dtype="<U6")
    classes[9::10] = "no_sub"
    share = rng.uniform(0, 1, n)
    x = np.abs(np.arange(SIDE) - (SIDE - 1) / 2)
    radius = np.hypot(x, x[:, None]), np.maximum(x, x[:, None])
    shape = np.where((classes == "axion")[:, None, None], *radius)
    images = np.exp(-(shape**2) / (2 * (1 + 2 * share)[:, None, None] ** 2))
    images = (images + 0.02 * rng.normal(size=images.shape)).astype(np.float32)
    split = rng.permutation(np.repeat(list(SPLITS), list(SPLITS.values())))
    writer = StoreWriter(
        path, name="two", origin="t", instrument="t", shape=(SIDE, SIDE), dtype="float32", parameters={}
    )
    writer.append(
        images,
        {
            "sample_id": [f"{i}" for i in range(n)],
            "class": list(classes),
            DEFAULT_TARGET: np.where(classes == "axion", -24 + 2 * share, np.nan),
            SUBHALOS: np.where(classes == "cdm", 9.5 + 1.5 * share, np.nan),
            "split": list(split),
        },
    )
    statistics = fitted_statistics(images[split == "train"]) | {"background": 0.0, "noise_level": 0.02}
    writer.attach(
        "statistics.json", json.dumps(statistics | {"shape": [SIDE, SIDE], "instrument": "t"}).encode()
    )
    return writer.commit()


@pytest.fixture
def config() -> Config:
    return parse(
        {
            "device": "cpu",
            "targets": {DEFAULT_TARGET: [-24, -22], SUBHALOS: [9, 11.5]},
            "model": {"width": 0.25, "bins": 32},
            "train": {
                "epochs": 12,
                "batch_size": 20,
                "learning_rate": 1e-2,
                "label_sigma_dex": 0.05,
                "target_weight": {SUBHALOS: 2.0},
            },
            "evaluate": {"mass_bins": 2, "examples": 1},
        }
    )


def test_two_targets_are_trained_recalibrated_and_evaluated(
    tmp_path: Path, config: Config, fitted_statistics: Callable[[np.ndarray], dict[str, Any]]
) -> None:
    store = write_store(tmp_path / "prepared", fitted_statistics)
    result = train(config, store, workdir=tmp_path / "work", tracker=NullTracker(), progress=False)
    last = result.history[-1]
    assert last["val_mae_dex"] < 0.4 and last[f"val_mae_{SUBHALOS}"] < 0.35  # guesses: 0.5 and 0.375
    before = [item.levels.clone() for item in result.regressor.recalibrations]
    recalibrate(config, result.regressor, store)
    for old, item in zip(before, result.regressor.recalibrations, strict=True):
        assert not old.equal(item.levels)
    regressor = load_regressor(save_regressor(result.regressor, tmp_path / "trained"))

    metrics = evaluate(config, regressor, store, out=tmp_path / "reports", tracker=NullTracker())
    other = metrics["targets"][SUBHALOS]
    assert metrics["mae_dex"] < 0.4 and other["mae_dex"] < 0.35
    assert 0 < other["coverage_90"] <= 1 and other["n_scored"] < metrics["n_test"]
    assert f"error_by_mass_{SUBHALOS}" in (tmp_path / "reports/report.html").read_text()
    assert (tmp_path / f"reports/plots/coverage_{SUBHALOS}.csv").exists()
    rows = pq.read_table(tmp_path / "reports/test_predictions.parquet").to_pandas()
    assert (rows["truth"].notna() == (rows["class"] == "axion")).all()
    assert (rows[f"{SUBHALOS}_truth"].notna() == (rows["class"] == "cdm")).all()
