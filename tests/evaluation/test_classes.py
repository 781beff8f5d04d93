"""Class metrics against counting by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from darkarc.evaluation.classes import (
    calibration_error,
    class_standard_errors,
    rank_area,
    roc_curve,
    score_classes,
)


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    weight = np.exp(rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[labels])
    return labels, weight / weight.sum(axis=1, keepdims=True)


def test_area_is_the_share_of_pairs_in_the_right_order() -> None:
    labels, probability = drawn(120)
    areas = []
    for index, name in enumerate(("axion", "cdm", "no_sub")):
        own, other = probability[labels == index, index], probability[labels != index, index]
        areas.append(np.mean(own[:, None] > other[None, :]))
        assert score_classes(labels, probability).values[f"auc_{name}"] == pytest.approx(areas[-1])
    assert score_classes(labels, probability).values["class_auc"] == pytest.approx(np.mean(areas))


def test_accuracy_log_loss_and_confusion_by_hand() -> None:
    labels = np.array([0, 1, 2, 2])
    probability = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.2, 0.3, 0.5]])
    scored = score_classes(labels, probability)
    assert scored.values["class_accuracy"] == 0.75
    assert scored.values["class_nll"] == pytest.approx(-np.mean(np.log([0.7, 0.3, 0.8, 0.5])))
    assert scored.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 2]]


def test_a_missing_class_gives_null_with_its_name() -> None:
    labels, probability = drawn(100)
    labels = np.where(labels == 1, 0, labels)
    scored = score_classes(labels, probability)
    assert scored.values["class_auc"] is None and scored.values["auc_cdm"] is None
    assert scored.reasons["class_auc"] == "the test split has no cdm images"
    assert scored.values["auc_axion"] is not None and scored.values["class_accuracy"] is not None


def test_one_class_alone_and_no_images_at_all() -> None:
    scored = score_classes(np.zeros(5, dtype=np.intp), np.tile([0.5, 0.3, 0.2], (5, 1)))
    assert scored.reasons["auc_axion"] == "the test split has only axion images"
    assert scored.values["class_accuracy"] == 1.0
    nothing = score_classes(np.empty(0, dtype=np.intp), np.empty((0, 3)))
    assert set(nothing.values.values()) == {None}
    assert nothing.reasons["class_accuracy"] == "no image has a class"


def test_bootstrap_error_of_the_accuracy_is_binomial() -> None:
    labels, probability = drawn(600)
    errors = class_standard_errors(labels, probability, seed=0, resamples=100)
    share = score_classes(labels, probability).values["class_accuracy"]
    assert errors["class_accuracy"] == pytest.approx(np.sqrt(share * (1 - share) / 600), rel=0.3)
    assert errors == class_standard_errors(labels, probability, seed=0, resamples=100)


def test_calibration_error_by_hand() -> None:
    # Three bins have images: 0.1 and 0.15, one of two right; 0.85, right; 1 and 0.95, one of two right.
    probability = np.array([0.1, 0.15, 0.85, 1.0, 0.95])
    is_class = np.array([True, False, True, True, False])
    expected = (abs(0.25 - 1) + abs(0.85 - 1) + abs(1.95 - 1)) / 5
    assert calibration_error(is_class, probability) == pytest.approx(expected)


def test_calibration_error_is_that_of_scikit_learns_reliability_curve() -> None:
    labels, probability = drawn(500)
    values = score_classes(labels, probability).values
    expected = []
    for index, name in enumerate(("axion", "cdm", "no_sub")):
        share, mean = calibration_curve(labels == index, probability[:, index], n_bins=10)
        number = np.histogram(probability[:, index], bins=10, range=(0, 1))[0]
        expected.append(np.abs(share - mean) @ number[number > 0] / 500)
        assert values[f"ece_{name}"] == pytest.approx(expected[-1])
    assert values["class_ece"] == pytest.approx(np.mean(expected))


def test_only_calibrated_probabilities_have_a_small_calibration_error() -> None:
    rng = np.random.default_rng(0)
    probability = rng.dirichlet([1, 0.5, 0.5], 20_000)
    labels = (rng.random(20_000)[:, None] > probability.cumsum(axis=1)).sum(axis=1)
    honest = score_classes(labels, probability).values
    sharper = probability**2 / (probability**2).sum(axis=1, keepdims=True)
    boastful = score_classes(labels, sharper).values
    for name in ("class_ece", "ece_axion", "ece_cdm", "ece_no_sub"):
        assert honest[name] < 0.01 < 0.04 < boastful[name]
    assert honest["class_auc"] == pytest.approx(boastful["class_auc"], abs=0.01)


def test_roc_curve_encloses_the_area() -> None:
    labels, probability = drawn(200)
    false_positive, true_positive = roc_curve(labels, probability, 2)
    area = np.trapezoid(true_positive, false_positive)
    assert area == pytest.approx(score_classes(labels, probability).values["auc_no_sub"])


def test_area_by_ranks_is_scikit_learns_with_ties() -> None:
    labels, probability = drawn(150)
    coarse = probability.round(1)
    for index in range(3):
        expected = roc_auc_score(labels == index, coarse[:, index])
        assert rank_area(labels == index, coarse[:, index]) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(rank_area(np.ones(3, dtype=bool), np.zeros(3)))
