"""What a regressor's errors on lenses of one mass have in common, and what that does to a population.

Each posterior may be calibrated by itself and the product of N still be too sure: a part of the errors is
the same for all lenses of that mass (the network reads this mass a little high), and does not average out.
If a share rho of the variance is common, the mean of N errors has the variance (1 + (N - 1) rho) / N and not
1 / N, which multiplying the joint log-likelihood by 1 / (1 + (N - 1) rho) allows for (the design effect of
cluster sampling, Kish 1965; a fractional posterior). rho is learnt from lenses that training never saw, and
stored in the regressor. At one mass what is common is a bias, a number that does not shrink with N; over
neighbouring masses it scatters, and rho(m) is by how much.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darkarc.models.finer_grid import refined, refinement
from darkarc.models.posterior import Posterior

Floats = NDArray[np.float64]

KEY = "population"
"""Entry of a regressor's statistics that holds what is known about its populations."""
SIZES = (3, 10, 30, 100)
POPULATIONS = 400
"""Of each size, in all."""
WINDOW_DEX = 0.15
"""Lenses of one population differ from its mass by this at most, where their masses differ at all."""
CHOICE = 1.5
"""A population is drawn from so many times its number of lenses, those nearest to its mass."""
FAR_OFF = 8.0
"""In the score of a correlation a truth is never further out than where the density is exp(-8) of its maximum
(four standard deviations): the few masses with the worst bias do not widen the answers at all others."""
LEAST_IMAGES = 200
LEAST_LOGARITHM = -60.0
GRID = np.concatenate([[0.0], np.geomspace(1e-4, 20.0, 40)])
NEIGHBOURS_DEX = 0.3
"""Pools count for rho(m) with weights that fall to nothing at this distance from m."""
BELIEF = 2.0
"""Pools' worth of belief, at every mass, that rho is the common one."""


@dataclass(frozen=True)
class PopulationErrors:
    """What lenses of one mass have in common.

    correlation: rho, one for all masses. correlation_mass (M,), correlation_size (S,), correlation_at (M
    rows of S): masses, numbers of lenses and rho there; where they are given they count and `correlation`
    does not.
    """

    correlation: float = 0.0
    correlation_mass: tuple[float, ...] = ()
    correlation_size: tuple[float, ...] = ()
    correlation_at: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> "PopulationErrors":
        """From the entry of a regressor's statistics; what it does not hold is not corrected."""
        return cls(
            float(known.get("correlation", 0.0)),
            tuple(float(m) for m in known.get("correlation_mass", ())),
            tuple(float(n) for n in known.get("correlation_size", ())),
            tuple(tuple(float(rho) for rho in row) for row in known.get("correlation_at", ())),
        )

    def correlations(self, n: int, mass: Floats) -> Floats:
        """rho (K,) of n lenses at masses (K,).

        Interpolated along the mass and the logarithm of n; beyond the ends as there.
        """
        if not self.correlation_mass:
            return np.full(len(mass), self.correlation)
        sizes = np.log(self.correlation_size)
        of_n = [np.interp(np.log(n), sizes, row) for row in self.correlation_at]
        return np.interp(mass, self.correlation_mass, of_n)

    def power(self, n: int, mass: Floats) -> Floats:
        """(K,) what the log-likelihood of n lenses is multiplied by at masses (K,)."""
        return 1 / (1 + (n - 1) * self.correlations(n, mass))


def fit_correlations_of_pools(pools: Sequence[Posterior], masses: Floats, seed: int) -> PopulationErrors:
    """rho for all together, and rho at `masses` for each of `SIZES`, from pools of lenses of one mass each.

    rho(m) of N lenses makes the true masses of populations of N at m and its neighbours most probable. It
    depends on N where lenses differ: the more there are, the more the sharpest of them decide, whose common
    error is the larger part of theirs. It is never taken for less than the pools could tell from nothing: n
    lenses know their bias to a variance of 1/n, in units of a lens's own, and k such numbers know a variance
    to sqrt(2/k) of it.
    """
    scores = _scores_of_pools(pools, masses, seed)
    sizes = [size for size in SIZES if size <= min(len(pool) for pool in pools)]
    common = GRID[scores.sum(axis=0).argmax(axis=1)][: len(sizes)]
    found = []
    for mass in masses:
        weight = np.maximum(1 - np.abs(masses - mass) / NEIGHBOURS_DEX, 0)
        alike = weight.sum() ** 2 / np.sum(weight**2)
        lenses = min(len(pool) for pool, one in zip(pools, weight > 0, strict=True) if one)
        least = np.sqrt(2 / (alike + BELIEF)) / lenses
        here = GRID[np.tensordot(weight, scores, 1).argmax(axis=1)][: len(sizes)]
        # Drawn together as logarithms: one pool far off would else decide for all.
        logarithm = alike * np.log(np.maximum(here, least)) + BELIEF * np.log(np.maximum(common, least))
        found.append(tuple(float(rho) for rho in np.exp(logarithm / (alike + BELIEF))))
    together = float(GRID[scores.sum(axis=(0, 1)).argmax()])
    return PopulationErrors(
        correlation=together,
        correlation_mass=tuple(float(mass) for mass in masses),
        correlation_size=tuple(float(size) for size in sizes),
        correlation_at=tuple(found),
    )


def _scores_of_pools(pools: Sequence[Posterior], masses: Floats, seed: int) -> Floats:
    """(M, S, G) log-density of a pool's mass in joint posteriors of its lenses, for each correlation.

    The mean over populations of each of `SIZES`; nought for those that a pool is too small for.
    """
    rng = np.random.default_rng(seed)
    drawn = -(-POPULATIONS // len(pools))
    scores = np.zeros((len(pools), len(SIZES), len(GRID)))
    for row, (pool, mass) in enumerate(zip(pools, masses, strict=True)):
        logarithm = _logarithm(pool)
        for column, size in enumerate(SIZES):
            if size > len(pool):
                continue
            for _ in range(drawn):
                chosen = logarithm[rng.choice(len(pool), size, replace=False)]
                scores[row, column] += _log_probability(pool.edges, chosen, float(mass)) / drawn
    return scores


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
        return np.stack(moved), float(mass)

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
                total += _log_probability(grid.edges, *drawn)
    return float(GRID[total.argmax()])


def _log_probability(edges: Floats, logarithms: Floats, mass: float) -> Floats:
    """(G,) log-density at the true mass of the joint posterior of lenses (N, K), for each correlation."""
    summed = logarithms.sum(axis=0)
    power = 1 / (1 + (len(logarithms) - 1) * GRID)
    factor = refinement(edges, summed[None], logarithms)
    fine, joint = refined(edges, power[:, None] * (summed - summed.max()), factor)
    k = int(np.clip(np.searchsorted(fine, mass, side="right") - 1, 0, joint.shape[1] - 1))
    result: Floats = np.maximum(joint[:, k], -FAR_OFF) - np.log(np.exp(joint) @ np.diff(fine))
    return result
