"""After training: the calibration split, which training never saw, mends the widths of the posteriors."""

from typing import cast

import torch

from darkarc.config import DEFAULT_TARGET, Config
from darkarc.data.batches import ImageSource
from darkarc.data.store import Store
from darkarc.models import Grid, Recalibration, Regressor
from darkarc.training.fit_novelty import scale_split
from darkarc.training.fit_vortex import fit_vortex, lenses_to_fit
from darkarc.training.objectives import VALIDATION_BATCH
from darkarc.training.smooth_bins import smooth_bins

LEAST_IMAGES = 30
"""With fewer truths a target keeps its own widths: the correction would be mostly chance."""


def check_calibration(config: Config, prepared: Store) -> None:
    """Raise now the `BatchError` that `recalibrate` or `fit_novelty` would raise when everything is trained.

    Reads the table of the prepared store and none of its images.
    """
    if config.model.novelty != "none":
        ImageSource(prepared, scale_split(prepared), config.targets, memory_gb=0)
    if not _wanted(config):
        return
    source = ImageSource(prepared, "calibration", config.targets, memory_gb=0)
    # A vortex_fit without the axion mass is refused by the regressor, which training makes first.
    if config.model.vortex_fit and DEFAULT_TARGET in config.targets:
        lenses_to_fit(source, list(config.targets).index(DEFAULT_TARGET))


def _wanted(config: Config) -> bool:
    return config.model.recalibration != "none" or config.model.vortex_fit


def recalibrate(config: Config, regressor: Regressor, prepared: Store) -> dict[str, float]:
    """On the calibration split: smooth the bins, fit the vortex's weight and `model.recalibration`.

    After `fit_novelty`, for `local` makes use of the novelty.
    Returns what to log: `recalibration/n` images used, `recalibration/temperature` of the first target,
    `smooth_bins/gain_nats` with `model.smooth_bins` and `vortex_fit/gain_nats` with `model.vortex_fit`.
    Raises `BatchError` if there is no calibration split; before a training `check_calibration` does.
    """
    if not _wanted(config):
        return {}
    device = next(regressor.parameters()).device
    source = ImageSource(
        prepared, "calibration", config.targets, memory_gb=config.data.memory_gb, device=device
    )
    features, novelty = _features(regressor, source)
    logged: dict[str, float] = {}
    if config.model.smooth_bins:
        gain = smooth_bins(regressor, features, source.truth, novelty)
        logged |= {} if gain is None else {"smooth_bins/gain_nats": gain}
    with torch.inference_mode():
        logits = regressor.network_logits(regressor.answers(features)[0])
    if regressor.vortex_fit is not None:
        logged["vortex_fit/gain_nats"] = fit_vortex(regressor, source, features, logits)
    for t, (grid, item) in enumerate(zip(regressor.grids, regressor.recalibrations, strict=True)):
        grid, recalibration = cast(Grid, grid), cast(Recalibration, item)
        known = source.truth[:, t].isfinite()
        if int(known.sum()) < LEAST_IMAGES:
            continue
        place = (source.truth[known, t].double() - grid.low) / grid.width
        recalibration.fit(logits[t][known], place, None if novelty is None else novelty[known])
    first = cast(Recalibration, regressor.recalibrations[0])
    return logged | {
        "recalibration/n": float(source.truth[:, 0].isfinite().sum()),
        "recalibration/temperature": float(first.temperature),
    }


@torch.inference_mode()
def _features(regressor: Regressor, source: ImageSource) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(N, F) of a whole split, and the images' novelty (N,), None if the regressor gives none."""
    regressor.eval()
    found, novelties = [], []
    for indices in torch.arange(len(source), device=source.device).split(VALIDATION_BATCH):
        images = source.batch(indices).images
        features, channels = regressor.seen(images)
        found.append(features)
        novelties.append(regressor.novelty_of(images, features, channels))
    known = [novelty for novelty in novelties if novelty is not None]
    return torch.cat(found), torch.cat(known) if known else None
