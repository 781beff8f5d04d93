"""Configuration: `params.yaml` to and from frozen, validated sections.

Every key of `params.yaml` is a field here, with its meaning and its bounds; an unknown or misspelt
key is an error that names it and proposes the nearest one. `load` reads a file and applies
overrides (`train.epochs=3`); `Config.dump()` gives it back.
"""

from darkarc.config._answers import EvaluateConfig, ExportConfig, RegisterConfig, ServeConfig, TrackingConfig
from darkarc.config._config import Config, flatten, parse, without_schedule
from darkarc.config._data import DataConfig, IngestConfig, OutlierConfig, PrepareConfig, SimulateConfig
from darkarc.config._file import load, template
from darkarc.config._model import ModelConfig
from darkarc.config._section import (
    CLASSES,
    DEFAULT_TARGET,
    SEEDS,
    TARGET_CLASS,
    TARGET_UNIT,
    ConfigError,
    Distances,
    Noise,
    PresetName,
    Section,
    Share,
    in_unit,
    with_unit,
)
from darkarc.config._train import OBJECTIVE_HEADS, SCHEDULABLE, ScheduleStep, TrainConfig, TuneConfig

__all__ = [
    "CLASSES",
    "DEFAULT_TARGET",
    "OBJECTIVE_HEADS",
    "SCHEDULABLE",
    "SEEDS",
    "TARGET_CLASS",
    "TARGET_UNIT",
    "Config",
    "ConfigError",
    "DataConfig",
    "Distances",
    "EvaluateConfig",
    "ExportConfig",
    "IngestConfig",
    "ModelConfig",
    "Noise",
    "OutlierConfig",
    "PrepareConfig",
    "PresetName",
    "RegisterConfig",
    "ScheduleStep",
    "Section",
    "ServeConfig",
    "Share",
    "SimulateConfig",
    "TrackingConfig",
    "TrainConfig",
    "TuneConfig",
    "flatten",
    "in_unit",
    "load",
    "parse",
    "template",
    "with_unit",
    "without_schedule",
]
