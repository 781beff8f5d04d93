"""What is drawn of posteriors that would be a line on the axis of their prior."""

import math

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator

from darkarc.evaluation.style import axis_label
from darkarc.models.posterior import Posterior

NARROW = 0.02
"""A 90% interval narrower than this share of the prior is drawn enlarged."""


def shown_range(posterior: Posterior, truth: float | None = None) -> tuple[float, float]:
    """What is drawn of a posterior of length 1: all of the prior, or the surroundings of one
    that would be a line in it, with the true value where that is known."""
    first, last = float(posterior.edges[0]), float(posterior.edges[-1])
    low, high = posterior.interval(0.90)[0]
    if high - low > NARROW * (last - first):
        return first, last
    margin, middle = 6 * (high - low), float(posterior.median[0])
    least, most = (middle, middle) if truth is None else (min(middle, truth), max(middle, truth))
    return max(first, least - margin), min(last, most + margin)


def set_shown_range(axes: Axes, posterior: Posterior) -> None:
    """The x axis of a figure of a posterior of length 1: its range, and what it is."""
    shown = shown_range(posterior)
    first, last = posterior.edges[0], posterior.edges[-1]
    axes.set_xlim(*shown)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    whole_numbers(axes.xaxis)
    prior = f"{first:g} to {last:g}".replace("-", "\u2212")
    axes.set_xlabel(axis_label(posterior.target) + ("" if shown == (first, last) else f"   (prior: {prior})"))


def whole_numbers(axis: Axis) -> None:
    """Ticks with all of their digits, none as an offset beside the axis."""
    axis.get_major_formatter().set_useOffset(False)  # type: ignore[attr-defined]  # a ScalarFormatter


def significant_digits(width: float) -> int:
    """Decimals that show two digits of an interval's width; two at least."""
    return max(2, 1 - math.floor(math.log10(max(width, 1e-9))))
