"""The same numbers by bin of the true value and by tercile of the prediction.

Errors are asked for by true value. Calibration is not: even the exact posterior covers too rarely where the
truth lies at an end of the prior, and too often in the middle, because the interval knows the image and not
the truth. What can be demanded of it is nominal coverage in any bin of what the image tells, such as the
median, and, by true value, the coverage that posteriors as wide as these have if they are calibrated
(`expected_coverage`).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from darkarc.evaluation.metrics import LEVELS, STATISTICS, UNIFORMITY, Scores, standard_errors, summarise
from darkarc.models.posterior import Posterior

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


def cumulative_at(posterior: Posterior, edges: Floats) -> Floats:
    """(N, B + 1) probability that each posterior gives to lie below each of B + 1 edges."""
    return np.stack([posterior.cdf(float(edge)) for edge in edges], axis=1)


def expected_coverage(cumulative: Floats, level: float) -> Floats:
    """(B,) how often equal-tailed intervals would hold a truth that lies in each bin, were they calibrated.

    For truths drawn from the N posteriors themselves, `sum_i P_i(bin and interval_i) / sum_i P_i(bin)`, in
    closed form. nan for a bin to which no posterior gives a probability.

    cumulative: (N, B + 1) of `cumulative_at`.
    """
    low, high = cumulative[:, :-1], cumulative[:, 1:]
    both = np.clip(np.minimum(high, 0.5 + level / 2) - np.maximum(low, 0.5 - level / 2), 0, None).sum(axis=0)
    alone = (high - low).sum(axis=0)
    expected: Floats = np.divide(both, alone, out=np.full(len(alone), np.nan), where=alone > 0)
    return expected


def add_expected_coverage(rows: list[dict[str, Any]], cumulative: Floats) -> None:
    """Put `coverage_68_expected` and its like for the other levels into the rows of `by_bin`.

    cumulative: (N, B + 1) of `cumulative_at`, at the edges of the rows.
    """
    for level in LEVELS:
        for row, value in zip(rows, expected_coverage(cumulative, level), strict=True):
            row[f"coverage_{round(100 * level)}_expected"] = float(value) if np.isfinite(value) else None


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
