"""Seconds before hours: a long training first has to learn one batch by heart.

What cannot do that (a backbone that passes nothing on, a gradient that goes nowhere, labels that are not
where the loss looks for them) would cost its hours and end with the prior.
"""

import math
from copy import deepcopy
from typing import cast

import torch

from darkarc.config import TrainConfig
from darkarc.data.batches import Batch, ImageSource
from darkarc.models import Grid, Regressor
from darkarc.training.assembly import TrainingError
from darkarc.training.objectives import autocast, objective, target_nll

LONG_TRAINING_STEPS = 2000
"""Trainings of fewer steps are over before a look would pay."""

BATCH = 32
STEPS = 80
GAIN = 0.2
"""The loss must fall by this, or by this share of its start, whichever is less."""

_RATE = 2e-3

PRIOR_TOLERANCE_NATS = 0.3


def learn_one_batch(regressor: Regressor, batch: Batch, settings: TrainConfig) -> None:
    """Fit a copy of `regressor` to a few images, without regularisation; the regressor stays as it is.

    Raises `TrainingError` if the loss does not fall. Draws from torch's generator.
    """
    learner = deepcopy(regressor).train()
    plain = settings.model_copy(update={"weight_decay": 0.0, "mixup": 0.0, "label_smoothing": 0.0})
    parameters = [p for p in learner.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError("nothing of this model can be trained: no parameter asks for a gradient")
    optimiser = torch.optim.Adam(parameters, lr=_RATE)
    first = last = float("nan")
    for step in range(STEPS):
        with autocast(batch.images.device, plain.precision):
            loss = objective(learner, batch, plain)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        last = float(loss.detach())
        first = last if step == 0 else first
        if last < first - min(GAIN, GAIN * abs(first)):
            return
    raise TrainingError(
        f"before a long training {len(batch.images)} images were to be learnt by heart, but in {STEPS} steps "
        f"the loss went from {first:.3f} to {last:.3f} only: look at model.backbone and its options, at the "
        "images (all alike?) and at their labels; train.sanity: false trains all the same"
    )


@torch.inference_mode()
def check_prior(regressor: Regressor, source: ImageSource, settings: TrainConfig) -> None:
    """Untrained, every target scores its prior, log(range): anything else is a wrong scale or shape."""
    batch = source.batch(torch.arange(min(256, len(source)), device=source.device))
    outputs, _ = regressor.eval().head_outputs(batch.images)
    if not bool(outputs.isfinite().all()):
        raise TrainingError(
            f"the {source.split} images give outputs that are not finite: look for NaN or infinite pixels"
        )
    losses = target_nll(regressor, outputs, batch.truth, settings)
    known = batch.truth.isfinite()
    for t, (name, grid) in enumerate(zip(regressor.targets, regressor.grids, strict=True)):
        prior = math.log(cast(Grid, grid).high - cast(Grid, grid).low)
        scores = losses[:, t][known[:, t]]
        if len(scores) and abs(scores.mean().item() - prior) > PRIOR_TOLERANCE_NATS:
            raise TrainingError(
                f"targets.{name}: untrained, the loss should be about the prior's {prior:.2f} nats, but it "
                f"is {scores.mean().item():.2f}: is train.label_sigma_dex far wider than the prior range?"
            )
