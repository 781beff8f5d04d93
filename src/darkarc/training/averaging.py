"""Averages of the weights along a training, which answer instead of the last step's."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from darkarc.config import TrainConfig
from darkarc.models import Regressor

REESTIMATION_IMAGES = 8192
"""So many train images, at most, tell the batch-norm statistics of averaged weights."""


class WeightAverage:
    """The regressor that answers: an average by `train.ema` or `train.swa`, or the weights as they are.

    ema: a moving average over steps, of weights and batch-norm statistics alike; its decay grows towards
    `train.ema`, so that the untrained weights are soon forgotten. swa: the mean of the weights at the
    ends of the last epochs (Izmailov et al., arXiv:1803.05407); statistics of different weights do not
    average to those of the mean, so batch norms are estimated anew. All of it is a function of the
    average so far and of the step, so that a checkpoint needs nothing but `state`.
    """

    def __init__(self, regressor: Regressor, train: TrainConfig) -> None:
        self.decay = train.ema
        self.first_epoch = round((1 - train.swa) * train.epochs) if train.swa else train.epochs
        wanted = bool(train.ema or train.swa)
        self.average = copy.deepcopy(regressor).eval().requires_grad_(False) if wanted else None

    @property
    def state(self) -> dict[str, Tensor]:
        return {} if self.average is None else self.average.state_dict()

    def load(self, state: dict[str, Tensor]) -> None:
        if self.average is not None:
            self.average.load_state_dict(state)

    def after_step(self, regressor: Regressor, steps_done: int) -> None:
        """Fold in the weights that a step has left."""
        if self.average is None or not self.decay:
            return
        decay = min(self.decay, steps_done / (steps_done + 9))
        floats, others = _pairs(trained_tensors(self.average), trained_tensors(regressor))
        get_ema_multi_avg_fn(decay)([mine for mine, _ in floats], [new for _, new in floats], None)
        for mine, new in others:
            mine.copy_(new)

    def after_epoch(self, regressor: Regressor, epoch: int, images: Iterable[Tensor]) -> Regressor:
        """The regressor that answers after this epoch (from 0); `images` are augmented train batches."""
        if self.average is None or (not self.decay and epoch < self.first_epoch):
            return regressor
        if not self.decay:
            pairs, _ = _pairs(dict(self.average.named_parameters()), dict(regressor.named_parameters()))
            mean = get_swa_multi_avg_fn()
            mean([mine for mine, _ in pairs], [new for _, new in pairs], epoch - self.first_epoch)
            estimate_statistics(self.average, images)
        return self.average


@torch.no_grad()
def estimate_statistics(regressor: Regressor, images: Iterable[Tensor]) -> None:
    """Batch-norm statistics from the first `REESTIMATION_IMAGES` of raw images (B, 1, H, W), anew.

    All but the norms stays in evaluation mode: answers know neither dropout nor dropped branches.
    """
    norms = [module for module in regressor.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    seen = 0
    for batch in images:
        regressor.head_outputs(batch)
        seen += len(batch)
        if seen >= REESTIMATION_IMAGES:
            break
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def trained_tensors(regressor: Regressor) -> dict[str, Tensor]:
    """All that a step of training changes: weights and the state of batch norms."""
    norms = {
        id(buffer)
        for part in regressor.modules()
        if isinstance(part, _BatchNorm)
        for buffer in part.buffers()
    }
    weights = {id(parameter) for parameter in regressor.parameters()}
    state = regressor.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in state.items() if id(tensor) in norms | weights}


def freeze_norms(module: nn.Module) -> None:
    """Batch norms keep their statistics from here on."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()


def _pairs(
    mine: dict[str, Tensor], new: dict[str, Tensor]
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Tensors of the same name: those of real numbers, and the others (counters)."""
    pairs = [(value, new[name].detach()) for name, value in mine.items()]
    return [p for p in pairs if p[0].is_floating_point()], [p for p in pairs if not p[0].is_floating_point()]
