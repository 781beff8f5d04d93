"""What a regressor's errors on lenses of one mass have in common, and what that does to a population.

Each posterior may be calibrated by itself and the product of N still be too sure: a part of the errors is
the same for all lenses of that mass (the network reads this mass a little high), and does not average out.
If a share rho of the variance is common, the mean of N errors has the variance (1 + (N - 1) rho) / N and
not 1 / N, which multiplying the joint log-likelihood by 1 / (1 + (N - 1) rho) allows for (the design
effect of cluster sampling, Kish 1965; a fractional posterior). N = 1 stays as it is.

rho is fitted on the calibration split: lenses of nearly one mass make populations, each lens's likelihood
shifted by the little that its mass differs, and rho is what makes the true masses most probable.
"""

import numpy as np
from numpy.typing import NDArray

from darkarc.models.posterior import Posterior

Floats = NDArray[np.float64]

KEY = "population"
"""Entry of a regressor's statistics that holds what is known about its populations."""
SIZES = (3, 10, 30, 100)
POPULATIONS = 100
"""Of each size."""
WINDOW_DEX = 0.15
"""Lenses of one population differ from its mass by this at most."""
CHOICE = 1.5
"""A population is drawn from so many times its number of lenses, those nearest to its mass."""
LEAST_IMAGES = 200
GRID = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 81)])


def fit_correlation(posterior: Posterior, truth: Floats, seed: int) -> float | None:
    """rho from N calibration images with their true values; None if they are too few.

    Maximises the summed log-probability of the true masses of populations of `SIZES`.
    """
    if len(truth) < LEAST_IMAGES:
        return None
    rng = np.random.default_rng(seed)
    with np.errstate(divide="ignore"):
        logarithm = np.log(posterior.density)
    logarithm = np.maximum(logarithm, -60.0)
    total = np.zeros(len(GRID))
    for size in SIZES:
        for _ in range(POPULATIONS):
            mass = rng.uniform(posterior.edges[0], posterior.edges[-1])
            away = np.abs(truth - mass)
            near = np.argsort(away, kind="stable")[: round(CHOICE * size)]
            near = near[away[near] < WINDOW_DEX]
            if len(near) < size:
                continue
            chosen = rng.choice(near, size, replace=False)
            summed = _aligned_sum(posterior.centres, logarithm[chosen], truth[chosen] - mass)
            total += _log_probability(posterior, summed, size, mass)
    return float(GRID[total.argmax()])


def _aligned_sum(centres: Floats, logarithm: Floats, shift: Floats) -> Floats:
    """(K,) sum of log-likelihoods (N, K), each moved by how much its lens is heavier than the population."""
    return np.sum(
        [np.interp(centres + d, centres, row) for d, row in zip(shift, logarithm, strict=True)], axis=0
    )


def _log_probability(posterior: Posterior, summed: Floats, size: int, mass: float) -> Floats:
    """(G,) log-density of the joint posterior at the true mass, for each correlation of the grid."""
    power = 1 / (1 + (size - 1) * GRID)
    joint = power[:, None] * (summed - summed.max())
    weight = np.exp(joint) * posterior.widths
    k = int(np.clip(np.searchsorted(posterior.edges, mass, side="right") - 1, 0, len(summed) - 1))
    result: Floats = joint[:, k] - np.log(weight.sum(axis=1))
    return result
