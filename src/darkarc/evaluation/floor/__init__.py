"""The information floor: exact posteriors of images whose physics and noise are known."""

from darkarc.evaluation.floor.beside import Beside, compute_beside
from darkarc.evaluation.floor.cramer_rao import CramerRao, cramer_rao
from darkarc.evaluation.floor.likelihood import NoFloor
from darkarc.evaluation.floor.posterior import exact_posterior
from darkarc.evaluation.floor.stage import floor_stage

__all__ = [
    "Beside",
    "CramerRao",
    "NoFloor",
    "compute_beside",
    "cramer_rao",
    "exact_posterior",
    "floor_stage",
]
