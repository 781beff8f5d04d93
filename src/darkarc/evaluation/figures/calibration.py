"""Is the stated uncertainty true? Coverage, probability integral transform, pulls."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from darkarc.evaluation.binning import members, tercile_edges
from darkarc.evaluation.metrics import LEVELS, Scores
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
    note,
)

Floats = NDArray[np.float64]

NOMINAL = np.linspace(0.02, 0.98, 49)
"""Levels at which the coverage curves are drawn."""

PIT_BINS = 20


def coverage_curve(pit: Floats, levels: Floats = NOMINAL) -> Floats:
    """(L,) share of truths inside the equal-tailed interval of each level."""
    depth = np.sort(2 * np.abs(pit - 0.5))
    return np.searchsorted(depth, levels, side="right") / len(depth)


def binomial_band(n: int, probability: Floats | float, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Shares between which a count of n independent images falls with this confidence."""
    from scipy.stats import binom

    low, high = binom.interval(confidence, n, probability)
    return np.asarray(low) / n, np.asarray(high) / n


def calibration_figure(scores: Scores, noun: str) -> Figure:
    """Three panels: coverage minus nominal, the PIT's histogram, the pulls'; `noun` names the target."""
    figure = new_figure(PAGE_INCHES, 2.75)
    left, middle, right = figure.subplots(1, 3)
    if len(scores) < 2:
        for axes in (left, middle, right):
            note(axes, "too few test images\nhave a true value")
        return figure
    _coverage_panel(left, scores, noun)
    _pit_panel(middle, scores.pit)
    _pull_panel(right, scores)
    return figure


def _coverage_panel(axes: Axes, scores: Scores, noun: str) -> None:
    low, high = binomial_band(len(scores), NOMINAL)
    percent = 100 * NOMINAL
    axes.fill_between(
        percent, 100 * (low - NOMINAL), 100 * (high - NOMINAL), color=PALE, linewidth=0, label="95% expected"
    )
    axes.axhline(0, color=GREY, linewidth=0.8)
    bins = members(scores.median, tercile_edges(scores.median))
    for index, (name, colour) in enumerate((("low", GREEN), ("middle", ORANGE), ("high", PURPLE))):
        pit = scores.pit[bins == index]
        if len(pit):
            axes.plot(
                percent,
                100 * (coverage_curve(pit) - NOMINAL),
                color=colour,
                linewidth=0.9,
                label=f"{name} third",
            )
    tarp = np.searchsorted(np.sort(scores.tarp), NOMINAL, side="right") / len(scores)
    axes.plot(percent, 100 * (tarp - NOMINAL), color=BLACK, linewidth=1.0, linestyle="--", label="TARP, all")
    axes.plot(percent, 100 * (coverage_curve(scores.pit) - NOMINAL), color=BLUE, linewidth=1.8, label="all")
    marks = np.array(LEVELS)
    axes.scatter(100 * marks, 100 * (coverage_curve(scores.pit, marks) - marks), s=14, color=BLUE, zorder=5)
    reach = max(abs(limit) for limit in axes.get_ylim())
    axes.set_ylim(-reach, 1.75 * reach)
    axes.set_xlim(0, 100)
    axes.set_xlabel("credible level (%)")
    axes.set_ylabel("coverage − level (points)")
    axes.set_title(f"Coverage, by predicted {noun}")
    axes.legend(loc="upper left", ncols=2, columnspacing=0.9, borderaxespad=0.1, handlelength=1.3)


def _pit_panel(axes: Axes, pit: Floats) -> None:
    low, high = binomial_band(len(pit), 1 / PIT_BINS)
    axes.axhspan(float(low) * PIT_BINS, float(high) * PIT_BINS, color=PALE, linewidth=0, label="95% expected")
    axes.hist(
        pit, bins=np.linspace(0, 1, PIT_BINS + 1).tolist(), density=True, histtype="stepfilled", color=SKY,
        edgecolor=BLUE, linewidth=0.9, alpha=0.75,
    )  # fmt: skip
    axes.axhline(1, color=BLACK, linewidth=0.9, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.set_xlabel("posterior probability below truth")
    axes.set_ylabel("density")
    axes.set_title("Probability integral transform")
    axes.legend(loc="upper right", borderaxespad=0.1)


def _pull_panel(axes: Axes, scores: Scores) -> None:
    bins = np.linspace(-4, 4, 33)
    free = scores.pull[~scores.prior_bound]
    if len(free) > 1:
        axes.hist(
            np.clip(free, -4, 4), bins=bins.tolist(), density=True, color=SKY, edgecolor=BLUE, linewidth=0.9,
            alpha=0.75, histtype="stepfilled",
            label=f"free of prior's ends\nmean {free.mean():+.2f}, std {free.std():.2f}",
        )  # fmt: skip
    pull = scores.pull
    axes.hist(
        np.clip(pull, -4, 4), bins=bins.tolist(), density=True, histtype="step", color=VERMILLION,
        linewidth=0.9, label=f"all\nmean {pull.mean():+.2f}, std {pull.std():.2f}",
    )  # fmt: skip
    x = np.linspace(-4, 4, 200)
    normal = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    axes.plot(x, normal, color=BLACK, linewidth=0.9, linestyle="--", label="unit normal")
    axes.set_xlim(-4, 4)
    axes.set_ylim(0, 1.75 * axes.get_ylim()[1])
    axes.set_xlabel("(truth − posterior mean) / std")
    axes.set_ylabel("density")
    axes.set_title("Pulls")
    axes.legend(loc="upper left", borderaxespad=0.1)
