"""What makes an answer doubtful: images unlike the training's, and posteriors that are only a limit.

An image is held against the statistics of the training images, which travel with every regressor
(`statistics.json`, entry `reference`), and its answer's novelty (`darkarc.models.novelty`) against that of
the calibration images. A little outside, the answer is given with a flag; far outside it is withheld, because
a network extrapolates with confidence and without reason.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darkarc.data.quality import RULES, SHARES, STATISTICS, broken_rules, image_statistics
from darkarc.models.novelty import RARE, VERY_RARE
from darkarc.models.posterior import Posterior

OUTSIDE = 0.5
"""Excess from which an image is flagged. The excess is the way beyond the 0.1 or 99.9 % quantile of the
training images, in units of the way from their median to the 1 or 99 % quantile: for a normal
distribution 0.5 lies 4.3 standard deviations out."""

FAR_OUTSIDE = 3.0
"""Excess from which no answer is given (10 standard deviations of a normal distribution)."""

NARROWEST = 1e-3
"""A statistic that (almost) never varies in training is given this relative width."""

FEWEST_PIXELS = 5
"""Statistics that are shares of the pixels are given the width of this many pixels."""

MOST_NAMED = 3
"""Statistics named in one flag; the others follow from these."""

LEAST_REACH = 0.135
"""A posterior whose 5% quantile lies so much nearer to the end of the prior than its median, as a share, is a
limit: so it is for a Gaussian, cut off there, whose mean is one standard deviation from the end. A flat one
has 0.1. It asks for no density at the end, which has none where a posterior is narrower than a bin."""


class FlagError(ValueError):
    """A regressor without the statistics that its images are to be held against."""


@dataclass(frozen=True)
class Verdict:
    """On one image: what to say of it ("" is nothing), and whether the numbers are withheld."""

    flag: str = ""
    withheld: bool = False


@dataclass(frozen=True)
class Range:
    """Quantiles of one statistic in training, and its widths towards either side."""

    low: float
    high: float
    low_width: float
    high_width: float

    def excess(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far beyond the range, in widths; 0 within."""
        below, above = (self.low - values) / self.low_width, (values - self.high) / self.high_width
        return np.maximum(np.maximum(below, above), 0.0)


