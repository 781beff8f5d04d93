"""Many lenses, one particle: the joint posterior of the axion mass."""

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from darkarc.config import CLASSES, DEFAULT_TARGET, TARGET_CLASS
from darkarc.models.finer_grid import finer
from darkarc.models.population_errors import PopulationErrors
from darkarc.models.posterior import Posterior

Floats = NDArray[np.float64]

UNKNOWN: Literal["unknown"] = "unknown"
SHARES = 100
"""Points over which an unknown share of axion-like lenses is integrated."""


class PopulationError(ValueError):
    """Posteriors that do not combine; the message says which and why."""


@dataclass(frozen=True, eq=False)
class Population:
    """What N lenses say about one particle.

    posterior: of length 1, on finer bins than the lenses' own where they know the mass that well together.
    n: lenses. power: what the log-likelihood was multiplied by at the posterior's median, 1 for exact lenses.
    share, share_probability: (SHARES,) the share of axion-like lenses and its posterior, where it was
        unknown; else None.
    """

    posterior: Posterior
    n: int
    power: float
    share: Floats | None = None
    share_probability: Floats | None = None

    def share_quantile(self, q: float) -> float | None:
        """Of the share of axion-like lenses; None where it was given."""
        if self.share is None or self.share_probability is None:
            return None
        cumulative = np.concatenate([[0.0], np.cumsum(self.share_probability)])
        return float(np.interp(q, cumulative, np.linspace(0, 1, SHARES + 1)))


def combine(
    posterior: Posterior,
    *,
    prior: ArrayLike | None = None,
    axion_share: float | Literal["unknown"] | None = None,
    trained_share: float | None = None,
    errors: PopulationErrors | None = None,
) -> Posterior:
    """The posterior of one particle mass shared by all N lenses, of length 1; see `join`."""
    return join(
        posterior,
        prior=prior,
        axion_share=axion_share,
        trained_share=trained_share,
        errors=errors,
    ).posterior


