"""Seconds before hours: a long training first has to learn one batch by heart.

What cannot do that (a backbone that passes nothing on, a gradient that goes nowhere, labels that are not
where the loss looks for them) would cost its hours and end with the prior.
"""

from copy import deepcopy

import torch

from darkarc.config import TrainConfig
from darkarc.data.batches import Batch
from darkarc.models import Regressor
from darkarc.training.assembly import TrainingError
from darkarc.training.objectives import autocast, objective

LONG_TRAINING_STEPS = 2000
"""Trainings of fewer steps are over before a look would pay."""

BATCH = 32
STEPS = 80
GAIN = 0.2
"""The loss must fall by this, or by this share of its start, whichever is less."""

_RATE = 2e-3


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
