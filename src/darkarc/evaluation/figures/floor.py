"""The information floor against the mass: exact posteriors, and the Cramer-Rao bound."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from darkarc.evaluation.metrics import Scores
from darkarc.evaluation.style import (
    BLACK,
    BLUE,
    COLUMN_INCHES,
    GREY,
    SKY,
    VERMILLION,
    axis_label,
    new_figure,
)

Floats = NDArray[np.float64]

PRIOR_SIGMA_SHARE = 1 / np.sqrt(12)


def floor_figure(
    target: str,
    scores: Scores,
    prior: tuple[float, float],
    bound_mass: Floats,
    bound_sigma: tuple[Floats, Floats, Floats],
) -> Figure:
    """Width and error of exact posteriors against the true mass, and the Cramer-Rao bound.

    bound_sigma: its 16, 50 and 84% quantiles over scenes at the masses `bound_mass`.
    """
    figure = new_figure(COLUMN_INCHES, 3.3)
    axes = figure.subplots()
    low, middle, high = bound_sigma
    axes.fill_between(bound_mass, low, high, color=SKY, alpha=0.35, linewidth=0)
    axes.plot(bound_mass, middle, color=BLUE, label="Cramér–Rao bound on σ (68% of scenes)")
    axes.scatter(
        scores.truth, scores.std, s=9, color=BLACK, linewidths=0, zorder=3, label="σ of an exact posterior"
    )
    axes.scatter(
        scores.truth, np.maximum(np.abs(scores.error), 1e-5), s=9, marker="x", linewidths=0.7,
        color=VERMILLION, zorder=2, label="its error |median − truth|",
    )  # fmt: skip
    width = prior[1] - prior[0]
    axes.axhline(width * PRIOR_SIGMA_SHARE, color=GREY, linestyle=":", label="σ of the prior")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    smallest = min(float(low.min()), float(scores.std.min()) if len(scores) else 1.0)
    axes.set_ylim(0.3 * smallest, 2 * width)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlim(*prior)
    axes.set_xlabel(axis_label(target, "true"))
    axes.set_ylabel("dex")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    return figure
