"""A joint posterior on bins finer than those of the lenses' own posteriors.

A hundred lenses know their mass ten times better than one: the joint posterior may lie within a bin or two,
and an interval of whole bins says too much or too little. The logarithm of a product is smooth where those of
its factors are, so it is interpolated between the middles of the bins. Where that would invent what the bins
do not tell, they are left as they are: where lenses' own posteriors are narrower than a bin, and where the
product is highest at an end of the prior, on the plateau of lenses that give but a limit.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS_A_SIGMA = 4.0
"""Fine bins in a standard deviation of the joint posterior, at least."""
FINEST = 64
"""Most fine bins in a bin."""
RESOLVED = 4.0
"""Largest second difference of a lens's log-density between bins, that of a Gaussian of half a bin."""
LEAST_LOGARITHM = -40.0
"""Below the maximum."""
DEEPEST = 1000.0
"""So far below the maximum a logarithm may be minus infinity as well."""


def finer(edges: Floats, log_joint: Floats, log_single: Floats) -> tuple[Floats, Floats]:
    """Edges (F+1,) and log-densities (R, F) of as many fine bins as the joint posterior needs.

    edges: (K+1,). log_joint: (R, K), up to a constant; the sum over the R rows is the joint density.
    log_single: (N, K) the lenses' own log-densities, up to a constant each.
    """
    return refined(edges, log_joint, refinement(edges, log_joint, log_single))


def refined(edges: Floats, log_joint: Floats, factor: int) -> tuple[Floats, Floats]:
    """Edges (F+1,) and log-densities (R, F) with `factor` fine bins in each of the K bins of (R, K)."""
    from scipy.interpolate import Akima1DInterpolator

    if factor == 1:
        return edges, log_joint
    centres = 0.5 * (edges[1:] + edges[:-1])
    fine = np.linspace(edges[0], edges[-1], factor * len(centres) + 1)
    # Half a bin at either end keeps the last value. Beside pits as deep as a density of nought even Akima's
    # spline would swing; what it takes of the peak, two bins to either side, is left.
    places = np.clip(0.5 * (fine[1:] + fine[:-1]), centres[0], centres[-1])
    k = int(log_joint.max(axis=0).argmax())
    bends = -np.diff(np.maximum(log_joint[:, k - 1 : k + 2], log_joint.max() - DEEPEST), 2, axis=1)
    bounded = np.maximum(log_joint, log_joint.max() + LEAST_LOGARITHM - 5 * np.maximum(bends, 0))
    interpolated: Floats = Akima1DInterpolator(centres, bounded, axis=1)(places)
    return fine, interpolated


def refinement(edges: Floats, log_joint: Floats, log_single: Floats) -> int:
    """Fine bins in a bin that a joint posterior needs; 1 where the bins are to stay. As for `finer`."""
    widths = np.diff(edges)
    top = log_joint.max(axis=0)
    k = int(top.argmax())
    if len(log_single) < 2 or not 0 < k < len(widths) - 1 or not np.allclose(widths, widths[0]):
        return 1
    near = slice(k - 1, k + 2)
    own = np.maximum(log_single[:, near], log_single.max(axis=1, keepdims=True) + LEAST_LOGARITHM)
    bends = np.maximum(-np.diff(own, 2, axis=1)[:, 0], 0.0)
    if np.sum(bends**2) > RESOLVED * np.sum(bends):
        return 1
    weight = np.exp(log_joint - top[k]).sum(axis=0)
    weight /= weight.sum()
    middle = 0.5 * (edges[1:] + edges[:-1])
    sigma = float(np.sqrt(weight @ (middle - weight @ middle) ** 2 + widths[0] ** 2 / 12))
    bend = -float(np.diff(np.maximum(top[near], top[k] - DEEPEST), 2)[0])
    if bend > 0:
        sigma = min(sigma, float(widths[0] / np.sqrt(bend)))
    factor = 1
    while factor < FINEST and widths[0] / factor > sigma / BINS_A_SIGMA:
        factor *= 2
    return factor
