"""Metrics that a study can search by: those of the training's epochs, and what a trial adds to them."""

import numpy as np

from darkarc.data.store import Store
from darkarc.models import Regressor

METRICS = {
    "val_mae_dex": "min",
    "val_loss": "min",
    "val_class_accuracy": "max",
    "val_calibration": "min",
    "million_parameters": "min",
    "train_seconds": "min",
}
"""Name to the better direction. `val_calibration` is the mean distance of the coverage from nominal;
`million_parameters` and `train_seconds` (by `timing.clock`) are costs, the first the same everywhere."""

WORST = 1e3
"""Value of every objective of a trial that diverged: worse than any trained regressor, and finite, because
neither a Gaussian process nor a percentile bears an infinity."""


def direction(metric: str) -> str:
    return METRICS.get(metric, "min")


def worst(metric: str) -> float:
    return WORST if direction(metric) == "min" else -WORST


def million_parameters(regressor: Regressor) -> float:
    return sum(p.numel() for p in regressor.parameters() if p.requires_grad) / 1e6


def calibration_error(regressor: Regressor, prepared: Store, *, batch_size: int = 512) -> float:
    """Mean distance between the coverage of central intervals and their level, on the validation split.

    Of the first target. The posterior's cdf at the truth is uniform on [0, 1] where the posterior is
    calibrated (Gneiting, Balabdaoui & Raftery 2007): |2 cdf - 1| <= level then occurs at a rate of `level`.
    """
    target = next(iter(regressor.targets))
    table = prepared.samples
    truth = table[target].to_numpy(zero_copy_only=False).astype(np.float64)
    validation = np.asarray(table["split"].to_pylist(), dtype=object) == "validation"
    rows = np.flatnonzero(validation & np.isfinite(truth))
    distance = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        posterior = regressor.predict(prepared.images(part), target=target, batch_size=batch_size)
        distance.append(np.abs(2 * posterior.cdf(truth[part]) - 1))
    levels = np.linspace(0.05, 0.95, 19)
    coverage = (np.concatenate(distance)[:, None] <= levels).mean(axis=0)
    return float(np.abs(coverage - levels).mean())
