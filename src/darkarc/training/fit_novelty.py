"""After training: what the train split looks like to the regressor, so that it can tell what does not."""

import numpy as np
import torch
from torch import Tensor

from darkarc.config import Config
from darkarc.data.batches import ImageSource
from darkarc.data.store import Store
from darkarc.models import Regressor
from darkarc.training.objectives import VALIDATION_BATCH

MOST_IMAGES = 20_000
"""More train images than that say nothing new about a mixture of a few Gaussians."""


def fit_novelty(config: Config, regressor: Regressor, prepared: Store) -> None:
    """Fit `regressor.novelty` on the train split and its scale on the calibration split.

    Without a calibration split the validation split gives the scale: all it chose was the epoch. Nothing
    happens if `model.novelty` is none.
    """
    if regressor.novelty is None:
        return
    seen = [_seen(config, regressor, prepared, split) for split in ("train", scale_split(prepared))]
    regressor.novelty.fit(*seen)


def scale_split(prepared: Store) -> str:
    """The split that says how rare a novelty is: `calibration`, or `validation` where there is none."""
    splits = prepared.samples["split"].unique().to_pylist()
    return "calibration" if "calibration" in splits else "validation"


@torch.inference_mode()
def _seen(config: Config, regressor: Regressor, prepared: Store, split: str) -> list[Tensor]:
    """What the novelty measures of a split, (N, ...) each, of at most `MOST_IMAGES` evenly spaced images."""
    assert regressor.novelty is not None
    regressor.eval()
    device = next(regressor.parameters()).device
    source = ImageSource(prepared, split, config.targets, memory_gb=config.data.memory_gb, device=device)
    chosen = np.linspace(0, len(source) - 1, min(len(source), MOST_IMAGES)).round().astype(np.int64)
    parts = []
    for indices in torch.from_numpy(chosen).to(device).split(VALIDATION_BATCH):
        images = source.batch(indices).images
        parts.append(regressor.novelty.measure(images, *regressor.seen(images)))
    return [torch.cat(column) for column in zip(*parts, strict=True)]
