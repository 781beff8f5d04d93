"""After training: how far a fitted vortex is to be believed, learned on lenses that training never saw."""

import torch
from torch import Tensor

from darkarc.config import DEFAULT_TARGET
from darkarc.data.batches import BatchError, ImageSource
from darkarc.models import Grid, Regressor
from darkarc.training.objectives import VALIDATION_BATCH

LEAST_LENSES = 300
"""With fewer axion-like lenses the weight of the fit would be mostly chance."""


def lenses_to_fit(source: ImageSource, t: int) -> Tensor:
    """Positions (M,) in a split of the lenses of known source, vortex and mass, which is target number t.

    Raises `BatchError` where they are fewer than `LEAST_LENSES`: simulated lenses have all three.
    """
    known = (source.truth[:, t].isfinite() & source.auxiliary.isfinite().all(dim=1)).nonzero().squeeze(1)
    if len(known) < LEAST_LENSES:
        raise BatchError(
            f"model.vortex_fit: expected at least {LEAST_LENSES} axion-like lenses with source_x_arcsec, "
            f"source_y_arcsec and vortex_angle_rad in the {source.split} split, found {len(known)}: raise "
            f"prepare.{source.split}, or set model.vortex_fit to false"
        )
    return known


def fit_vortex(regressor: Regressor, source: ImageSource, features: Tensor, logits: list[Tensor]) -> float:
    """Fit `regressor.vortex_fit` on the split `source`; returns what a lens gains by it, in nats.

    features (N, F) and logits [(N, K)] of the split's images, from the network; the axion mass's logits
    become those of the mixture in place. Raises what `lenses_to_fit` raises.
    """
    fit = regressor.vortex_fit
    assert fit is not None
    t = regressor.targets.index(DEFAULT_TARGET)
    grid = regressor.grids[t]
    assert isinstance(grid, Grid)
    known = lenses_to_fit(source, t)
    fit.fit_reading(features[known], source.auxiliary[known])
    with torch.inference_mode():
        facts = torch.cat(
            [
                fit.measure(source.batch(rows).images, features[rows], logits[t][rows])
                for rows in torch.arange(len(source), device=source.device).split(VALIDATION_BATCH)
            ]
        )
    facts = facts.clone()
    place = (source.truth[known, t].double() - grid.low) / grid.width
    gain = fit.fit_weight(logits[t][known], facts[known], place)
    with torch.inference_mode():
        logits[t] = fit.mixed(logits[t], facts)
    return gain
