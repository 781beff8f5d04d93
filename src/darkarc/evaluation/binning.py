"""The same numbers by bin and by tercile of the true value."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from darkarc.evaluation.metrics import STATISTICS, Scores, standard_errors, summarise

Floats = NDArray[np.float64]


def mass_edges(low: float, high: float, bins: int) -> Floats:
    """(bins + 1,) equally wide bins of the prior range."""
    return np.linspace(low, high, bins + 1)


def tercile_edges(truth: Floats) -> Floats:
    """(4,) edges that put a third of the true values into each of three bins."""
    return np.quantile(truth, [0.0, 1 / 3, 2 / 3, 1.0])


def members(truth: Floats, edges: Floats) -> NDArray[np.intp]:
    """(N,) bin of each true value; one beyond the first or last edge belongs to that end bin."""
    index: NDArray[np.intp] = np.clip(np.searchsorted(edges, truth, side="right") - 1, 0, len(edges) - 2)
    return index


def by_bin(scores: Scores, edges: Floats, seed: int) -> list[dict[str, Any]]:
    """A row a bin: `low`, `high`, `n`, every number of `STATISTICS` and (suffix `_se`) its error.

    A bin without images has null for every number.
    """
    bins = members(scores.truth, edges)
    rows = []
    for index in range(len(edges) - 1):
        inside = scores[bins == index]
        values, _ = summarise(inside)
        errors = standard_errors(inside, seed)
        row: dict[str, Any] = {"low": float(edges[index]), "high": float(edges[index + 1]), "n": len(inside)}
        for name in STATISTICS:
            row[name] = values[name]
            row[f"{name}_se"] = errors[name]
        rows.append(row)
    return rows
