"""Optimisers of torch and timm, and learning-rate policies, functions of the step and a small state."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from darkarc.config import TrainConfig

INITIAL_SHARE = 1 / 25
FINAL_SHARE = 1 / 2000
"""Policies that rise and fall start and end at these shares of the highest rate."""


def build_optimiser(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of `train.optimiser`; weight decay acts on what has more than one dimension.

    Decaying norms and biases (one-dimensional parameters) pulls scales to zero without regularising.
    Tables of positions, which some transformers add to tokens or scores, decay with the matrices.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return OPTIMISERS[train.optimiser]([group for group in groups if group["params"]], train)


def _adamw(groups: list[dict[str, Any]], train: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas)


def _sgd(groups: list[dict[str, Any]], train: TrainConfig) -> torch.optim.Optimizer:
    """Its decay is added to the gradient, so that the rate times `weight_decay` is what shrinks a weight."""
    return torch.optim.SGD(
        groups, lr=train.learning_rate, momentum=train.momentum, nesterov=train.momentum > 0
    )


def _lamb(groups: list[dict[str, Any]], train: TrainConfig) -> torch.optim.Optimizer:
    """arXiv:1904.00962; gradients are clipped by the engine, not here once more."""
    from timm.optim import Lamb

    return Lamb(groups, lr=train.learning_rate, betas=train.betas, max_grad_norm=None)


def _lion(groups: list[dict[str, Any]], train: TrainConfig) -> torch.optim.Optimizer:
    """arXiv:2302.06675. Its steps are signs: a tenth of AdamW's rate and ten times its decay suit it."""
    from timm.optim import Lion

    return Lion(groups, lr=train.learning_rate, betas=train.betas)


def _muon(groups: list[dict[str, Any]], train: TrainConfig) -> torch.optim.Optimizer:
    """Orthogonalised momentum for matrices and (flattened) kernels, AdamW with Nesterov's momentum for
    all that is thinner.

    Steps are scaled to the size of AdamW's (arXiv:2502.16982), so that one rate serves both.
    """
    from timm.optim import Muon

    return Muon(
        groups,
        lr=train.learning_rate,
        momentum=train.momentum,
        nesterov=True,
        betas=train.betas,
        adjust_lr_fn="match_rms_adamw",
        conv_mode="flatten",
    )


OPTIMISERS: dict[str, Callable[[list[dict[str, Any]], TrainConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "lamb": _lamb,
    "lion": _lion,
    "muon": _muon,
}


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
    """The rate of one step of `n_steps`; the highest one is `train.learning_rate`."""
    return train.learning_rate * POLICIES[train.policy](train, step, n_steps, plateau)


def _one_cycle(train: TrainConfig, step: int, n_steps: int, plateau: Plateau) -> float:
    """Half a cosine up over the share `warmup` of all steps, half a cosine down to almost 0 over the rest
    (Smith & Topin, arXiv:1708.07120)."""
    top = max(0.0, train.warmup * n_steps - 1)
    if step < top:
        return _cosine(INITIAL_SHARE, 1.0, step / top)
    return _cosine(1.0, FINAL_SHARE, (step - top) / max(1.0, n_steps - 1 - top))


def _cosine_decay(train: TrainConfig, step: int, n_steps: int, plateau: Plateau) -> float:
    """A straight line up over the share `warmup`, half a cosine down (SGDR without restarts,
    arXiv:1608.03983)."""
    top = max(0.0, train.warmup * n_steps - 1)
    if step < top:
        return INITIAL_SHARE + (1 - INITIAL_SHARE) * step / top
    return _cosine(1.0, FINAL_SHARE, (step - top) / max(1.0, n_steps - 1 - top))


def _cyclic(train: TrainConfig, step: int, n_steps: int, plateau: Plateau) -> float:
    """`cycles` equal triangles, up and down again (Smith, arXiv:1506.01186, "triangular")."""
    phase = (step / n_steps * train.cycles) % 1.0
    return INITIAL_SHARE + (1 - INITIAL_SHARE) * (1 - abs(2 * phase - 1))


def _reduce_on_plateau(train: TrainConfig, step: int, n_steps: int, plateau: Plateau) -> float:
    return train.plateau_factor**plateau.cuts


def _constant(train: TrainConfig, step: int, n_steps: int, plateau: Plateau) -> float:
    return 1.0


POLICIES: dict[str, Callable[[TrainConfig, int, int, Plateau], float]] = {
    "one_cycle": _one_cycle,
    "cyclic": _cyclic,
    "cosine": _cosine_decay,
    "plateau": _reduce_on_plateau,
    "constant": _constant,
}
"""Shares of the highest rate."""


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
