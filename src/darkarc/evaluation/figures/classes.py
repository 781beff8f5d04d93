"""Telling the classes apart: ROC curves and the confusion matrix."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from darkarc.config import CLASSES
from darkarc.evaluation.classes import ClassScores, roc_curve
from darkarc.evaluation.style import (
    BLACK,
    CLASS_COLOURS,
    CLASS_LABELS,
    GREY,
    PAGE_INCHES,
    new_figure,
    note,
)


def classes_figure(labels: NDArray[np.intp], probability: NDArray[np.float64], scored: ClassScores) -> Figure:
    """One ROC curve a class (against the other two), and how often each class is taken for each."""
    figure = new_figure(PAGE_INCHES * 0.8, 2.75)
    left, right = figure.subplots(1, 2)
    drawn = False
    for index, name in enumerate(CLASSES):
        area = scored.values[f"auc_{name}"]
        if area is not None:
            false_positive, true_positive = roc_curve(labels, probability, index)
            label = f"{CLASS_LABELS[name]}: {area:.3f}"
            left.plot(false_positive, true_positive, color=CLASS_COLOURS[name], label=label)
            drawn = True
    if drawn:
        left.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=0.9)
        left.set_xlim(-0.01, 1)
        left.set_ylim(0, 1.02)
        left.set_xlabel("false positive rate")
        left.set_ylabel("true positive rate")
        left.set_title("One class against the rest")
        left.legend(loc="lower right", title="area under the curve", title_fontsize=7.5)
    else:
        note(left, "the test split has one class only")
    if len(labels) == 0:
        note(right, "no test image has a class")
        return figure
    counts = scored.confusion
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    right.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(CLASSES)):
        for column in range(len(CLASSES)):
            colour = "white" if share[row, column] > 0.5 else BLACK
            text = f"{100 * share[row, column]:.0f}%\n({counts[row, column]})"
            right.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    names = [CLASS_LABELS[name].replace("no substructure", "none") for name in CLASSES]
    right.set_xticks(range(len(CLASSES)), names)
    right.set_yticks(range(len(CLASSES)), names)
    right.spines[:].set_visible(False)
    right.tick_params(length=0)
    right.set_xlabel("predicted class")
    right.set_ylabel("true class")
    right.set_title("Share of each true class")
    return figure
