"""Two regressors on the same test images: error, calibration and speed, side by side."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from darkarc.data.store import Store
from darkarc.evaluation.predictions import split_rows, true_values
from darkarc.models import Posterior, Regressor
from darkarc.serving.onnx_regressor import OnnxRegressor
from darkarc.tracking.promotion import mean_difference_interval

Floats = NDArray[np.float64]

LEVELS = (68, 90)
MOST_IMAGES = 5000
BATCH = 64
TIMED_BATCHES = 4
ROUNDS = 7


class ComparisonError(ValueError):
    """Nothing to compare on; the message says what is missing."""


@dataclass(frozen=True, eq=False)
class Trial:
    """What a regressor makes of the test images that have a true value.

    errors (N,): absolute errors of the medians; coverage: percent -> share of truths in that interval;
    nll: mean negative log density of the truths, in nats.
    """

    errors: Floats
    coverage: dict[int, float]
    nll: float

    @property
    def mae(self) -> float:
        return float(self.errors.mean())


@dataclass(frozen=True)
class TestImages:
    """Test images (N, H, W) float32 and their true values (N,)."""

    __test__ = False  # pytest: no test

    images: NDArray[np.float32]
    truth: Floats

    @classmethod
    def of(cls, store: Store, target: str) -> "TestImages":
        """At most `MOST_IMAGES`, evenly spaced. Raises `ComparisonError` if there are none."""
        rows = split_rows(store, "test")
        truth = true_values(store, rows, target)
        known = np.flatnonzero(np.isfinite(truth))
        if len(known) < 2:
            raise ComparisonError(f"{store.path}: fewer than two test images have a true {target}")
        chosen = np.unique(np.linspace(0, len(known) - 1, min(len(known), MOST_IMAGES)).round().astype(int))
        return cls(store.images(rows[known[chosen]]).astype(np.float32), truth[known[chosen]])


def try_out(regressor: Regressor | OnnxRegressor, test: TestImages, target: str) -> Trial:
    """Predict the test images, a batch in memory at a time."""
    parts = []
    for start in range(0, len(test.images), 256):
        truth = test.truth[start : start + 256]
        posterior: Posterior = regressor.predict(test.images[start : start + 256], target=target)
        parts.append((np.abs(posterior.median - truth), posterior.cdf(truth), posterior.log_prob(truth)))
    errors, pit, log_density = (np.concatenate(column) for column in zip(*parts, strict=True))
    depth = 200 * np.abs(pit - 0.5)
    return Trial(
        errors, {level: float((depth <= level).mean()) for level in LEVELS}, float(-log_density.mean())
    )


def images_per_second(
    first: OnnxRegressor, second: OnnxRegressor, images: NDArray[np.float32]
) -> tuple[float, float]:
    """Medians over `ROUNDS` turns, taken in turn so that a busy machine slows both."""
    batch = np.ascontiguousarray(images[:BATCH])
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for regressor, own in zip((first, second), seconds, strict=True):
            took = _seconds(lambda one=regressor: one.predict(batch))  # type: ignore[misc]
            if turn:  # the first turn warms up
                own.append(took)
    n = TIMED_BATCHES * len(batch)
    return n / statistics.median(seconds[0]), n / statistics.median(seconds[1])


def _seconds(answer: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(TIMED_BATCHES):
        answer()
    return time.perf_counter() - start


def objections(
    reference: Trial, variant: Trial, *, error_tolerance: float, coverage_tolerance: float
) -> list[str]:
    """Why a variant is not as good as the reference, in words; empty if it is.

    error_tolerance: share by which the mean error may grow, held against the upper end of the paired
    bootstrap's 95% interval; coverage_tolerance: how much further from nominal a coverage may be.
    """
    found = []
    _, high = mean_difference_interval(variant.errors - reference.errors)
    if high > error_tolerance * reference.mae:
        found.append(
            f"mean absolute error {variant.mae:.4f} against {reference.mae:.4f}: up to {high:+.4f} at 95%, "
            f"allowed {error_tolerance * reference.mae:+.4f}"
        )
    for level in LEVELS:
        ours, theirs = (abs(trial.coverage[level] - level / 100) for trial in (variant, reference))
        if ours > theirs + coverage_tolerance:
            found.append(
                f"coverage at {level}% is {100 * variant.coverage[level]:.1f}% against "
                f"{100 * reference.coverage[level]:.1f}%"
            )
    return found
