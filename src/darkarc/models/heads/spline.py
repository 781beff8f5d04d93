"""`spline`: a normalising flow on the bounded prior, one monotone rational-quadratic spline."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from darkarc.config import ModelConfig
from darkarc.models.heads.base import Head
from darkarc.models.heads.grid import Grid

LEAST_WIDTH = 1e-3
LEAST_HEIGHT = 1e-5
LEAST_SLOPE = 1e-4
"""Of a piece of the spline, in units where range and probability are 1: no density is 0 or infinite."""


class SplineHead(Head):
    """The cumulative distribution as a spline of `model.knots` pieces (Durkan et al., arXiv:1906.04032).

    Free are widths and heights of the pieces and the slopes at all knots, the two ends included. The logits
    are the logarithms of its derivative, the density, at the centres of the bins (eq. 5 there).
    """

    def __init__(self, model: ModelConfig) -> None:
        self.pieces = model.knots
        self.n_outputs = 3 * model.knots + 1

    def knots(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3 S + 1) -> widths and heights of the pieces (B, S), slopes at the knots (B, S + 1)."""
        shape = (self.pieces, self.pieces, self.pieces + 1)
        width, height, slope = outputs.split(shape, dim=1)
        width = LEAST_WIDTH + (1 - LEAST_WIDTH * self.pieces) * functional.softmax(width, dim=1)
        height = LEAST_HEIGHT + (1 - LEAST_HEIGHT * self.pieces) * functional.softmax(height, dim=1)
        one = math.log(math.expm1(1 - LEAST_SLOPE))  # before training every slope is 1
        return width, height, LEAST_SLOPE + functional.softplus(slope + one)

    def logits(self, outputs: Tensor, grid: Grid) -> Tensor:
        width, height, slope = self.knots(outputs)
        right = width.cumsum(dim=1)  # (B, S)
        x = ((grid.centres - grid.low) / grid.span).expand(outputs.shape[0], -1)  # (B, K)
        piece = (right[:, None, :-1] < x[:, :, None]).to(torch.int64).sum(dim=2)  # (B, K)
        start, step = (right - width).gather(1, piece), width.gather(1, piece)
        mean_slope = (height / width).gather(1, piece)
        left_slope, right_slope = slope[:, :-1].gather(1, piece), slope[:, 1:].gather(1, piece)
        share = ((x - start) / step).clamp(0, 1)
        both = share * (1 - share)
        above = right_slope * share**2 + 2 * mean_slope * both + left_slope * (1 - share) ** 2
        below = mean_slope + (right_slope + left_slope - 2 * mean_slope) * both
        return 2 * mean_slope.log() + above.log() - 2 * below.log()
