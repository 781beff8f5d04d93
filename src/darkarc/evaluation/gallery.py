"""The figures of one evaluation, drawn in order, each with the caption that says what to see in it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from darkarc.data.store import Store
from darkarc.evaluation.classes import ClassScores
from darkarc.evaluation.figures import (
    calibration_figure,
    classes_figure,
    error_figure,
    examples_figure,
    learning_figure,
    prediction_figure,
    published_figure,
    strangers_figure,
)
from darkarc.evaluation.figures.training import History
from darkarc.evaluation.metrics import Scores
from darkarc.evaluation.ood import StrangeImages
from darkarc.evaluation.predictions import Predictions, Predictor
from darkarc.evaluation.published import Comparison
from darkarc.evaluation.report import Illustration
from darkarc.evaluation.style import NAMES, style, to_png
from darkarc.models.posterior import Posterior

Floats = NDArray[np.float64]


def target_illustrations(
    target: str,
    suffix: str,
    scores: Scores,
    edges: Floats,
    metrics: Mapping[str, Any],
    guess: float | None,
    comparison: Comparison,
) -> list[Illustration]:
    """Prediction, error against mass and calibration of one target; `suffix` ends the files' names.

    scores: of the images that have a true value. metrics: of that target, with `by_mass`.
    """
    name = NAMES[target]
    line = " The dashed line is the best published MAE over all masses." if comparison.comparable else ""
    if any(row.get("floor_mae_dex") is not None for row in metrics["by_mass"]):
        line += (
            " Squares are the information floor: the error of exact posteriors of some of the images, which "
            "nothing that sees the images alone can undercut."
        )
    return [
        _draw(
            f"prediction{suffix}",
            f"Predicted against true {name}",
            "Points are posterior medians with their 68% interval (a sample of the test images, even "
            "in the true "
            "value); on the dashed line they would be exact. Below, residuals with the running median "
            "and the band "
            "that holds 68% of all of them. Where the images no longer tell the values apart, "
            "intervals should widen "
            "and medians draw towards the middle of what is still possible.",
            lambda: prediction_figure(target, scores, edges),
        ),
        _draw(
            f"error_by_mass{suffix}",
            f"Absolute error against true {name}",
            "Mean (with its bootstrap error), median and the middle 68% of the absolute error in bins "
            "of the true "
            f"value, and what a constant guess would score.{line} One overall number hides this range.",
            lambda: error_figure(target, scores, metrics["by_mass"], guess, comparison),
        ),
        _draw(
            f"calibration{suffix}",
            f"Calibration of the {name} posterior",
            "Left: share of true values inside the credible interval minus its level, for all and for "
            "each third of "
            "the posterior medians; honest uncertainties stay within the grey band (where 95% of calibrated "
            "results of this size fall; it is 1.7 times wider for a third), above it they are too "
            "cautious, below "
            "it overconfident. TARP is the expected coverage about random reference points. Middle: "
            "the probability "
            "below the truth, flat if calibrated, U-shaped if overconfident. Right: pulls; posteriors "
            "cut by the "
            "prior need not be normal.",
            lambda: calibration_figure(scores, name),
        ),
    ]


def examples_illustration(
    target: str, suffix: str, regressor: Predictor, store: Store, predictions: Predictions, n: int
) -> Illustration:
    """The n best and n worst images of a target, read and predicted again."""
    known = predictions.with_truth(target)
    scores = predictions.scores[target][known]
    best, worst = best_and_worst(scores, n)

    def gather(chosen: NDArray[np.intp]) -> tuple[NDArray[Any], Posterior, Floats]:
        images = store.images(predictions.rows[known[chosen]])
        posterior = regressor.predict(images, target=target) if len(chosen) else _no_posterior(target)
        return images, posterior, scores.truth[chosen]

    return _draw(
        f"examples{suffix}",
        "Best and worst images",
        "Above, from each of as many equal slices of the true value, the image whose posterior is "
        "densest at the "
        "truth. Below, the images whose posterior is thinnest at the truth: the confident errors, the "
        "first to look "
        "at. Images are as stored, each on its own colour scale; the line is the truth, the dark part "
        "the 68% "
        "interval. Posteriors much narrower than the prior are enlarged.",
        lambda: examples_figure(target, gather(best), gather(worst)),
    )


def best_and_worst(scores: Scores, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of the best image in each of n equal slices of the truth, and of the n worst of all.

    Judged by the posterior density at the truth; both lists hold at most n.
    """
    by_truth = np.argsort(scores.truth, kind="stable")
    slices = [part for part in np.array_split(by_truth, n) if len(part)]
    best = np.array([part[np.argmax(scores.log_prob[part])] for part in slices], dtype=np.intp)
    worst = np.argsort(scores.log_prob, kind="stable")[:n]
    return best, worst


def classes_illustration(labels: NDArray[np.intp], probability: Floats, scored: ClassScores) -> Illustration:
    """ROC curves and confusion matrix of the images whose class is known."""
    return _draw(
        "classes",
        "Telling the classes apart",
        "Left: receiver operating characteristic of each class against the other two. Right: share of "
        "each true "
        "class (rows) taken for each class (columns), with the number of images. A mass is worth "
        "reading only where "
        "the axion class is likely.",
        lambda: classes_figure(labels, probability, scored),
    )


def strangers_illustration(measured: Sequence[StrangeImages]) -> Illustration:
    """Images the regressor was not trained for."""
    return _draw(
        "strangers",
        "Images unlike the training's",
        "The first row is the test images, every other one changes one thing. Left: an example, on its own "
        "colour scale. Middle: the novelty, -log10 of the share of calibration images that are as strange; "
        "beyond the dotted line an image is flagged, beyond the dashed one its mass is withheld. Right: "
        "masses with the truth outside of their 99% interval (where there is no vortex: with a "
        "90% interval narrower than half the prior), without flags and with them.",
        lambda: strangers_figure(measured),
    )


def learning_illustration(history: History, target: str) -> Illustration:
    """The learning curves; target: the first one."""
    return _draw(
        "learning_curves",
        "Learning curves",
        "Loss and error of both splits over the epochs, and the learning rate. Validation curves that "
        "turn up while "
        "train curves go on falling mean overfitting; curves that still fall at the end, that more "
        "epochs would pay.",
        lambda: learning_figure(history, target),
    )


def published_illustration(comparison: Comparison, metrics: Mapping[str, Any]) -> Illustration:
    """Our error beside the published ones."""
    error = metrics["standard_error"].get("mae_dex")
    caption = (
        f"Mean absolute errors. NOT comparable: {comparison.obstacle}; the hatched bars are shown for "
        "orientation."
        if comparison.obstacle
        else "Mean absolute errors on the same preset and noise form "
        "(the test images need not be the same). Published numbers come without an uncertainty."
    )
    return _draw(
        "published",
        "Beside published results",
        caption,
        lambda: published_figure(comparison, metrics["mae_dex"], error, metrics["constant_guess_mae_dex"]),
    )


def _draw(name: str, title: str, caption: str, draw: Callable[[], Figure]) -> Illustration:
    with style():
        return Illustration(name, title, caption, to_png(draw()))


def _no_posterior(target: str) -> Posterior:
    return Posterior(np.array([0.0, 1.0]), np.empty((0, 1)), np.empty((0, 3)), target)
