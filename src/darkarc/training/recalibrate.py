"""After training: the calibration split, which training never saw, mends the widths of the posteriors."""

from typing import cast

import torch

from darkarc.config import Config
from darkarc.data.batches import ImageSource
from darkarc.data.store import Store
from darkarc.models import Grid, Recalibration, Regressor
from darkarc.training.objectives import VALIDATION_BATCH

LEAST_IMAGES = 30
"""With fewer truths a target keeps its own widths: the correction would be mostly chance."""


def recalibrate(config: Config, regressor: Regressor, prepared: Store) -> dict[str, float]:
    """Fit `model.recalibration` of every target on the calibration split; returns what to log.

    Keys: `recalibration/n` images used, and `recalibration/temperature` of the first target where that is
    the method. Raises `BatchError` if there is no calibration split.
    """
    if config.model.recalibration == "none":
        return {}
    device = next(regressor.parameters()).device
    source = ImageSource(
        prepared, "calibration", config.targets, memory_gb=config.data.memory_gb, device=device
    )
    outputs = _outputs(regressor, source)
    for t, (grid, item) in enumerate(zip(regressor.grids, regressor.recalibrations, strict=True)):
        grid, recalibration = cast(Grid, grid), cast(Recalibration, item)
        known = source.truth[:, t].isfinite()
        if int(known.sum()) < LEAST_IMAGES:
            continue
        truth = source.truth[known, t].double()
        logits = regressor.head.logits(outputs[known, t], grid)
        place = ((truth - grid.low) / grid.width).clamp(0, grid.bins)
        bins = place.to(torch.int64).clamp(max=grid.bins - 1)
        probability = logits.double().softmax(dim=1)
        own = probability.gather(1, bins[:, None]).squeeze(1)
        pit = probability.cumsum(dim=1).gather(1, bins[:, None]).squeeze(1) - own * (1 - (place - bins))
        recalibration.fit(logits, bins, pit.clamp(0, 1))
    first = cast(Recalibration, regressor.recalibrations[0])
    logged = {"recalibration/n": float(source.truth[:, 0].isfinite().sum())}
    if config.model.recalibration == "temperature":
        logged["recalibration/temperature"] = float(first.temperature)
    return logged


@torch.inference_mode()
def _outputs(regressor: Regressor, source: ImageSource) -> torch.Tensor:
    """(N, T, n_outputs) of a whole split."""
    regressor.eval()
    parts = [
        regressor.head_outputs(source.batch(indices).images)[0]
        for indices in torch.arange(len(source), device=source.device).split(VALIDATION_BATCH)
    ]
    return torch.cat(parts)
