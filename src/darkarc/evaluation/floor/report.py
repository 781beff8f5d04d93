"""The floor in the numbers of an evaluation, or in words why there is none."""

from pathlib import Path
from typing import Any

import numpy as np

from darkarc.config import DEFAULT_TARGET
from darkarc.data.store import Store
from darkarc.evaluation.alarms import floor_warnings
from darkarc.evaluation.floor.beside import (
    NAMES,
    NO_ROW,
    compute_beside,
    floor_by_mass,
    floor_numbers,
)
from darkarc.evaluation.floor.likelihood import NoFloor
from darkarc.evaluation.predictions import Predictions

MISSED = 0.05
"""Share of images whose maximum the search may miss: it misses that of one or two in a hundred."""


def add_floor(
    metrics: dict[str, Any],
    store: Store,
    predictions: Predictions,
    images: int,
    *,
    seed: int,
    cache: Path | None,
    workers: int = 1,
    progress: bool = False,
) -> None:
    """Put the floor into the metrics of the axion mass: numbers, errors, rows by mass, the alarm.

    Where there is none the numbers are null and `missing` says why.
    """
    rows = metrics["by_mass"]
    try:
        beside = compute_beside(
            store, predictions, images, seed=seed, cache=cache, workers=workers, progress=progress
        )
    except NoFloor as reason:
        metrics |= {**dict.fromkeys(NAMES), "floor_n_images": 0, "floor_n_unexplained": 0}
        metrics["missing"] += [{"metric": "floor_mae_dex", "reason": f"no information floor: {reason}"}]
        for row in rows:
            row |= NO_ROW
        return
    numbers, errors = floor_numbers(beside, seed)
    metrics |= numbers
    metrics["standard_error"] |= errors
    edges = np.array([row["low"] for row in rows] + [rows[-1]["high"]])
    for row, own in zip(rows, floor_by_mass(beside, edges), strict=True):
        row |= own
    own_error, exact_error = np.abs(beside.own.error), np.abs(beside.exact.error)
    metrics["leaks"] = floor_warnings(DEFAULT_TARGET, own_error, exact_error, seed)
    metrics["warnings"] += metrics["leaks"]
    if beside.n_unexplained > max(2, MISSED * (len(beside) + beside.n_unexplained)):
        metrics["warnings"].append(
            f"{DEFAULT_TARGET}: no lens of the form in the manifest explains {beside.n_unexplained} of "
            f"{len(beside) + beside.n_unexplained} test images: they may not be what their manifest says"
        )
