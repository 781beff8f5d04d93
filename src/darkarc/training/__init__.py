"""Data and model to a trained regressor: engine, objectives, optimisers, checkpoints."""

from darkarc.training.checkpoints import Progress
from darkarc.training.engine import TrainingError, TrainResult, choose_device, new_regressor, train
from darkarc.training.fingerprint import training_digest
from darkarc.training.interruption import TrainingInterrupted

__all__ = [
    "Progress",
    "TrainResult",
    "TrainingError",
    "TrainingInterrupted",
    "choose_device",
    "new_regressor",
    "train",
    "training_digest",
]
