"""Images to posteriors: backbones, heads, the `Regressor` and its `Posterior`."""

from darkarc.models.backbones import BACKBONES, Backbone
from darkarc.models.heads import HEADS, Grid, Head
from darkarc.models.population import PopulationError, combine
from darkarc.models.posterior import Posterior, PosteriorError
from darkarc.models.preprocessing import StatisticsError
from darkarc.models.recalibration import Recalibration
from darkarc.models.regressor import (
    QUANTILE_LEVELS,
    Prediction,
    Regressor,
    RegressorError,
    RegressorSpec,
    as_image_batch,
    load_regressor,
    save_regressor,
)
from darkarc.models.sealed import SealError, read_sealed, write_sealed

__all__ = [
    "BACKBONES",
    "HEADS",
    "QUANTILE_LEVELS",
    "Backbone",
    "Grid",
    "Head",
    "PopulationError",
    "Posterior",
    "PosteriorError",
    "Prediction",
    "Recalibration",
    "Regressor",
    "RegressorError",
    "RegressorSpec",
    "SealError",
    "StatisticsError",
    "as_image_batch",
    "combine",
    "load_regressor",
    "read_sealed",
    "save_regressor",
    "write_sealed",
]