def join(
    posterior: Posterior,
    *,
    prior: ArrayLike | None = None,
    axion_share: float | Literal["unknown"] | None = None,
    trained_share: float | None = None,
    errors: PopulationErrors | None = None,
) -> Population:
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
        "unknown": integrated out, uniform between 0 and 1.
    trained_share: the share of axion-like images in training; needed to rescale c_i to another share,
        by Bayes' theorem: the odds of c_i are multiplied by the ratio of the two shares' odds. Default:
        what the posterior knows.
    errors: what the regressor's errors on lenses of one mass have in common. Default: what the posterior
        itself knows (`Posterior.population`); nothing for exact ones. `PopulationErrors()`: nothing.

    The mean of the class probabilities over the lenses is the joint posterior's.
    Raises `PopulationError`.
    """
    if posterior.target != DEFAULT_TARGET:
        raise PopulationError(
            f"{posterior.target} differs from lens to lens; only {DEFAULT_TARGET} is one number behind many"
        )
    n = len(posterior)
    if n == 0:
        raise PopulationError("expected the posteriors of at least one lens, found none")
    known = posterior.population or {}
    errors = PopulationErrors.of(known) if errors is None else errors
    if axion_share is not None and trained_share is None:
        trained_share = known.get("axion_share")
    _check(errors)
    log_prior = np.log(_prior(prior, posterior))
    with np.errstate(divide="ignore"):
        log_ratio = np.log(posterior.density) - log_prior
    power = errors.power(n, posterior.centres)
    share = share_probability = None
    if axion_share == UNKNOWN:
        log_axion, log_other = _log_class_likelihood(posterior, trained_share)
        share = (np.arange(SHARES) + 0.5) / SHARES
        by_share = np.stack(
            [
                np.logaddexp(
                    np.log(f) + log_axion[:, None] + log_ratio, np.log1p(-f) + log_other[:, None]
                ).sum(axis=0)
                for f in share
            ]
        )
        if not np.isfinite(by_share.max()):
            _contradiction(
                np.logaddexp(log_axion[:, None] + log_ratio, log_other[:, None]), posterior.centres
            )
        log_joint = log_prior + power * (by_share - by_share.max())  # (SHARES, K)
    else:
        log_axion, log_other = _log_class(posterior, axion_share, trained_share)
        log_likelihood = np.logaddexp(log_axion[:, None] + log_ratio, log_other[:, None])
        summed = log_likelihood.sum(axis=0)
        if not np.isfinite(summed.max()):
            _contradiction(log_likelihood, posterior.centres)
        log_joint = (log_prior + power * (summed - summed.max()))[None]
    edges, log_joint = finer(posterior.edges, log_joint, log_ratio)
    weight = np.exp(log_joint - log_joint.max()) * np.diff(edges)
    if share is not None:
        share_probability = weight.sum(axis=1) / weight.sum()
    density = weight.sum(axis=0) / weight.sum() / np.diff(edges)
    mean_class = posterior.class_probability.mean(axis=0, keepdims=True)
    joint = Posterior(edges, density[None, :], mean_class, posterior.target)
    at_median = float(errors.power(n, joint.median)[0])
    return Population(joint, n, at_median, share, share_probability)


def _check(errors: PopulationErrors) -> None:
    for rho in (errors.correlation, *chain.from_iterable(errors.correlation_at)):
        if not 0 <= rho < np.inf:
            raise PopulationError(f"correlation: expected a number from 0, found {rho!r}")
    masses, sizes, rows = errors.correlation_mass, errors.correlation_size, errors.correlation_at
    if any(a >= b for known in (masses, sizes) for a, b in pairwise(known)):
        raise PopulationError(f"correlation: expected rising masses and sizes, found {masses} and {sizes}")
    if len(rows) != len(masses) or any(len(row) != len(sizes) or not row for row in rows):
        raise PopulationError(
            f"correlation_at: expected {len(masses)} rows of {len(sizes)} correlations, found "
            f"{[len(row) for row in rows]}"
        )


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


def _axion_probability(posterior: Posterior) -> Floats:
    index = CLASSES.index(TARGET_CLASS[posterior.target])
    return np.clip(posterior.class_probability[:, index], 0.0, 1.0)


def _log_class(
    posterior: Posterior, axion_share: float | str | None, trained_share: float | None
) -> tuple[Floats, Floats]:
    """log c_i and log(1 - c_i), (N,) each, for the share of axion-like lenses asked for."""
    axion = _axion_probability(posterior)
    other = 1.0 - axion
    if axion_share is not None:
        if isinstance(axion_share, str) or not 0 < axion_share <= 1:
            raise PopulationError(
                f"axion_share: expected a share in (0, 1], or {UNKNOWN!r}, found {axion_share!r}"
            )
        if axion_share == 1:
            axion, other = np.ones_like(axion), np.zeros_like(axion)
        else:
            trained = _trained(trained_share, f"axion_share {axion_share:g}")
            axion = axion * axion_share / trained
            other = other * (1 - axion_share) / (1 - trained)
    elif trained_share is not None:
        raise PopulationError("trained_share is used only together with axion_share: give both or neither")
    total = axion + other
    with np.errstate(divide="ignore"):
        return np.log(axion / total), np.log(other / total)


def _log_class_likelihood(posterior: Posterior, trained_share: float | None) -> tuple[Floats, Floats]:
    """ln p(d_i | axion-like) and ln p(d_i | not), (N,) each, up to a constant of the image."""
    trained = _trained(trained_share, f"axion_share {UNKNOWN!r}")
    axion = _axion_probability(posterior)
    with np.errstate(divide="ignore"):
        return np.log(axion / trained), np.log((1 - axion) / (1 - trained))


def _trained(trained_share: float | None, asker: str) -> float:
    if trained_share is None or not 0 < trained_share < 1:
        raise PopulationError(
            f"{asker} needs trained_share, the share of axion images in training "
            f"(between 0 and 1), found {trained_share!r}"
        )
    return trained_share


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
