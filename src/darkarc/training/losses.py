"""What an answer about one target costs: the objectives of `train.objective`, each (B,), before any mean.

nll and beta_nll are in nats; crps, pinball, mae, huber and rmse in units of the target, mse in their
square. Which heads an objective trains is `config.OBJECTIVE_HEADS`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from darkarc.config import TrainConfig
from darkarc.models import Grid, Head
from darkarc.models.heads import GaussianHead, PointHead, QuantileHead

Loss = Callable[[Head, Tensor, Tensor, Grid, TrainConfig], Tensor]
"""(head, its outputs (B, n_outputs), truths (B,), grid, settings) -> (B,)."""


def nll(head: Head, outputs: Tensor, truth: Tensor, grid: Grid, train: TrainConfig) -> Tensor:
    """Negative log density at the truth, blurred by `train.label_sigma_dex`."""
    return head.loss(outputs, truth, grid, train.label_sigma_dex)


def prior_cross_entropy(head: Head, outputs: Tensor, grid: Grid) -> Tensor:
    """(B,) the mean of the negative log density over the prior, in nats.

    A histogram mixed with the uniform one, (1 - s) h + s / K, has the cross-entropy (1 - s) nll + s this.
    """
    log_probability = functional.log_softmax(head.logits(outputs, grid), dim=1)
    return math.log(grid.width) - log_probability.mean(dim=1)


def crps(head: Head, outputs: Tensor, truth: Tensor, grid: Grid, train: TrainConfig) -> Tensor:
    """Continuous ranked probability score, the integral of (F(x) - [x >= truth])^2 (Gneiting & Raftery 2007).

    Exact for the piecewise linear F of the grid: a linear piece from a to b contributes its length times
    (a² + ab + b²) / 3.
    """
    probability = functional.softmax(head.logits(outputs, grid), dim=1)
    above = functional.pad(probability.cumsum(dim=1), (1, 0))
    low, high = above[:, :-1], above[:, 1:]
    # Of each bin, the share left of the truth: 1 below it, 0 above it.
    share = ((truth[:, None] - grid.edges[:-1].float()) / grid.width).clamp(0, 1)
    middle = low + share * (high - low)
    left = share * _mean_square(low, middle)
    right = (1 - share) * _mean_square(1 - middle, 1 - high)
    return grid.width * (left + right).sum(dim=1)


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    return (a**2 + a * b + b**2) / 3


def beta_nll(head: Head, outputs: Tensor, truth: Tensor, grid: Grid, train: TrainConfig) -> Tensor:
    """nll times the variance (in units of the prior range) to the power `train.beta`, which gets no gradient
    (Seitzer et al., arXiv:2203.09168, eq. 6): 0 is nll, 1 pulls at every mean as mse does."""
    assert isinstance(head, GaussianHead)
    _, sigma = head.mean_and_sigma(outputs, grid)
    weight = (sigma.squeeze(1) / grid.span).detach() ** (2 * train.beta)
    return weight * nll(head, outputs, truth, grid, train)


def pinball(head: Head, outputs: Tensor, truth: Tensor, grid: Grid, train: TrainConfig) -> Tensor:
    """Mean over the levels t of max(t (y - q), (t - 1) (y - q)) (Koenker & Bassett 1978)."""
    assert isinstance(head, QuantileHead)
    error = truth[:, None] - head.quantiles(outputs, grid)
    levels = head.levels.to(error)
    return torch.maximum(levels * error, (levels - 1) * error).mean(dim=1)


def _error(head: Head, outputs: Tensor, truth: Tensor, grid: Grid) -> Tensor:
    assert isinstance(head, PointHead)
    return head.estimate(outputs, grid) - truth


def mse(head: Head, outputs: Tensor, truth: Tensor, grid: Grid, train: TrainConfig) -> Tensor:
    return _error(head, outputs, truth, grid) ** 2


def mae(head: Head, outputs: Tensor, truth: Tensor, grid: Grid, train: TrainConfig) -> Tensor:
    return _error(head, outputs, truth, grid).abs()


def huber(head: Head, outputs: Tensor, truth: Tensor, grid: Grid, train: TrainConfig) -> Tensor:
    """e² / 2d up to |e| = d = `train.huber_delta`, |e| - d / 2 beyond: mse, then mae."""
    error = _error(head, outputs, truth, grid)
    nought = torch.zeros_like(error)
    return functional.smooth_l1_loss(error, nought, reduction="none", beta=train.huber_delta)


LOSSES: dict[str, Loss] = {
    "nll": nll,
    "crps": crps,
    "beta_nll": beta_nll,
    "pinball": pinball,
    "mse": mse,
    "rmse": mse,
    "mae": mae,
    "huber": huber,
}


def finish(objective: str, mean: Tensor) -> Tensor:
    """From the mean over samples to what is minimised: rmse takes the root."""
    # Without the floor the root's slope is infinite where every error is 0.
    return mean.clamp_min(1e-12).sqrt() if objective == "rmse" else mean
