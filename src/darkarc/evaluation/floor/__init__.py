"""The information floor: exact posteriors of images whose physics and noise are known."""

from darkarc.evaluation.floor.beside import Beside, compute_beside
from darkarc.evaluation.floor.cramer_rao import CramerRao, cramer_rao
from darkarc.evaluation.floor.likelihood import NoFloor, why_no_floor
from darkarc.evaluation.floor.posterior import ExactAnswer, exact_answers, exact_posterior
from darkarc.evaluation.floor.stage import floor_stage

__all__ = [
    "Beside",
    "CramerRao",
    "ExactAnswer",
    "NoFloor",
    "compute_beside",
    "cramer_rao",
    "exact_answers",
    "exact_posterior",
    "floor_stage",
    "why_no_floor",
]