class Reference:
    """The training images, as far as an image is held against them.

    statistics: content of `statistics.json`; shape: (H, W) of the training images.
    """

    def __init__(self, statistics: Mapping[str, Any], shape: tuple[int, int]) -> None:
        self.shape = shape
        try:
            reference = statistics["reference"]
            self.ranges = {name: _range(name, entry, shape) for name, entry in reference.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FlagError(
                "the regressor's statistics have no usable entry 'reference', so images unlike its training "
                f"cannot be told ({error!r}): train it on a store made by `darkarc prepare`"
            ) from error
        unknown = sorted(self.ranges.keys() - STATISTICS.keys())
        if unknown:
            raise FlagError(
                f"the regressor's images were measured by {', '.join(unknown)}, which this darkarc does not "
                "know: use the version that trained it, or train it again"
            )
        peak = self.ranges.get("peak")
        self.normalised_by_maximum = peak is not None and peak.low == 1.0 == peak.high

    def wrong_shape(self, shape: tuple[int, ...]) -> str:
        """The flag of an image that has not the training's shape, "" if it has."""
        if shape == self.shape:
            return ""
        found, expected = ("x".join(map(str, sides)) for sides in (shape, self.shape))
        return f"shape {found}, expected {expected}"

    def judge(self, images: NDArray[np.float32]) -> list[Verdict]:
        """Verdicts on images (N, H, W) of the training's shape."""
        if len(images) == 0:
            return []
        statistics = image_statistics(images)
        broken = broken_rules(statistics)
        names = list(self.ranges)
        excess = np.array([self.ranges[name].excess(statistics[name]) for name in names])  # (S, N)
        whole = (images == np.rint(images)).all(axis=(1, 2))
        scaled = (statistics["peak"] == 1.0) & ~whole & (not self.normalised_by_maximum)
        verdicts = []
        for row in range(len(images)):
            if broken[row]:
                verdicts.append(Verdict(RULES[str(broken[row])], withheld=True))
            elif scaled[row]:
                verdicts.append(Verdict("divided by its maximum (peak exactly 1)", withheld=True))
            else:
                values = {name: float(statistics[name][row]) for name in names}
                verdicts.append(self._against_ranges(values, excess[:, row], bool(whole[row])))
        return verdicts

    def _against_ranges(self, values: dict[str, float], excess: NDArray[np.float64], whole: bool) -> Verdict:
        names = list(values)
        worst = [k for k in np.argsort(-excess, kind="stable") if excess[k] > OUTSIDE]
        said = []
        for k in worst[:MOST_NAMED]:
            name, far = names[k], "far " if excess[k] > FAR_OUTSIDE else ""
            known = self.ranges[name]
            said.append(
                f"{name} {values[name]:.3g} {far}outside training range [{known.low:.3g}, {known.high:.3g}]"
            )
        if whole and "zero" in [names[k] for k in worst]:
            said.insert(0, "cast to integers?")
        return Verdict("; ".join(said), withheld=bool(worst) and bool(excess[worst[0]] > FAR_OUTSIDE))


def _range(name: str, entry: Mapping[str, float], shape: tuple[int, int]) -> Range:
    q001, q01, q50, q99, q999 = (float(entry[key]) for key in ("q001", "q01", "q50", "q99", "q999"))
    if not (np.isfinite([q001, q999]).all() and q001 <= q01 <= q50 <= q99 <= q999):
        raise ValueError(f"{name}: quantiles do not rise: {dict(entry)}")
    narrowest = NARROWEST * max(abs(q01), abs(q99), 1e-12)
    if name in SHARES:
        narrowest = FEWEST_PIXELS / (shape[0] * shape[1])
    return Range(q001, q999, max(q50 - q01, narrowest), max(q99 - q50, narrowest))


def unlikeness(posterior: Posterior) -> list[Verdict]:
    """For each image the verdict on its novelty; nothing is said if the regressor does not give one."""
    if posterior.novelty is None:
        return [Verdict()] * len(posterior)
    return [_unlikeness(float(value)) for value in posterior.novelty]


def _unlikeness(novelty: float) -> Verdict:
    if not novelty <= VERY_RARE:  # nan, too
        return Verdict(f"unlike the training images (novelty {novelty:.1f}, limit {VERY_RARE:g})", True)
    if novelty > RARE:
        return Verdict(f"unusual image (novelty {novelty:.1f}: 1 in {10**novelty:.0f} is as strange)")
    return Verdict()


def limits(posterior: Posterior) -> list[str]:
    """For each image the flag of a posterior that leans on an end of the prior, "" where it does not.

    Beyond some mass every image looks the same: the posterior is then flat up to the end of the prior, and
    its median says more about the prior than about the lens.
    """
    edges = posterior.edges
    low, median, high = posterior.quantile([0.05, 0.5, 0.95]).T
    at_low = low - edges[0] < LEAST_REACH * (median - edges[0])
    at_high = edges[-1] - high < LEAST_REACH * (edges[-1] - median)
    said = []
    for row in range(len(posterior)):
        if at_low[row] and at_high[row]:
            said.append(f"no constraint: as wide as the prior [{edges[0]:g}, {edges[-1]:g}]")
        elif at_high[row]:
            said.append(f"lower limit: above {_told(low[row], edges[-1])} at 95%")
        elif at_low[row]:
            said.append(f"upper limit: below {_told(high[row], edges[0])} at 95%")
        else:
            said.append("")
    return said


def _told(limit: float, end: float) -> str:
    """With two digits behind the point, and more where they would make it the end of the prior."""
    apart = max(abs(limit - end), 1e-9)
    return f"{limit:.{max(2, 1 + math.ceil(-math.log10(apart)))}f}"
