"""CSV files for `dvc plots` and for readers: the numbers behind the figures."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

import numpy as np

from darkarc.evaluation.figures.accuracy import SHOWN, spread_over_truth
from darkarc.evaluation.figures.calibration import NOMINAL, PIT_BINS, binomial_band, coverage_curve
from darkarc.evaluation.metrics import Scores


def tidy(value: Any) -> Any:
    """A number with six significant digits, null where it is not finite; containers all the way down."""
    if isinstance(value, Mapping):
        return {key: tidy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(item) for item in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    return float(f"{value:.6g}") if np.isfinite(value) else None


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV text with these columns; null is an empty field."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [tidy(row[column]) for column in columns]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return buffer.getvalue()


def by_mass_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every number by bin of the true value, as in `by_mass` of metrics.json."""
    return to_csv(list(rows[0]), rows)


def error_by_mass_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The middle of each bin and its errors, one row a bin that has images."""
    filled = [{"truth": 0.5 * (row["low"] + row["high"]), **row} for row in rows if row["n"]]
    floor = [name for name in ("floor_mae_dex", "floor_mae_dex_se") if filled and name in filled[0]]
    return to_csv(
        ["truth", "n", "mae_dex", "mae_dex_se", "rmse_dex", "bias_dex", "sharpness_dex", *floor], filled
    )


def coverage_csv(scores: Scores) -> str:
    """Share of true values inside the interval of each level, and where 95% of such shares fall."""
    columns = ["level", "coverage", "expected_low", "expected_high"]
    if len(scores) == 0:
        return to_csv(columns, [])
    low, high = binomial_band(len(scores), NOMINAL)
    table = zip(NOMINAL, coverage_curve(scores.pit), low, high, strict=True)
    return to_csv(columns, (dict(zip(columns, row, strict=True)) for row in table))


def pit_csv(scores: Scores) -> str:
    """Histogram of the probability integral transform, as a density (1 everywhere if calibrated)."""
    columns = ["pit", "density"]
    if len(scores) == 0:
        return to_csv(columns, [])
    density, edges = np.histogram(scores.pit, bins=PIT_BINS, range=(0, 1), density=True)
    middle = 0.5 * (edges[1:] + edges[:-1])
    return to_csv(columns, ({"pit": x, "density": y} for x, y in zip(middle, density, strict=True)))


def prediction_csv(scores: Scores) -> str:
    """The images of the prediction figure: truth, median and the 68% interval."""
    shown = scores[spread_over_truth(scores.truth, SHOWN)] if len(scores) else scores
    columns = ["truth", "median", "q16", "q84"]
    rows = zip(*(getattr(shown, column) for column in columns), strict=True)
    return to_csv(columns, (dict(zip(columns, row, strict=True)) for row in rows))
