"""Outliers: how unlike the train split an image's statistics are, and which of them is to blame."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from darkarc.data.quality import SHARES, STATISTICS

_FOREST_SAMPLES = 256  # of Liu, Ting & Zhou (2008): more makes a tree no better at isolating
_HALF_SURPRISE = 5.0  # a statistic this many spreads out scores 1/2, what a forest gives a border case
CLEAR_SCORE = 0.875  # 15 spreads out: an outlier however many there are of its kind
_CHUNK = 16384

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RobustScale:
    """Median of each statistic and its spread below and above it, (S,) in the order of `STATISTICS`."""

    median: Array
    below: Array
    above: Array

    def deviations(self, table: Array) -> Array:
        """Signed distance from the median in spreads of that side, (N, S)."""
        distance = table - self.median
        return np.where(distance > 0, distance / self.above, distance / self.below)


@dataclass(frozen=True)
class Outliers:
    """What `score_outliers` found, (N,) each.

    score: 0 to 1, 1 for an image that breaks a rule. statistic: index in `STATISTICS` of the one that
    lies farthest out; deviation: by how many spreads, signed. unusual: the score passes the threshold.
    """

    score: Array
    statistic: NDArray[np.intp]
    deviation: Array
    unusual: NDArray[np.bool_]
    threshold: float


def score_outliers(
    statistics: Mapping[str, Array],
    *,
    broken: NDArray[np.bool_],
    train: NDArray[np.bool_],
    strata: NDArray[np.integer],
    trees: int,
    contamination: float,
    largest_share: float,
    seed: int,
) -> Outliers:
    """Score N images by their statistics; scale, forest and threshold come from unbroken train rows alone.

    The score is the larger of the IsolationForest's anomaly score and 1 - 2^(-|z|/5) of the statistic
    that lies farthest out: a forest sees unusual combinations, but one statistic among fifteen that is
    far out alone barely shortens its paths. An image is unusual above the (1 - contamination) quantile
    of train, or above `CLEAR_SCORE` if that is lower; and always only above the (1 - largest_share)
    quantile of its own stratum's train rows, so that no rare stratum is thrown out wholesale.

    Raises ValueError if no train row is unbroken.
    """
    from sklearn.ensemble import IsolationForest

    fitted = train & ~broken
    if not fitted.any():
        raise ValueError("no image of the train split is fit to learn from: each breaks a rule")
    scale = fit_scale(statistics, fitted)
    n = len(fitted)
    features = np.empty((n, len(STATISTICS)), np.float32)  # what trees compute in
    statistic, deviation, score = np.empty(n, np.intp), np.empty(n), np.empty(n)
    # In parts: a table of all deviations, and its copies, would be most of what `prepare` keeps in memory.
    parts = [slice(start, start + _CHUNK) for start in range(0, n, _CHUNK)]
    for rows in parts:
        deviations = scale.deviations(np.stack([statistics[name][rows] for name in STATISTICS], axis=1))
        features[rows] = np.arcsinh(
            deviations
        )  # splits are uniform in value: far tails must not hide the bulk
        statistic[rows] = np.argmax(np.abs(deviations), axis=1)
        deviation[rows] = np.take_along_axis(deviations, statistic[rows, None], axis=1)[:, 0]
    forest = IsolationForest(
        n_estimators=trees,
        max_samples=min(_FOREST_SAMPLES, int(fitted.sum())),
        random_state=int(np.random.SeedSequence(seed).generate_state(1)[0]),
        n_jobs=1,  # depths are added up in the order of the trees: one order, one result
    ).fit(features[fitted])
    for rows in parts:
        score[rows] = -forest.score_samples(features[rows])
    score = np.maximum(score, 1 - 2 ** (-np.abs(deviation) / _HALF_SURPRISE))
    threshold = min(float(np.quantile(score[fitted], 1 - contamination)), CLEAR_SCORE)
    limit = np.full(len(score), threshold)
    for stratum in np.unique(strata[fitted]):
        rows = strata == stratum
        own = np.quantile(score[rows & fitted], 1 - largest_share, method="higher")
        limit[rows] = max(threshold, own)
    unusual = (score > limit) & ~broken
    return Outliers(np.where(broken, 1.0, score), statistic, deviation, unusual, threshold)


def fit_scale(statistics: Mapping[str, Array], fitted: NDArray[np.bool_]) -> RobustScale:
    """Median and the distances to the 16% and 84% quantiles of each statistic over the rows `fitted`.

    Each spread has a floor, a change too small to matter, so that a statistic that is the same in
    every image (no negative pixel, say) does not turn rounding into an alarm.
    """
    quantiles = [np.quantile(statistics[name][fitted], [0.16, 0.5, 0.84]) for name in STATISTICS]
    low, median, high = np.stack(quantiles, axis=1)
    floor = _floors(dict(zip(STATISTICS, median, strict=True)))
    return RobustScale(median, np.maximum(median - low, floor), np.maximum(high - median, floor))


def _floors(median: Mapping[str, float]) -> Array:
    """Smallest spread of each statistic that counts, from the medians of all."""
    faint = 1e-6 * median["peak"]  # the peak of an unbroken image is positive
    floors = dict.fromkeys(STATISTICS, 1e-3)  # of a ratio or, in pixels, of a distance
    floors |= dict.fromkeys(SHARES, 1e-3)  # a pixel in a thousand
    floors["flux"] = 1e-3 * median["flux"] + faint
    floors["peak"] = 1e-3 * median["peak"]
    floors["background"] = max(0.1 * median["noise_level"], faint)
    floors["noise_level"] = faint
    floors["relative_noise"] = 1e-6
    return np.array([floors[name] for name in STATISTICS])
