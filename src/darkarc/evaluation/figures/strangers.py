"""Strange images: what they look like, how novel they are found, what would have been said of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from darkarc.evaluation.style import BLACK, BLUE, GREY, PAGE_INCHES, SKY, VERMILLION, new_figure
from darkarc.models.novelty import RARE, VERY_RARE

if TYPE_CHECKING:
    from darkarc.evaluation.ood import StrangeImages

ROW_INCHES = 0.42


def strangers_figure(measured: Sequence["StrangeImages"]) -> Figure:
    """A row a case: an example, the novelty of its images, the share of confident errors."""
    n = len(measured)
    figure = new_figure(PAGE_INCHES, ROW_INCHES * n + 0.9)
    grid = figure.add_gridspec(n, 3, width_ratios=(0.42, 3.2, 2.4))
    for row, item in enumerate(measured):
        axes = figure.add_subplot(grid[row, 0])
        low, high = np.quantile(item.example, [0.002, 0.998])
        axes.imshow(item.example, cmap="magma", origin="lower", vmin=low, vmax=max(high, low + 1e-12))
        axes.set_axis_off()
    _novelty_panel(figure.add_subplot(grid[:, 1]), measured)
    _wrong_panel(figure.add_subplot(grid[:, 2]), measured)
    return figure


def _novelty_panel(axes: Axes, measured: Sequence["StrangeImages"]) -> None:
    """Median and the middle 90% of the novelty, on an axis that is linear to 4 and logarithmic beyond."""
    for row, item in enumerate(measured):
        low, middle, high = np.quantile(np.clip(item.novelty, 0, 1e9), [0.05, 0.5, 0.95])
        colour = BLACK if row == 0 else BLUE
        axes.plot([low, high], [row, row], color=colour, linewidth=3, alpha=0.35, solid_capstyle="butt")
        axes.plot([middle], [row], "o", color=colour, markersize=4.5)
    axes.set_xscale("symlog", linthresh=4, linscale=2)
    axes.axvline(RARE, color=GREY, linewidth=0.9, linestyle=":")
    axes.axvline(VERY_RARE, color=VERMILLION, linewidth=0.9, linestyle="--")
    axes.set_xlim(left=0)
    ticks = [0, 1, 2, 3, 10, 100, 1e4, 1e6]
    largest = max(float(np.quantile(np.clip(item.novelty, 0, 1e9), 0.95)) for item in measured)
    axes.set_xticks([tick for tick in ticks if tick <= max(largest, 3)])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    _rows(axes, measured)
    axes.set_yticklabels([str(item.row["case"]) for item in measured])
    axes.set_xlabel("novelty (flagged beyond 2, withheld beyond 3)")
    axes.set_title("Novelty, median and middle 90%")


def _wrong_panel(axes: Axes, measured: Sequence["StrangeImages"]) -> None:
    positions = np.arange(len(measured))
    before = np.array([100 * item.row["wrong_before"] for item in measured])
    after = np.array([100 * item.row["wrong_after"] for item in measured])
    axes.barh(positions - 0.19, before, height=0.36, color=SKY, label="all answers")
    axes.barh(positions + 0.19, after, height=0.36, color=VERMILLION, label="answers without a flag")
    for y, value in zip(positions, after, strict=True):
        axes.text(value + 1.5, y + 0.19, f"{value:.0f}", va="center", fontsize=6.5, color=VERMILLION)
    axes.set_xlim(0, 105)
    _rows(axes, measured)
    axes.set_yticklabels([])
    axes.set_xlabel("confident errors (% of images)")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=2, fontsize=6.5,
        handlelength=1, columnspacing=1, frameon=False,
    )  # fmt: skip


def _rows(axes: Axes, measured: Sequence["StrangeImages"]) -> None:
    axes.set_ylim(len(measured) - 0.5, -0.5)
    axes.set_yticks(range(len(measured)))
    axes.tick_params(axis="y", length=0)
