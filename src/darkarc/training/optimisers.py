"""AdamW and the learning-rate policies, all pure functions of the step and a small state."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from darkarc.config import TrainConfig

INITIAL_SHARE = 1 / 25
FINAL_SHARE = 1 / 2000
"""One-cycle starts and ends at these shares of the highest rate."""


def build_optimiser(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of `train.optimiser`; weight decay acts on matrices and kernels only.

    Decaying norms and biases (one-dimensional parameters) pulls scales to zero without regularising.
    """
    return OPTIMISERS[train.optimiser](model, train)


def _adamw(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=(0.9, 0.99))


OPTIMISERS: dict[str, Callable[[nn.Module, TrainConfig], torch.optim.Optimizer]] = {"adamw": _adamw}


@dataclass
class Plateau:
    """State of reduce-on-plateau: how often the rate was cut, and epochs since the last gain."""

    best: float = math.inf
    waited: int = 0
    cuts: int = 0

    def observe(self, val_loss: float, patience: int) -> None:
        """Count an epoch; more than `patience` epochs without gain cut the rate once more."""
        if val_loss < self.best:
            self.best, self.waited = val_loss, 0
            return
        self.waited += 1
        if self.waited > patience:
            self.waited, self.cuts = 0, self.cuts + 1


def learning_rate(train: TrainConfig, step: int, n_steps: int, plateau: Plateau) -> float:
    """The rate of one step of `n_steps`.

    one_cycle: half a cosine up over the share `warmup` of all steps, half a cosine down to almost 0
    over the rest (Smith & Topin, arXiv:1708.07120). plateau: the highest rate, times
    `plateau_factor` for every cut.
    """
    peak = train.learning_rate
    if train.policy == "plateau":
        return peak * train.plateau_factor**plateau.cuts
    top = max(0.0, train.warmup * n_steps - 1)
    if step < top:
        return peak * _cosine(INITIAL_SHARE, 1.0, step / top)
    return peak * _cosine(1.0, FINAL_SHARE, (step - top) / max(1.0, n_steps - 1 - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
