"""What a regressor's errors on lenses of one mass have in common, and what that does to a population.

Each posterior may be calibrated by itself and the product of N still be too sure: a part of the errors is
the same for all lenses of that mass (the network reads this mass a little high), and does not average out.
Two things are learnt from lenses that training never saw, and stored in the regressor:

- Where the product of ever more lenses of mass m would end: at the top g(m) of their mean log-likelihood,
  the pseudo-true value of a misspecified model (White 1982, Econometrica 50, 1). A population's likelihood is
  read at g(m) instead of m; for N lenses at m + (1 - 1/N)(g(m) - m), so that one lens stays as it is.
- What is common beyond that. If a share rho of the variance is, the mean of N errors has the variance
  (1 + (N - 1) rho) / N and not 1 / N, which multiplying the joint log-likelihood by 1 / (1 + (N - 1) rho)
  allows for (the design effect of cluster sampling, Kish 1965; a fractional posterior).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darkarc.models.posterior import Posterior

Floats = NDArray[np.float64]

KEY = "population"
"""Entry of a regressor's statistics that holds what is known about its populations."""
SIZES = (3, 10, 30, 100)
POPULATIONS = 100
"""Of each size, in all."""
WINDOW_DEX = 0.15
"""Lenses of one population differ from its mass by this at most, where their masses differ at all."""
CHOICE = 1.5
"""A population is drawn from so many times its number of lenses, those nearest to its mass."""
LEAST_IMAGES = 200
LEAST_LOGARITHM = -60.0
GRID = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 81)])


@dataclass(frozen=True)
class PopulationErrors:
    """correlation: rho. mass, read_as: the masses m and the g(m) that their lenses' product would end at."""

    correlation: float = 0.0
    mass: tuple[float, ...] = ()
    read_as: tuple[float, ...] = ()

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> "PopulationErrors":
        """From the entry of a regressor's statistics; what it does not hold is not corrected."""
        return cls(
            float(known.get("correlation", 0.0)),
            tuple(float(m) for m in known.get("mass", ())),
            tuple(float(m) for m in known.get("read_as", ())),
        )

    def power(self, n: int) -> float:
        """What the log-likelihood of n lenses is multiplied by."""
        return 1 / (1 + (n - 1) * self.correlation)

    def read(self, centres: Floats, logarithm: Floats, n: int) -> Floats:
        """Log-likelihoods (..., K) at the bins' centres, read where n lenses of that mass would have them."""
        if not self.mass or n < 2:
            return logarithm
        shift = np.interp(centres, self.mass, np.subtract(self.read_as, self.mass))
        place = np.interp(centres + (1 - 1 / n) * shift, centres, np.arange(len(centres)))
        k = np.minimum(place.astype(np.intp), len(centres) - 2)
        share = place - k
        finite = np.maximum(logarithm, LEAST_LOGARITHM)
        return (1 - share) * finite[..., k] + share * finite[..., k + 1]


def fit_read_as(pools: Sequence[Posterior]) -> list[float]:
    """g(m) of each pool of lenses of one mass: the top of the mean of their log-densities."""
    tops = []
    for pool in pools:
        mean = _logarithm(pool).mean(axis=0)
        k = int(mean.argmax())
        centres, width = pool.centres, float(pool.widths[k])
        top = float(centres[k])
        if 0 < k < len(mean) - 1:
            left, middle, right = mean[k - 1 : k + 2]
            top += 0.5 * width * float((left - right) / (left - 2 * middle + right))
        tops.append(top)
    # Populations of different masses are to stay in order.
    return [float(top) for top in np.maximum.accumulate(tops)]


def fit_correlation_of_pools(
    pools: Sequence[Posterior], masses: Floats, errors: PopulationErrors, seed: int
) -> float:
    """rho from pools of lenses, each of one mass: it makes the true masses of populations most probable."""
    rng = np.random.default_rng(seed)
    logarithms = [_logarithm(pool) for pool in pools]

    def draw(size: int) -> tuple[Floats, float] | None:
        k = int(rng.integers(len(pools)))
        if len(pools[k]) < size:
            return None
        chosen = rng.choice(len(pools[k]), size, replace=False)
        summed = logarithms[k][chosen].sum(axis=0)
        return errors.read(pools[k].centres, summed / size, size) * size, float(masses[k])

    return _most_probable(pools[0], draw)


def fit_correlation(posterior: Posterior, truth: Floats, seed: int) -> float | None:
    """rho from N calibration images with their true values; None if they are too few.

    Populations are lenses of nearly one mass, each lens's likelihood shifted by the little that its mass
    differs. A bias that changes within that little is averaged out and missed: pools are better.
    """
    if len(truth) < LEAST_IMAGES:
        return None
    rng = np.random.default_rng(seed)
    logarithm, centres = _logarithm(posterior), posterior.centres

    def draw(size: int) -> tuple[Floats, float] | None:
        mass = rng.uniform(posterior.edges[0], posterior.edges[-1])
        away = np.abs(truth - mass)
        near = np.argsort(away, kind="stable")[: round(CHOICE * size)]
        near = near[away[near] < WINDOW_DEX]
        if len(near) < size:
            return None
        chosen = rng.choice(near, size, replace=False)
        moved = [np.interp(centres + truth[i] - mass, centres, logarithm[i]) for i in chosen]
        return np.sum(moved, axis=0), float(mass)

    return _most_probable(posterior, draw)


def _logarithm(posterior: Posterior) -> Floats:
    with np.errstate(divide="ignore"):
        result: Floats = np.maximum(np.log(posterior.density), LEAST_LOGARITHM)
    return result


def _most_probable(grid: Posterior, draw: Callable[[int], tuple[Floats, float] | None]) -> float:
    """The correlation that maximises the summed log-density of the true masses of drawn populations."""
    total = np.zeros(len(GRID))
    for size in SIZES:
        for _ in range(POPULATIONS):
            drawn = draw(size)
            if drawn is not None:
                total += _log_probability(grid, drawn[0], size, drawn[1])
    return float(GRID[total.argmax()])


def _log_probability(grid: Posterior, summed: Floats, size: int, mass: float) -> Floats:
    """(G,) log-density of the joint posterior at the true mass, for each correlation of the grid."""
    power = 1 / (1 + (size - 1) * GRID)
    joint = power[:, None] * (summed - summed.max())
    weight = np.exp(joint) * grid.widths
    k = int(np.clip(np.searchsorted(grid.edges, mass, side="right") - 1, 0, len(summed) - 1))
    result: Floats = joint[:, k] - np.log(weight.sum(axis=1))
    return result
