"""The same numbers by bin of the true value and by tercile of the prediction.

Errors are asked for by true value. Calibration is not: even the exact posterior covers too rarely where the
truth lies at an end of the prior, and too often in the middle, because the interval knows the image and not
the truth. What can be demanded of it is nominal coverage in any bin of what the image tells, such as the
median.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from darkarc.evaluation.metrics import STATISTICS, UNIFORMITY, Scores, standard_errors, summarise

Floats = NDArray[np.float64]


def mass_edges(low: float, high: float, bins: int) -> Floats:
    """(bins + 1,) equally wide bins of the prior range."""
    return np.linspace(low, high, bins + 1)


def tercile_edges(values: Floats) -> Floats:
    """(4,) edges that put a third of the values into each of three bins."""
    return np.quantile(values, [0.0, 1 / 3, 2 / 3, 1.0])


def members(values: Floats, edges: Floats) -> NDArray[np.intp]:
    """(N,) bin of each value; one beyond the first or last edge belongs to that end bin."""
    index: NDArray[np.intp] = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return index


def by_bin(scores: Scores, values: Floats, edges: Floats, seed: int) -> list[dict[str, Any]]:
    """A row a bin: `low`, `high`, `n`, every number of `STATISTICS` with its error (suffix `_se`), and those
    of `UNIFORMITY`, which have none.

    values: (N,) what is binned. A bin without images has null for every number.
    """
    bins = members(values, edges)
    rows = []
    for index in range(len(edges) - 1):
        inside = scores[bins == index]
        numbers, _ = summarise(inside)
        errors = standard_errors(inside, seed)
        row: dict[str, Any] = {"low": float(edges[index]), "high": float(edges[index + 1]), "n": len(inside)}
        for name in STATISTICS:
            row[name] = numbers[name]
            row[f"{name}_se"] = errors[name]
        row |= {name: numbers[name] for name in UNIFORMITY}
        rows.append(row)
    return rows
