"""After training: the calibration split, which training never saw, mends the widths of the posteriors."""

from typing import NamedTuple, cast

import torch

from darkarc.config import Config
from darkarc.data.batches import ImageSource
from darkarc.data.store import Store
from darkarc.models import Grid, Recalibration, Regressor
from darkarc.training.fit_vortex import fit_vortex
from darkarc.training.objectives import VALIDATION_BATCH

LEAST_IMAGES = 30
"""With fewer truths a target keeps its own widths: the correction would be mostly chance."""


def recalibrate(config: Config, regressor: Regressor, prepared: Store) -> dict[str, float]:
    """Fit the vortex's weight and `model.recalibration` of every target on the calibration split.

    Returns what to log: `recalibration/n` images used, `recalibration/temperature` of the first target, and
    `vortex_fit/gain_nats` with `model.vortex_fit`.
    Raises `BatchError` if there is no calibration split.
    """
    if config.model.recalibration == "none" and regressor.vortex_fit is None:
        return {}
    device = next(regressor.parameters()).device
    source = ImageSource(
        prepared, "calibration", config.targets, memory_gb=config.data.memory_gb, device=device
    )
    seen = _seen(regressor, source)
    logits = regressor.network_logits(seen.outputs)
    logged: dict[str, float] = {}
    if regressor.vortex_fit is not None:
        logged["vortex_fit/gain_nats"] = fit_vortex(regressor, source, seen.features, logits)
    for t, (grid, item) in enumerate(zip(regressor.grids, regressor.recalibrations, strict=True)):
        grid, recalibration = cast(Grid, grid), cast(Recalibration, item)
        known = source.truth[:, t].isfinite()
        if int(known.sum()) < LEAST_IMAGES:
            continue
        recalibration.fit(logits[t][known], (source.truth[known, t].double() - grid.low) / grid.width)
    first = cast(Recalibration, regressor.recalibrations[0])
    return logged | {
        "recalibration/n": float(source.truth[:, 0].isfinite().sum()),
        "recalibration/temperature": float(first.temperature),
    }


class _Seen(NamedTuple):
    """Of a whole split: features (N, F), and the heads' numbers (N, T, n_outputs)."""

    features: torch.Tensor
    outputs: torch.Tensor


@torch.inference_mode()
def _seen(regressor: Regressor, source: ImageSource) -> _Seen:
    regressor.eval()
    parts = []
    for indices in torch.arange(len(source), device=source.device).split(VALIDATION_BATCH):
        features = regressor.features(source.batch(indices).images)
        parts.append((features, regressor.answers(features)[0]))
    features, outputs = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Seen(features, outputs)
