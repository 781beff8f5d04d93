"""Data and model to a trained regressor: engine, objectives, optimisers, checkpoints."""

from darkarc.training.assembly import TrainingError, choose_device, new_regressor
from darkarc.training.checkpoints import Progress
from darkarc.training.engine import TrainResult, train
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
