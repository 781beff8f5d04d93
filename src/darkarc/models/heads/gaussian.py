"""`gaussian`: a normal distribution cut to the prior range."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from darkarc.config import ModelConfig
from darkarc.models.heads.base import Head
from darkarc.models.heads.grid import Grid


class GaussianHead(Head):
    """A normal distribution of free mean and width, cut to the prior range.

    On the grid its logits are a parabola, so the softmax is the truncation's normalisation and stays
    finite wherever the mean wanders. The width is at least one bin: the grid shows nothing finer.
    """

    def __init__(self, model: ModelConfig) -> None:
        self.n_outputs = 2

    def mean_and_sigma(self, outputs: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """(B, 2) -> (B, 1) each, of the normal distribution before it is cut, in units of the target."""
        mean = (grid.low + grid.high) / 2 + grid.span * outputs[:, :1]
        sigma = grid.width + grid.span * functional.softplus(outputs[:, 1:] + 1.0)
        return mean, sigma

    def logits(self, outputs: Tensor, grid: Grid) -> Tensor:
        mean, sigma = self.mean_and_sigma(outputs, grid)
        return -0.5 * ((grid.centres - mean) / sigma) ** 2

    def loss(self, outputs: Tensor, truth: Tensor, grid: Grid, label_sigma: float) -> Tensor:
        """Heteroscedastic, truncated; `label_sigma` widens it to E[z²] over the blurred label."""
        mean, sigma = self.mean_and_sigma(outputs, grid)
        square = ((truth[:, None] - mean) ** 2 + label_sigma**2) / sigma**2
        normaliser = torch.logsumexp(self.logits(outputs, grid), dim=1) + math.log(grid.width)
        return 0.5 * square.squeeze(1) + normaliser
