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

    Keys: `recalibration/n` images used and `recalibration/temperature` of the first target.
    Raises `BatchError` if there is no calibration split.
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
        logits = regressor.head.logits(outputs[known, t], grid)
        recalibration.fit(logits, (source.truth[known, t].double() - grid.low) / grid.width)
    first = cast(Recalibration, regressor.recalibrations[0])
    return {
        "recalibration/n": float(source.truth[:, 0].isfinite().sum()),
        "recalibration/temperature": float(first.temperature),
    }


@torch.inference_mode()
def _outputs(regressor: Regressor, source: ImageSource) -> torch.Tensor:
    """(N, T, n_outputs) of a whole split."""
    regressor.eval()
    parts = [
        regressor.head_outputs(source.batch(indices).images)[0]
        for indices in torch.arange(len(source), device=source.device).split(VALIDATION_BATCH)
    ]
    return torch.cat(parts)
