"""Prediction against truth, and error against mass."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from darkarc.config import with_unit
from darkarc.evaluation.binning import members
from darkarc.evaluation.metrics import Scores
from darkarc.evaluation.published import Comparison
from darkarc.evaluation.style import (
    BLACK,
    BLUE,
    COLUMN_INCHES,
    GREEN,
    GREY,
    SKY,
    VERMILLION,
    axis_label,
    new_figure,
    note,
)

Floats = NDArray[np.float64]

SHOWN = 400
"""Images drawn with their interval; all of them count in the running median and its band."""


def spread_over_truth(truth: Floats, n: int) -> NDArray[np.intp]:
    """At most n positions, evenly spaced in rank of the true value: the same ones for the same data."""
    order = np.argsort(truth, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(np.intp))]


def prediction_figure(target: str, scores: Scores, edges: Floats) -> Figure:
    """Posterior median and 68% interval against the true value, and the residuals below."""
    figure = new_figure(COLUMN_INCHES, 4.6)
    top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [2.4, 1]})
    if len(scores) == 0:
        for axes in (top, bottom):
            note(axes, "no test image has a true value")
        return figure
    shown = scores[spread_over_truth(scores.truth, SHOWN)]
    low, high = float(edges[0]), float(edges[-1])
    for axes, value in ((top, shown.median), (bottom, shown.error)):
        reach = np.stack([shown.median - shown.q16, shown.q84 - shown.median])
        axes.errorbar(
            shown.truth, value, yerr=reach, fmt="none", ecolor=SKY, elinewidth=0.5, alpha=0.6, zorder=1,
            rasterized=True, label="68% interval",
        )  # fmt: skip
        axes.scatter(shown.truth, value, s=4, color=BLUE, linewidths=0, zorder=2, label="posterior median")
    top.plot([low, high], [low, high], color=BLACK, linewidth=0.9, linestyle="--", zorder=3, label="truth")
    top.set_ylim(low, high)
    top.yaxis.set_major_locator(MaxNLocator(4))
    bottom.xaxis.set_major_locator(MaxNLocator(4))
    top.set_ylabel(axis_label(target, "predicted"))
    top.legend(loc="upper left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    _residual_band(bottom, scores, edges)
    bottom.axhline(0, color=BLACK, linewidth=0.9, linestyle="--", zorder=3)
    reach_of_all = float(np.quantile(np.abs(scores.error), 0.99)) * 1.3 + 1e-3
    bottom.set_ylim(-reach_of_all, reach_of_all)
    bottom.set_xlim(low, high)
    bottom.set_ylabel(with_unit("residual", target))
    bottom.set_xlabel(axis_label(target, "true"))
    figure.align_ylabels()
    return figure


def _residual_band(axes: Axes, scores: Scores, edges: Floats) -> None:
    """Running median of the residuals of all images, and the band that holds 68% of them."""
    steps = np.linspace(edges[0], edges[-1], 13)
    bins = members(scores.truth, steps)
    filled = [index for index in range(len(steps) - 1) if np.sum(bins == index) >= 5]
    if not filled:
        return
    middle = (0.5 * (steps[1:] + steps[:-1]))[filled]
    q16, q50, q84 = np.array([np.quantile(scores.error[bins == i], [0.16, 0.5, 0.84]) for i in filled]).T
    axes.plot(middle, q50, color=VERMILLION, linewidth=1.3, zorder=5, label="running median")
    for index, line in enumerate((q16, q84)):
        axes.plot(
            middle, line, color=VERMILLION, linewidth=0.8, linestyle=":", zorder=5,
            label="68% of residuals" if index == 0 else None,
        )  # fmt: skip
    handles, labels = axes.get_legend_handles_labels()
    chosen = [(h, s) for h, s in zip(handles, labels, strict=True) if "resid" in s or "running" in s]
    axes.legend(
        *zip(*chosen, strict=True), loc="lower left", bbox_to_anchor=(0.0, 0.98), ncols=2, borderaxespad=0.0
    )


def error_figure(
    target: str,
    scores: Scores,
    rows: Sequence[Mapping[str, Any]],
    guess: float | None,
    comparison: Comparison,
) -> Figure:
    """Absolute error against the true value: mean with its error, median, the middle 68%; and what to beat.

    rows: of `by_bin`. guess: the value that a constant guess would give to every image.
    """
    figure = new_figure(COLUMN_INCHES, 3.3)
    axes = figure.subplots()
    filled = [row for row in rows if row["n"] > 0]
    if not filled:
        note(axes, "no test image has a true value")
        return figure
    edges = np.array([row["low"] for row in rows] + [rows[-1]["high"]])
    bins = members(scores.truth, edges)
    chosen = [index for index, row in enumerate(rows) if row["n"] > 0]
    middle = np.array([0.5 * (row["low"] + row["high"]) for row in filled])
    error = np.abs(scores.error)
    q16, q50, q84 = np.array([np.quantile(error[bins == index], [0.16, 0.5, 0.84]) for index in chosen]).T
    axes.fill_between(middle, q16, q84, color=SKY, alpha=0.35, linewidth=0, label="68% of images")
    axes.plot(middle, q50, color=BLUE, label="median")
    mae = np.array([row["mae_dex"] for row in filled])
    errors = np.array([row["mae_dex_se"] or 0.0 for row in filled])
    axes.errorbar(
        middle, mae, yerr=errors, fmt="o", color=BLACK, markersize=3, elinewidth=0.9, capsize=1.5,
        label="mean (MAE)",
    )  # fmt: skip
    _floor_points(axes, rows)
    if guess is not None:
        constant = [np.mean(np.abs(scores.truth[bins == index] - guess)) for index in chosen]
        axes.plot(middle, constant, color=GREY, linestyle=":", label="constant guess")
    if comparison.comparable and comparison.best is not None:
        axes.axhline(
            comparison.best.mae_dex, color=VERMILLION, linestyle="--", linewidth=1.1,
            label=f"best published MAE, all masses\n({comparison.best.name})",
        )  # fmt: skip
    axes.set_yscale("log")
    _plain_decades(axes)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel(axis_label(target, "true"))
    axes.set_ylabel(with_unit("absolute error", target))
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _floor_points(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Errors of exact posteriors in the same bins, where they were computed."""
    known = [row for row in rows if row.get("floor_mae_dex") is not None]
    if known:
        axes.errorbar(
            [0.5 * (row["low"] + row["high"]) for row in known],
            [row["floor_mae_dex"] for row in known],
            yerr=[min(row["floor_mae_dex_se"] or 0.0, 0.9 * row["floor_mae_dex"]) for row in known],
            fmt="s-", color=GREEN, markersize=3, linewidth=1.0, elinewidth=0.9, capsize=1.5,
            label="information floor\n(MAE of exact posteriors)",
        )  # fmt: skip


def _plain_decades(axes: Axes) -> None:
    """Ticks of a logarithmic axis as 0.01, 0.1, 1 instead of powers of ten."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
