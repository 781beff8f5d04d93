"""Warnings that a reader of an evaluation must not miss."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from darkarc.config import in_unit
from darkarc.data.store import Store
from darkarc.evaluation.metrics import LEVELS, Scores

Floats = NDArray[np.float64]

SIGNIFICANCE = 3.0
"""An alarm about a statistic needs this many of its standard errors."""

RESAMPLES = 4000
BEYOND_DOUBT = 0.9987
"""Quantile of the bootstrap that has to be below zero: three standard deviations, one-sided."""
SLACK = 0.05
"""A regressor at the floor scatters about it by its bins' width: it is below from this share of it on."""


def target_warnings(
    target: str,
    scores: Scores,
    values: Mapping[str, Any],
    errors: Mapping[str, float | None],
    *,
    constant_guess: float | None,
    prior: tuple[float, float],
    coverage_tolerance: float,
) -> list[str]:
    """What is wrong with the predictions of one target; `scores` holds images with a true value only."""
    found = []
    outside = int(np.sum((scores.truth < prior[0]) | (scores.truth > prior[1])))
    if outside:
        found.append(
            f"{target}: {outside} of {len(scores)} true values lie outside the prior range "
            f"[{prior[0]:g}, {prior[1]:g}], where the posterior is zero by construction; widen "
            f"targets.{target}"
        )
    lost = int(np.sum(np.isneginf(scores.log_prob))) - outside
    if lost > 0:
        found.append(
            f"{target}: the posterior density is exactly zero at {lost} of {len(scores)} true values"
        )
    mae = values["mae_dex"]
    if mae is not None and constant_guess is not None:
        margin = 2 * (errors["mae_dex"] or 0.0)
        if mae > constant_guess - margin:
            found.append(
                f"{target}: the mean absolute error {in_unit(f'{mae:.4f}', target)} is no better than a "
                f"constant guess ({in_unit(f'{constant_guess:.3f}', target)}): nothing has been learnt"
            )
    for level in LEVELS:
        name = f"coverage_{100 * level:.0f}"
        observed = values[name]
        if observed is None:
            continue
        distance = abs(observed - level)
        noise = SIGNIFICANCE * np.sqrt(level * (1 - level) / len(scores))
        if distance > coverage_tolerance and distance > noise:
            kind = "overconfident" if observed < level else "too cautious"
            found.append(
                f"{target}: {100 * observed:.1f}% of true values lie in the {100 * level:.0f}% "
                f"interval: {kind}"
            )
    return found


def floor_warnings(target: str, own: Floats, exact: Floats, seed: int) -> list[str]:
    """The regressor errs less than exact posteriors of the same images do, beyond all chance.

    own, exact: (M,) absolute errors of the regressor's and of the exact medians. A paired bootstrap, so
    that what makes an image hard counts on both sides.
    """
    difference = own - exact
    if len(difference) < 2 or difference.mean() > -SLACK * exact.mean():
        return []
    resampled = np.random.default_rng(seed).integers(len(difference), size=(RESAMPLES, len(difference)))
    if np.quantile(difference[resampled].mean(axis=1), BEYOND_DOUBT) >= 0:
        return []
    return [
        f"{target}: on {len(own)} test images the mean absolute error, {own.mean():.4f} dex, is below that "
        f"of their exact posteriors, {exact.mean():.4f} dex. Nothing that sees the images alone can do that: "
        "the regressor has seen the answers (leakage), or the images are not what their manifest says"
    ]


def leakage_warnings(store: Store) -> list[str]:
    """Groups or identical images on both the train and the test side of a prepared store."""
    train = store.samples.filter(pc.equal(store.samples["split"], "train"))
    test = store.samples.filter(pc.equal(store.samples["split"], "test"))
    found = []
    for column, noun in (("group_id", "groups"), ("pixel_sha256", "images, pixel for pixel,")):
        ours = pc.unique(test[column].drop_null())
        shared = ours.filter(pc.is_in(ours, value_set=pc.unique(train[column].drop_null())))
        if len(shared):
            found.append(
                f"{len(shared)} {noun} are in both the train and the test split (the first: "
                f"{shared[0].as_py()}): the test error is too good to be true; prepare the data again"
            )
    return found
