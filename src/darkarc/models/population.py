"""Many lenses, one particle: the joint posterior of the axion mass."""

from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from darkarc.config import CLASSES, DEFAULT_TARGET, TARGET_CLASS
from darkarc.models.posterior import Posterior

Floats = NDArray[np.float64]


class PopulationError(ValueError):
    """Posteriors that do not combine; the message says which and why."""


def combine(
    posterior: Posterior,
    *,
    prior: ArrayLike | None = None,
    axion_share: float | None = None,
    trained_share: float | None = None,
) -> Posterior:
    """The posterior of one particle mass shared by all N lenses, the prior counted once.

    A lens i whose image d_i is axion-like with probability c_i, and whose posterior is q_i(m) if it is,
    says about a common mass m, up to a constant,

        p(d_i | m)  ~  c_i q_i(m) / prior(m) + 1 - c_i,

    because a lens that is not axion-like says nothing about m. The joint posterior is prior(m) times the
    product over the lenses, summed here in logarithms, so that thousands of lenses do not underflow.

    posterior: of N >= 1 images, for `log10_axion_mass_ev` (other targets differ from lens to lens).
    prior: (K,) density per unit of the target that the regressor was trained under; default: flat.
    axion_share: the share of axion-like lenses in *this* population. Default: the one of the training
        images, so that c_i is the regressor's own class probability. 1: every lens is axion-like (c_i = 1).
    trained_share: the share of axion-like images in training; needed to rescale c_i to another share,
        by Bayes' theorem: the odds of c_i are multiplied by the ratio of the two shares' odds.

    Returns a `Posterior` of length 1; its `class_probability` is the mean over the lenses.
    Raises `PopulationError`.
    """
    if posterior.target != DEFAULT_TARGET:
        raise PopulationError(
            f"{posterior.target} differs from lens to lens; only {DEFAULT_TARGET} is one number behind many"
        )
    if len(posterior) == 0:
        raise PopulationError("expected the posteriors of at least one lens, found none")
    log_prior = np.log(_prior(prior, posterior))
    log_axion, log_other = _log_class(posterior, axion_share, trained_share)
    with np.errstate(divide="ignore"):
        log_ratio = np.log(posterior.density) - log_prior
    log_likelihood = np.logaddexp(log_axion[:, None] + log_ratio, log_other[:, None])
    log_joint = log_prior + log_likelihood.sum(axis=0)
    best = log_joint.max()
    if not np.isfinite(best):
        _contradiction(log_likelihood, posterior.centres)
    density = np.exp(log_joint - best)
    density /= density @ posterior.widths
    mean_class = posterior.class_probability.mean(axis=0, keepdims=True)
    return Posterior(posterior.edges, density[None, :], mean_class, posterior.target)


def _prior(prior: ArrayLike | None, posterior: Posterior) -> Floats:
    edges = posterior.edges
    if prior is None:
        return np.full(len(edges) - 1, 1.0 / (edges[-1] - edges[0]))
    density = np.asarray(prior, dtype=np.float64)
    if density.shape != (len(edges) - 1,):
        raise PopulationError(f"prior: expected {len(edges) - 1} densities, one a bin, found {density.shape}")
    if not (np.isfinite(density).all() and (density > 0).all()):
        raise PopulationError("prior: expected a positive, finite density in every bin")
    return density / (density @ posterior.widths)


def _log_class(
    posterior: Posterior, axion_share: float | None, trained_share: float | None
) -> tuple[Floats, Floats]:
    """log c_i and log(1 - c_i), (N,) each, for the share of axion-like lenses asked for."""
    index = CLASSES.index(TARGET_CLASS[posterior.target])
    axion = np.clip(posterior.class_probability[:, index], 0.0, 1.0)
    other = 1.0 - axion
    if axion_share is not None:
        if not 0 < axion_share <= 1:
            raise PopulationError(f"axion_share: expected a share in (0, 1], found {axion_share!r}")
        if axion_share == 1:
            axion, other = np.ones_like(axion), np.zeros_like(axion)
        elif trained_share is None or not 0 < trained_share < 1:
            raise PopulationError(
                f"axion_share {axion_share:g} needs trained_share, the share of axion images in training "
                f"(between 0 and 1), found {trained_share!r}"
            )
        else:
            axion = axion * axion_share / trained_share
            other = other * (1 - axion_share) / (1 - trained_share)
    elif trained_share is not None:
        raise PopulationError("trained_share is used only together with axion_share: give both or neither")
    total = axion + other
    with np.errstate(divide="ignore"):
        return np.log(axion / total), np.log(other / total)


def _contradiction(log_likelihood: Floats, centres: Floats) -> NoReturn:
    """No bin is allowed by all lenses: name the lenses that the best bin would have to leave out."""
    excluded = ~np.isfinite(log_likelihood)
    k = int(excluded.sum(axis=0).argmin())
    rows = np.flatnonzero(excluded[:, k])
    listed = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    raise PopulationError(
        f"the lenses contradict each other: no mass has a density above zero for all {len(excluded)}. "
        f"The most agree on {centres[k]:.3f}; {len(rows)} exclude it (rows {listed}). Look at their "
        "images and leave out what is no axion-like lens"
    )
