"""Per-image scores of posteriors against the truth, and the numbers that sum them up.

Everything here works on a `Posterior` (piecewise-constant density) and one true value an image, both in
the units of the target; for the logarithm of a mass those are dex.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from darkarc.models.posterior import Posterior

Floats = NDArray[np.float64]

LEVELS = (0.50, 0.68, 0.90, 0.95)
"""Credible levels whose coverage is reported."""

EDGE_SHARE = 0.01
"""A posterior is prior-bound if more than this probability lies within this share of the prior's range
from either end: its mean and deviation then say as much about the prior as about the image."""

RESAMPLES = 200
"""Bootstrap resamples: a standard error is then itself known to about 5%."""


class EvaluationError(ValueError):
    """An evaluation that cannot be made; the message says what is missing and what to do."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What each of N images says about one target; the last five are nan where there is no truth.

    truth, median, mean, std, q05, q16, q84, q95: (N,) in units of the target.
    std_between: (N,) an ensemble's disagreement, a part of std; 0 for a single regressor.
    prior_bound: (N,) bool, see `EDGE_SHARE`.
    log_prob: (N,) natural logarithm of the posterior density at the truth.
    pit: (N,) probability integral transform, the posterior probability below the truth.
    crps: (N,) continuous ranked probability score, in units of the target.
    tarp: (N,) posterior probability of lying closer to a random reference point than the truth does.
    """

    truth: Floats
    median: Floats
    mean: Floats
    std: Floats
    q05: Floats
    q16: Floats
    q84: Floats
    q95: Floats
    std_between: Floats
    prior_bound: NDArray[np.bool_]
    log_prob: Floats
    pit: Floats
    crps: Floats
    tarp: Floats

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, index: slice | NDArray[np.intp] | NDArray[np.bool_]) -> "Scores":
        return Scores(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @staticmethod
    def concatenate(parts: Iterable["Scores"]) -> "Scores":
        """The scores of several batches as one, in their order."""
        batches = list(parts)
        return Scores(
            **{
                field.name: np.concatenate([getattr(batch, field.name) for batch in batches])
                for field in fields(Scores)
            }
        )

    @property
    def error(self) -> Floats:
        """(N,) posterior median minus truth."""
        return self.median - self.truth

    @property
    def pull(self) -> Floats:
        """(N,) (truth - posterior mean) / posterior standard deviation."""
        return (self.truth - self.mean) / self.std

    @property
    def width_68(self) -> Floats:
        """(N,) width of the equal-tailed 68% interval."""
        return self.q84 - self.q16


def score(posterior: Posterior, truth: Floats, reference: Floats) -> Scores:
    """Score N posteriors.

    truth: (N,) true values, nan where there is none.
    reference: (N,) points that know nothing of the truth, for TARP (`draw_references`).
    """
    truth = np.asarray(truth, dtype=np.float64)
    quantiles = posterior.quantile([0.05, 0.16, 0.5, 0.84, 0.95])
    known = np.isfinite(truth)
    # A stand-in keeps the arithmetic finite; its results are blanked below.
    value = np.where(known, truth, posterior.edges[0])

    def where_known(result: Floats) -> Floats:
        return np.where(known, result, np.nan)

    return Scores(
        truth=truth,
        median=quantiles[:, 2],
        mean=posterior.mean,
        std=posterior.std,
        q05=quantiles[:, 0],
        q16=quantiles[:, 1],
        q84=quantiles[:, 3],
        q95=quantiles[:, 4],
        std_between=np.zeros(len(posterior)) if posterior.std_between is None else posterior.std_between,
        prior_bound=prior_bound(posterior),
        log_prob=where_known(posterior.log_prob(value)),
        pit=where_known(posterior.cdf(value)),
        crps=where_known(crps(posterior, value)),
        tarp=where_known(tarp(posterior, value, reference)),
    )


def crps(posterior: Posterior, truth: Floats) -> Floats:
    """(N,) integral of (F(x) - [x >= truth])² over x, exact for a piecewise-linear F.

    Gneiting & Raftery 2007 (JASA 102, 359), eq. 20. Over a stretch of width w on which F runs straight
    from a to b, the integral of F² is w (a² + ab + b²) / 3; the bin that holds the truth is cut in two there.
    """
    edges = posterior.edges
    inside = np.clip(truth, edges[0], edges[-1])
    zero = np.zeros((len(posterior), 1))
    cumulative = np.concatenate([zero, np.cumsum(posterior.probability, axis=1)], axis=1)
    at_truth = posterior.cdf(inside)[:, None]
    below = np.minimum(cumulative, at_truth)
    above = 1 - np.maximum(cumulative, at_truth)
    width_below = np.diff(np.minimum(edges, inside[:, None]), axis=1)
    width_above = np.diff(np.maximum(edges, inside[:, None]), axis=1)
    total = _square_integral(below, width_below) + _square_integral(above, width_above)
    return total + np.abs(truth - inside)


def _square_integral(values: Floats, widths: Floats) -> Floats:
    left, right = values[:, :-1], values[:, 1:]
    return np.sum(widths * (left**2 + left * right + right**2), axis=1) / 3


def tarp(posterior: Posterior, truth: Floats, reference: Floats) -> Floats:
    """(N,) posterior probability of being closer to `reference` than the truth is.

    Uniform on [0, 1] if and only if the posterior is the true one given the image (Lemos et al. 2023,
    arXiv:2302.03026, algorithm 2), evaluated here from the exact cumulative distribution, not from samples.
    """
    distance = np.abs(truth - reference)
    return posterior.cdf(reference + distance) - posterior.cdf(reference - distance)


def draw_references(edges: Floats, n: int, seed: int) -> Floats:
    """(n,) reference points for `tarp`, uniform over the prior range."""
    # A stream of its own: the bare seed could be the very stream that drew the true values.
    stream = np.random.SeedSequence(seed, spawn_key=(1,))
    return np.random.default_rng(stream).uniform(edges[0], edges[-1], n)


def prior_bound(posterior: Posterior) -> NDArray[np.bool_]:
    """(N,) does more than `EDGE_SHARE` of the probability lie at an end of the prior range?"""
    low, high = posterior.edges[0], posterior.edges[-1]
    margin = EDGE_SHARE * (high - low)
    result: NDArray[np.bool_] = (posterior.cdf(low + margin) > EDGE_SHARE) | (
        posterior.cdf(high - margin) < 1 - EDGE_SHARE
    )
    return result


def coverage(pit: Floats, level: float) -> float:
    """Share of truths inside the equal-tailed interval of this level."""
    return float(np.mean(np.abs(pit - 0.5) <= level / 2))


def uniform_distance(values: Floats) -> float:
    """Kolmogorov-Smirnov distance of (N,) values to the uniform distribution on [0, 1]."""
    from scipy.stats import kstest

    return float(kstest(values, "uniform").statistic)


def _r2(scores: Scores) -> float:
    spread = np.sum((scores.truth - scores.truth.mean()) ** 2)
    return float(1 - np.sum(scores.error**2) / spread) if spread > 0 else float("nan")


def _coverage_at(level: float) -> Callable[[Scores], float]:
    return lambda scores: coverage(scores.pit, level)


def _over_free(statistic: Callable[[Floats], np.floating]) -> Callable[[Scores], float]:
    def of(scores: Scores) -> float:
        free = scores.pull[~scores.prior_bound]
        return float(statistic(free)) if len(free) > 1 else float("nan")

    return of


STATISTICS: dict[str, Callable[[Scores], float]] = {
    "mae_dex": lambda s: float(np.mean(np.abs(s.error))),
    "rmse_dex": lambda s: float(np.sqrt(np.mean(s.error**2))),
    "r2": _r2,
    "bias_dex": lambda s: float(np.mean(s.error)),
    "nll": lambda s: float(-np.mean(s.log_prob)),
    "crps_dex": lambda s: float(np.mean(s.crps)),
    **{f"coverage_{100 * level:.0f}": _coverage_at(level) for level in LEVELS},
    "sharpness_dex": lambda s: float(np.median(s.width_68)),
    "pull_mean": lambda s: float(np.mean(s.pull)),
    "pull_std": lambda s: float(np.std(s.pull)),
    "pull_mean_free": _over_free(np.mean),
    "pull_std_free": _over_free(np.std),
    "prior_bound_share": lambda s: float(np.mean(s.prior_bound)),
}
"""Numbers over N images: name to function. `_free` ones leave prior-bound posteriors out."""

UNIFORMITY: dict[str, Callable[[Scores], float]] = {
    "pit_ks": lambda s: uniform_distance(s.pit),
    "tarp_ks": lambda s: uniform_distance(s.tarp),
}
"""Distances to uniformity; a bootstrap would bias them upwards, so they have no standard error."""


def summarise(scores: Scores) -> tuple[dict[str, float | None], dict[str, str]]:
    """All numbers over N images that have a truth, and the reason for each that is null."""
    if len(scores) == 0:
        names = [*STATISTICS, *UNIFORMITY]
        return dict.fromkeys(names), dict.fromkeys(names, "no images with a true value")
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, statistic in {**STATISTICS, **UNIFORMITY}.items():
        value = statistic(scores)
        values[name] = value if np.isfinite(value) else None
        if values[name] is None:
            reasons[name] = _why_undefined(name, scores)
    return values, reasons


def _why_undefined(name: str, scores: Scores) -> str:
    if name == "nll":
        lost = int(np.sum(~np.isfinite(scores.log_prob)))
        return f"{lost} of {len(scores)} true values have no posterior density at all"
    if name == "r2":
        return "all true values are the same"
    if name.endswith("_free"):
        return "fewer than two posteriors are free of the prior's ends"
    return "not finite"


def standard_errors(scores: Scores, seed: int, resamples: int = RESAMPLES) -> dict[str, float | None]:
    """Bootstrap standard error of each of `STATISTICS` over the images; null below two images."""
    if len(scores) < 2:
        return dict.fromkeys(STATISTICS)
    rng = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {name: [] for name in STATISTICS}
    for _ in range(resamples):
        resampled = scores[rng.integers(len(scores), size=len(scores))]
        for name, statistic in STATISTICS.items():
            draws[name].append(statistic(resampled))
    errors: dict[str, float | None] = {}
    for name, values in draws.items():
        usable = np.asarray(values)[np.isfinite(values)]
        errors[name] = float(usable.std(ddof=1)) if len(usable) > resamples // 2 else None
    return errors
