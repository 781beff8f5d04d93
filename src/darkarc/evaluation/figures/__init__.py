"""Figures of an evaluation, each a function from numbers to a matplotlib `Figure`."""

from darkarc.evaluation.figures.accuracy import error_figure, prediction_figure
from darkarc.evaluation.figures.calibration import calibration_figure
from darkarc.evaluation.figures.classes import classes_figure
from darkarc.evaluation.figures.examples import examples_figure
from darkarc.evaluation.figures.frontier import frontier_figure
from darkarc.evaluation.figures.published import published_figure
from darkarc.evaluation.figures.strangers import strangers_figure
from darkarc.evaluation.figures.training import learning_figure

__all__ = [
    "calibration_figure",
    "classes_figure",
    "error_figure",
    "examples_figure",
    "frontier_figure",
    "learning_figure",
    "prediction_figure",
    "published_figure",
    "strangers_figure",
]
