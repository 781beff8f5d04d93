"""`point`: one number, as a regression without uncertainty gives it, and the width of its errors."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from darkarc.config import ModelConfig
from darkarc.models.heads.base import Head
from darkarc.models.heads.grid import Grid


class PointHead(Head):
    """An estimate, which a point loss trains, with half of the probability on either side of it.

    A point loss knows no density. It arises from a second number, the width of two halves of a normal
    distribution, each cut to the prior range and normalised to 1/2: the posterior's median is then the
    estimate (to within its bin), however wide the errors and however near the end of the range. The width
    is learnt from the likelihood of the errors, which never moves the estimate: it is held fixed here. A
    recalibration's temperature, if it is far from 1, moves the median of an answer near an end.
    """

    def __init__(self, model: ModelConfig) -> None:
        self.n_outputs = 2

    def estimate(self, outputs: Tensor, grid: Grid) -> Tensor:
        """(B, 2) -> (B,), in units of the target; it may leave the prior range, the median does not."""
        return (grid.low + grid.high) / 2 + grid.span * outputs[:, 0]

    def logits(self, outputs: Tensor, grid: Grid) -> Tensor:
        # In bins from the lower edge: near 0 a float32 is finer than near -24.
        centre = (grid.bins * (outputs[:, :1].detach() + 0.5)).clamp(1e-3, grid.bins - 1e-3)
        sigma = 1 + grid.bins * functional.softplus(outputs[:, 1:] + 1.0)
        bins = torch.arange(grid.bins, device=outputs.device)
        parabola = -0.5 * ((bins + 0.5 - centre) / sigma) ** 2  # (B, K)
        below = (centre - bins).clamp(0, 1)  # of each bin
        return torch.logaddexp(_half(parabola, below), _half(parabola, 1 - below))


def _half(parabola: Tensor, share: Tensor) -> Tensor:
    """(B, K) log probabilities of one side, together 1/2; `share` (B, K) of each bin belongs to it."""
    side = parabola + share.clamp_min(1e-30).log()
    return side - torch.logsumexp(side, dim=1, keepdim=True) - math.log(2)
