"""How well the class probabilities tell axion, cdm and no_sub apart."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from darkarc.config import CLASSES
from darkarc.evaluation.metrics import RESAMPLES

Floats = NDArray[np.float64]

PROBABILITY_BINS = 10


@dataclass(frozen=True, eq=False)
class ClassScores:
    """values: name to number or null; reasons: why one is null; confusion: (3, 3) truth by prediction."""

    values: dict[str, float | None]
    reasons: dict[str, str]
    confusion: NDArray[np.int64]


def score_classes(labels: NDArray[np.intp], probability: Floats) -> ClassScores:
    """Areas under the ROC curve (one class against the rest), accuracy, log-loss and calibration.

    labels: (N,) index into `CLASSES`. probability: (N, 3).
    `class_auc` and `class_ece` are plain means over the three classes; a class without images leaves the
    first null.
    """
    from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score

    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for index, name in enumerate(CLASSES):
        is_class = labels == index
        if is_class.all() or not is_class.any():
            values[f"auc_{name}"] = None
            which = "only" if len(labels) and is_class.all() else "no"
            reasons[f"auc_{name}"] = f"the test split has {which} {name} images"
        else:
            values[f"auc_{name}"] = float(roc_auc_score(is_class, probability[:, index]))
    areas = [values[f"auc_{name}"] for name in CLASSES]
    present = [area for area in areas if area is not None]
    if len(present) == len(CLASSES):
        values["class_auc"] = float(np.mean(present))
    else:
        values["class_auc"] = None
        reasons["class_auc"] = "; ".join(
            reasons[f"auc_{name}"] for name in CLASSES if f"auc_{name}" in reasons
        )
    every = list(range(len(CLASSES)))
    if len(labels) == 0:
        absent = ("class_accuracy", "class_nll", "class_ece", *(f"ece_{name}" for name in CLASSES))
        values |= dict.fromkeys(absent)
        reasons |= dict.fromkeys(absent, "no image has a class")
        return ClassScores(values, reasons, np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64))
    guess = probability.argmax(axis=1)
    values["class_accuracy"] = float(np.mean(guess == labels))
    normalised = probability / probability.sum(axis=1, keepdims=True)
    values["class_nll"] = float(log_loss(labels, normalised, labels=every))
    off = [calibration_error(labels == k, normalised[:, k]) for k in every]
    values["class_ece"] = float(np.mean(off))
    values |= {f"ece_{name}": one for name, one in zip(CLASSES, off, strict=True)}
    return ClassScores(values, reasons, confusion_matrix(labels, guess, labels=every).astype(np.int64))


def class_standard_errors(
    labels: NDArray[np.intp], probability: Floats, seed: int, resamples: int = RESAMPLES // 2
) -> dict[str, float | None]:
    """Bootstrap standard errors of the numbers of `score_classes` (null where that number is null).

    None of the calibration errors: a bootstrap would bias them upwards.
    """
    if len(labels) < 2:
        return {}
    normalised = probability / probability.sum(axis=1, keepdims=True)
    right = normalised.argmax(axis=1) == labels
    surprise = -np.log(np.maximum(normalised[np.arange(len(labels)), labels], np.finfo(np.float64).tiny))
    rng = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {}
    for _ in range(resamples):
        index = rng.integers(len(labels), size=len(labels))
        areas = [rank_area(labels[index] == k, normalised[index, k]) for k in range(len(CLASSES))]
        values = {f"auc_{name}": area for name, area in zip(CLASSES, areas, strict=True)}
        values["class_auc"] = float(np.mean(areas))
        values |= {"class_accuracy": float(right[index].mean()), "class_nll": float(surprise[index].mean())}
        for name, value in values.items():
            draws.setdefault(name, []).append(value)
    errors: dict[str, float | None] = {}
    for name, drawn in draws.items():
        usable = np.asarray(drawn)[np.isfinite(drawn)]
        errors[name] = float(usable.std(ddof=1)) if len(usable) > resamples // 2 else None
    return errors


def calibration_error(is_class: NDArray[np.bool_], probability: Floats) -> float:
    """Expected calibration error of N >= 1 probabilities (N,) of one class, 0 to 1.

    In each of ten equally wide bins of the probability the distance of its mean from the share of images that
    are of the class, weighted with the bin's images (Kull et al. 2019, arXiv:1910.12656, classwise).
    """
    bins = np.minimum((probability * PROBABILITY_BINS).astype(np.intp), PROBABILITY_BINS - 1)
    excess = np.bincount(bins, probability - is_class, PROBABILITY_BINS)
    return float(np.abs(excess).sum() / len(probability))


def rank_area(is_class: NDArray[np.bool_], probability: Floats) -> float:
    """Area under the ROC curve by the ranks' sum (Mann-Whitney), ties counted half; nan without both sides.

    The same number as scikit-learn's, without its checks of the arguments, for the many of a bootstrap.
    """
    from scipy.stats import rankdata

    inside = int(is_class.sum())
    outside = len(is_class) - inside
    if inside == 0 or outside == 0:
        return float("nan")
    ranks = float(rankdata(probability)[is_class].sum())
    return (ranks - inside * (inside + 1) / 2) / (inside * outside)


def roc_curve(labels: NDArray[np.intp], probability: Floats, index: int) -> tuple[Floats, Floats]:
    """False and true positive rates of one class against the rest, both rising from 0 to 1."""
    from sklearn.metrics import roc_curve as sklearn_roc_curve

    false_positive, true_positive, _ = sklearn_roc_curve(labels == index, probability[:, index])
    return false_positive, true_positive
