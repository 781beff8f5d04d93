"""Images to posteriors: backbones, heads, the `Regressor` and its `Posterior`."""

from darkarc.models.backbones import BACKBONES, Backbone, BackboneError
from darkarc.models.ensemble import Ensemble
from darkarc.models.heads import HEADS, Grid, Head
from darkarc.models.novelty import RARE, VERY_RARE, Novelty
from darkarc.models.population import Population, PopulationError, combine, join
from darkarc.models.population_errors import PopulationErrors
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
    build_regressor,
    load_regressor,
    save_regressor,
    to_posterior,
)
from darkarc.models.sealed import SealError, read_sealed, sealed_sha256, write_sealed

__all__ = [
    "BACKBONES",
    "HEADS",
    "QUANTILE_LEVELS",
    "RARE",
    "VERY_RARE",
    "Backbone",
    "BackboneError",
    "Ensemble",
    "Grid",
    "Head",
    "Novelty",
    "Population",
    "PopulationError",
    "PopulationErrors",
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
    "build_regressor",
    "combine",
    "join",
    "load_regressor",
    "read_sealed",
    "save_regressor",
    "sealed_sha256",
    "to_posterior",
    "write_sealed",
]
