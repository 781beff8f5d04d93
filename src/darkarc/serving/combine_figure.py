"""How the mass of one particle tightens with the number of lenses."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from darkarc.evaluation.style import BLACK, BLUE, PAGE_INCHES, SKY, axis_label, new_figure, style, to_png
from darkarc.evaluation.zoom import set_shown_range, whole_numbers
from darkarc.models import Population, Posterior

SHOWN = 60
"""Single lenses drawn behind the joint posterior."""


def combine_figure(lenses: Posterior, found: Mapping[int, Population]) -> bytes:
    """PNG: intervals against the number of lenses, and the joint density over those of single lenses."""
    with style():
        return to_png(_draw(lenses, found))


def _draw(lenses: Posterior, found: Mapping[int, Population]) -> Figure:
    figure = new_figure(PAGE_INCHES, 2.9)
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.1, 1]})
    number = np.array(list(found))
    joint = [one.posterior for one in found.values()]
    for level, alpha in ((0.95, 0.3), (0.68, 0.6)):
        low, high = np.array([posterior.interval(level)[0] for posterior in joint]).T
        left.fill_between(number, low, high, color=SKY, alpha=alpha, linewidth=0, label=f"{100 * level:.0f}%")
    left.plot(number, [p.median[0] for p in joint], "o-", color=BLUE, markersize=3, label="median")
    left.set_xscale("log")
    left.set_xlabel("lenses, in the order given")
    left.set_ylabel(axis_label(lenses.target))
    whole_numbers(left.yaxis)
    left.legend(ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    shown = np.unique(np.linspace(0, len(lenses) - 1, min(SHOWN, len(lenses))).round().astype(int))
    for density in lenses.density[shown]:
        right.plot(lenses.centres, density / density.max(), color=SKY, linewidth=0.5, alpha=0.5)
    last = joint[-1].density[0]
    right.plot(joint[-1].centres, last / last.max(), color=BLACK, label=f"all {number[-1]} lenses")
    right.plot([], [], color=SKY, linewidth=0.8, label="single lenses")
    set_shown_range(right, joint[-1])
    right.set_ylabel("density / its maximum")
    right.set_ylim(0, 1.05)
    right.legend(ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    return figure
