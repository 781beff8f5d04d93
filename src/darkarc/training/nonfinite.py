"""What became of an epoch whose numbers are not finite, said so that a person can act; empty if all is well.

Both look at a row of the history, once an epoch, when the device is waited for anyway.
"""

import math

from darkarc.models import Regressor
from darkarc.training.averaging import trained_tensors


def training_trouble(row: dict[str, float], regressor: Regressor) -> str:
    """Of the training loss and of the weights."""
    if not math.isfinite(row["train_loss"]):
        return _when(f"the training loss became {row['train_loss']}", row)
    if not all(bool(tensor.isfinite().all()) for tensor in trained_tensors(regressor).values()):
        return _when("a weight became infinite or nan", row)
    return ""


def held_out_trouble(row: dict[str, float]) -> str:
    """Of the validation loss: without one that is finite no epoch is the best."""
    if math.isfinite(row["val_loss"]):
        return ""
    return _when(f"the validation loss became {row['val_loss']}", row)


def _when(what: str, row: dict[str, float]) -> str:
    return f"{what} in epoch {row['epoch']:.0f} at a learning rate of {row['learning_rate']:.2g}"
