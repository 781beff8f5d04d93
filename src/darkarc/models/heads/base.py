"""`Head`: from a few numbers an image to logits over the K bins of the grid, and a likelihood."""

import math
from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn import functional

from darkarc.config import ModelConfig
from darkarc.models.heads.grid import Grid


class Head(ABC):
    """A parametrisation of the density on a `Grid`.

    n_outputs: numbers an image and target that the last linear layer gives. All of them 0, as before
    training, stand for about the prior.
    """

    n_outputs: int

    @abstractmethod
    def __init__(self, model: ModelConfig) -> None: ...

    @abstractmethod
    def logits(self, outputs: Tensor, grid: Grid) -> Tensor:
        """(B, n_outputs) -> (B, K) logits of the bin probabilities."""

    def loss(self, outputs: Tensor, truth: Tensor, grid: Grid, label_sigma: float) -> Tensor:
        """(B, n_outputs), (B,) truths -> (B,) negative log density, in nats.

        Per unit of the target, so that the prior itself scores log(range) whatever the head; on average
        over a label of width `label_sigma`, cut to the prior range.
        """
        labels = grid.soft_histogram(truth, label_sigma)
        log_probability = functional.log_softmax(self.logits(outputs, grid), dim=1)
        return -(labels * log_probability).sum(dim=1) + math.log(grid.width)
