"""`mixture`: a mixture density network (Bishop 1994) on the bounded prior."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from darkarc.config import ModelConfig
from darkarc.models.heads.base import Head
from darkarc.models.heads.grid import Grid


class MixtureHead(Head):
    """`model.components` normal distributions, each cut to the prior range, with free weights.

    Untrained, they stand evenly over the range, each as wide as its distance from the next: about the
    prior, and no two alike, so that they can part. Each is normalised on the grid, as the `gaussian` head
    is, and at least one bin wide.
    """

    def __init__(self, model: ModelConfig) -> None:
        self.components = model.components
        self.n_outputs = 3 * model.components

    def parts(self, outputs: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3 J) -> log weight, mean and width of each component before it is cut, (B, J) each."""
        weight, mean, width = outputs.unflatten(1, (3, self.components)).unbind(1)
        start = (torch.arange(self.components, device=outputs.device) + 0.5) / self.components
        mean = grid.low + grid.span * (start + mean)
        # softplus(s) = 1 / J before training.
        shift = math.log(math.expm1(1 / self.components))
        sigma = grid.width + grid.span * functional.softplus(width + shift)
        return functional.log_softmax(weight, dim=1), mean, sigma

    def logits(self, outputs: Tensor, grid: Grid) -> Tensor:
        log_weight, mean, sigma = self.parts(outputs, grid)
        parabola = -0.5 * ((grid.centres - mean[:, :, None]) / sigma[:, :, None]) ** 2  # (B, J, K)
        normalised = parabola - torch.logsumexp(parabola, dim=2, keepdim=True)
        return torch.logsumexp(log_weight[:, :, None] + normalised, dim=1)
