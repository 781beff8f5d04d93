"""Model and data in, evidence out: metrics, calibration, figures, report, model card."""

from darkarc.evaluation.card import model_card
from darkarc.evaluation.context import describe_data
from darkarc.evaluation.evaluate import evaluate
from darkarc.evaluation.metrics import EvaluationError, Scores, score, standard_errors, summarise
from darkarc.evaluation.predictions import Predictions, predict_split, read_test_errors
from darkarc.evaluation.published import published_results

__all__ = [
    "EvaluationError",
    "Predictions",
    "Scores",
    "describe_data",
    "evaluate",
    "model_card",
    "predict_split",
    "published_results",
    "read_test_errors",
    "score",
    "standard_errors",
    "summarise",
]
