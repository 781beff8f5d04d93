"""The information floor: exact posteriors of images whose physics and noise are known."""

from darkarc.evaluation.floor.likelihood import NoFloor
from darkarc.evaluation.floor.posterior import exact_posterior
from darkarc.evaluation.floor.stage import floor_stage

__all__ = ["NoFloor", "exact_posterior", "floor_stage"]
