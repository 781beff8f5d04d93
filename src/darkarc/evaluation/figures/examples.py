"""Images that the regressor reads best and worst, each with its posterior."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from darkarc.evaluation.style import (
    BLUE,
    PAGE_INCHES,
    SKY,
    VERMILLION,
    axis_label,
    new_figure,
    note,
)
from darkarc.evaluation.zoom import shown_range, significant_digits
from darkarc.models.posterior import Posterior

Floats = NDArray[np.float64]

COLUMNS = 6


def examples_figure(
    target: str,
    best: tuple[NDArray[np.generic], Posterior, Floats],
    worst: tuple[NDArray[np.generic], Posterior, Floats],
) -> Figure:
    """Rows of images with their posteriors below: first the best, then the worst.

    best, worst: images (n, H, W), their posteriors and true values (n,), the most extreme first.
    """
    groups = [("Best: densest at the truth, one from each slice of the true values", *best)]
    groups.append(("Worst: thinnest at the truth", *worst))
    n_rows = [max(1, -(-len(truth) // COLUMNS)) for _, _, _, truth in groups]
    figure = new_figure(PAGE_INCHES, 2.5 * sum(n_rows))
    parts = figure.subfigures(2, 1, height_ratios=n_rows, squeeze=False)[:, 0]
    for part, (title, images, posterior, truth), rows in zip(parts, groups, n_rows, strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize=9)
        if len(truth) == 0:
            note(part.subplots(), "no test image has a true value")
            continue
        columns = min(COLUMNS, len(truth)) if rows == 1 else COLUMNS
        grid = part.subplots(2 * rows, COLUMNS, gridspec_kw={"height_ratios": [1.35, 1] * rows})
        for position in range(rows * COLUMNS):
            row, column = divmod(position, COLUMNS)
            above, below = grid[2 * row, column], grid[2 * row + 1, column]
            if position >= len(truth) or column >= columns:
                above.set_axis_off()
                below.set_axis_off()
                continue
            _image(above, images[position])
            _density(below, posterior, position, float(truth[position]))
        part.supxlabel(axis_label(target), fontsize=8.5)
    return figure


def _image(axes: Axes, image: NDArray[np.generic]) -> None:
    pixels = image.astype(np.float64)
    low, high = np.quantile(pixels, [0.002, 0.998])  # one hot pixel must not darken the arc
    axes.imshow(pixels, cmap="magma", origin="lower", interpolation="nearest", vmin=low, vmax=high)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _density(axes: Axes, posterior: Posterior, row: int, truth: float) -> None:
    """The posterior as a filled step, its 68% interval darker, the truth as a line."""
    edges, density, one = posterior.edges, posterior.density[row], posterior[row]
    axes.stairs(density, edges, color=BLUE, linewidth=0.9)
    axes.stairs(density, edges, color=SKY, fill=True, alpha=0.35, linewidth=0)
    low, high = one.interval(0.68)[0]
    inside = (edges[1:] > low) & (edges[:-1] < high)
    axes.stairs(np.where(inside, density, 0), edges, color=SKY, fill=True, alpha=0.9, linewidth=0)
    axes.axvline(truth, color=VERMILLION, linewidth=1.1)
    first, last = shown_range(one, truth)
    axes.set_xlim(first, last)
    axes.set_ylim(0, 1.08 * float(density.max()))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelsize=6.5, length=2)
    digits = significant_digits(high - low)
    if (first, last) == (edges[0], edges[-1]):
        axes.set_xticks([first, 0.5 * (first + last), last])
    else:
        ticks = [first + share * (last - first) for share in (0.2, 0.8)]
        axes.set_xticks(ticks, [f"{tick:.{digits}f}" for tick in ticks])
    off = abs(float(one.median[0]) - truth)
    axes.set_title(f"truth {truth:.{digits}f}\noff by {off:.2g}", fontsize=7, loc="center", pad=2)
