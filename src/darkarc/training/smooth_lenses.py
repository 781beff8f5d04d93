"""Fits what the model's preprocessing has to know of the train split's smooth lenses."""

import numpy as np
import torch
from torch import Tensor

from darkarc.config import Config
from darkarc.data.augmentation import Augmentation
from darkarc.data.batches import BatchError, as_tensor, split_rows
from darkarc.data.store import Store
from darkarc.models import Regressor
from darkarc.models.smooth_residual import IMAGES

SCALE_IMAGES = 512
"""So many train images of all classes, at most, tell the scale of the residual channel."""


@torch.inference_mode()
def fit_preprocessing(regressor: Regressor, config: Config, prepared: Store) -> None:
    """Fit `model.residual` to the no_sub images of the train split, as training shows them.

    They are augmented as in the first epoch: a flipped source is another source.
    Raises `BatchError` if there are too few of them.
    """
    residual = regressor.standardise.residual
    if residual is None:
        return
    rows = split_rows(prepared, "train")
    names = np.asarray(prepared.samples.column("class").to_pylist(), dtype=object)[rows]
    smooth = np.flatnonzero(names == "no_sub")
    if len(smooth) <= config.model.residual:
        raise BatchError(
            f"{prepared.path}: model.residual: {config.model.residual} principal components of smooth lenses "
            f"take more than as many no_sub images in the train split, and there are {len(smooth)}: give it "
            "more of them (simulate.n_no_sub), or set model.residual lower or to 0"
        )
    augmentation = Augmentation.of(config, prepared)

    def standardised(positions: np.ndarray, at_most: int) -> Tensor:
        chosen = positions[np.linspace(0, len(positions) - 1, min(at_most, len(positions))).astype(int)]
        images = as_tensor(prepared.images(rows[chosen]))
        seen = augmentation.images(images, torch.from_numpy(chosen), epoch=0)
        return regressor.standardise.linear(seen)

    residual.fit(
        standardised(smooth, max(IMAGES, 4 * config.model.residual)),
        standardised(np.arange(len(rows)), SCALE_IMAGES),
    )
