"""The log-evidence along the mass, and the density that it makes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import logsumexp

from darkarc.evaluation.floor.nuisance import LIKELY

Floats = NDArray[np.float64]

POINTS = 4
"""Cells a row of the lattice, or a bin if that is narrower, over which the density is summed."""


@dataclass(frozen=True, eq=False)
class MassCurve:
    """Log-evidence (R,), up to a constant, of lattice rows: log10 masses (R,), rising, their spacing."""

    log10_mass_ev: Floats
    value: Floats
    spacing: float
    rows: NDArray[np.int64]


def bin_density(curve: MassCurve, edges: Floats) -> Floats:
    """(K,) density of a posterior in bins: its logarithm between rows by a cubic spline, summed over cells.

    The cells are narrower than the rows and the bins, so that a posterior within one bin is where it is.
    A row after the last one is improbable, and the logarithm falls to that in a straight line.
    """
    gaps = np.flatnonzero(np.diff(curve.log10_mass_ev) > 1.5 * curve.spacing) + 1
    step = min(curve.spacing, float(np.diff(edges).min())) / POINTS
    floor = float(curve.value.max()) - LIKELY
    ends, logarithm = [], []
    for part in np.split(np.arange(len(curve.value)), gaps):
        x, y = curve.log10_mass_ev[part], curve.value[part]
        low, high = max(x[0] - curve.spacing, edges[0]), min(x[-1] + curve.spacing, edges[-1])
        cells = np.linspace(low, high, max(1, round((high - low) / step)) + 1)
        points = 0.5 * (cells[:-1] + cells[1:])
        beyond = np.array([x[0] - curve.spacing, *x, x[-1] + curve.spacing])
        value = np.interp(points, beyond, np.array([floor, *y, floor]))
        inside = (points >= x[0]) & (points <= x[-1])
        if len(part) >= 4:
            value[inside] = CubicSpline(x, y)(points[inside])
        ends.append(cells)
        logarithm.append(np.concatenate([[-np.inf], value + np.log(np.diff(cells))]))
    total = np.concatenate(logarithm)
    cumulative = np.cumsum(np.exp(total - logsumexp(total)))
    probability = np.diff(
        np.interp(edges, np.concatenate(ends), cumulative / cumulative[-1], left=0, right=1)
    )
    density: Floats = probability / np.diff(edges)
    return density


def quantiles(curve: MassCurve, levels: tuple[float, ...] = (0.16, 0.5, 0.84)) -> Floats:
    """log10 masses below which so much of the posterior lies, one a level."""
    low, high = curve.log10_mass_ev[[0, -1]] + curve.spacing * np.array([-1.0, 1.0])
    edges = np.linspace(low, high, 8 * round((high - low) / curve.spacing) + 1)
    cumulative = np.concatenate([[0.0], np.cumsum(bin_density(curve, edges) * np.diff(edges))])
    return np.interp(levels, cumulative, edges)
