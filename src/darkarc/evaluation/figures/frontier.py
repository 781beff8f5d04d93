"""Error against cost: which variants of a benchmark nothing else beats in both."""

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from darkarc.config import with_unit
from darkarc.evaluation.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PAGE_INCHES,
    PALE,
    PURPLE,
    SKY,
    VERMILLION,
    new_figure,
)

if TYPE_CHECKING:
    from darkarc.evaluation.benchmark import Table

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
LABELS = {
    "million_parameters": "parameters (million)",
    "epoch_seconds": "an epoch (s)",
    "train_seconds": "training (s)",
}
LINE_INCHES = 0.135


def frontier_figure(table: "Table") -> Figure:
    """Mean error with its standard deviation over seeds against mean cost, and the Pareto front.

    Variants have the colour of their choice on the last axis; names stand beside, the least error lowest.
    """
    rows = table.measured
    height = max(3.2, LINE_INCHES * len(rows) + 1.0)
    figure = new_figure(PAGE_INCHES, height)
    axes = figure.subplots()
    cost = np.array([row.mean(table.cost) for row in rows])
    error = np.array([row.mean("val_mae_dex") for row in rows])
    spread = np.nan_to_num(np.array([row.spread("val_mae_dex") for row in rows]))
    choices = list(dict.fromkeys(_last(row.variant) for row in rows))
    colours = [COLOURS[choices.index(_last(row.variant)) % len(COLOURS)] for row in rows]
    front = table.front()
    axes.plot(
        [row.mean(table.cost) for row in front],
        [row.mean("val_mae_dex") for row in front],
        drawstyle="steps-post", color=PALE, linewidth=4, zorder=1, label="Pareto front",
    )  # fmt: skip
    for x, y, dy, colour in zip(cost, error, spread, colours, strict=True):
        axes.errorbar([x], [y], [dy], fmt="o", color=colour, markersize=4, elinewidth=1, capsize=2, zorder=3)
    if cost.min() > 0 and cost.max() > 3 * cost.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = float((error - spread).min()), float((error + spread).max())
    if low > 0 and high > 3 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        margin = 0.08 * (high - low) or 0.1 * high
        axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel(LABELS[table.cost])
    axes.set_ylabel(with_unit("validation MAE", table.target))
    axes.set_title(f"{table.name}, {table.budget} a run")
    to_fraction = axes.transData + axes.transAxes.inverted()
    heights = [float(to_fraction.transform((x, y))[1]) for x, y in zip(cost, error, strict=True)]
    gap = LINE_INCHES / (height - 1.0)
    places = spaced(heights, gap)
    for row, x, y, place, colour in zip(rows, cost, error, places, colours, strict=True):
        axes.annotate(
            f"{row.label}  {y:.3f}",
            xy=(x, y), xytext=(1.03, place), textcoords="axes fraction", va="center", annotation_clip=False,
            fontsize=7, color=colour, fontweight="bold" if row in front else "normal",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.3, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip
    axes.legend(loc="upper left")
    return figure


def spaced(heights: list[float], gap: float) -> list[float]:
    """The heights in [0, 1], moved as little as needed to be at least `gap` apart, in the same order."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    gap = min(gap, 1 / max(1, len(heights) - 1))
    placed = [0.0] * len(heights)
    lowest = -math.inf
    for index in order:
        placed[index] = lowest = max(heights[index], lowest + gap, 0.0)
    highest = math.inf
    for index in reversed(order):
        placed[index] = highest = min(placed[index], highest - gap, 1.0)
    return placed


def _last(variant: dict[str, str]) -> str:
    return list(variant.values())[-1]
