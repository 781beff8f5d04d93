"""Heads: what stands between the backbone's features and a density over the target's prior range.

A head is a function from a few numbers an image to logits over the K bins of the grid, and a loss.
Both losses are negative log densities per unit of the target, in nats, so that the prior itself
scores log(range) whatever the head.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional


class Grid(nn.Module):
    """K equal bins over the prior range [low, high] of a target, as tensors of the model's device."""

    edges: Tensor
    centres: Tensor
    offsets: Tensor

    def __init__(self, low: float, high: float, bins: int) -> None:
        super().__init__()
        self.low, self.high, self.bins = low, high, bins
        self.width = (high - low) / bins
        edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
        # Both follow from the specification, so they are no weights.
        self.register_buffer("edges", edges, persistent=False)
        centres = (edges[1:] + edges[:-1]) / 2
        self.register_buffer("centres", centres.float(), persistent=False)
        # From the middle of the range: a variance from values near -23 would lose half its digits.
        self.register_buffer("offsets", (centres - (low + high) / 2).float(), persistent=False)

    def soft_histogram(self, truth: Tensor, sigma: float) -> Tensor:
        """(B,) true values -> (B, K) bin probabilities of a Gaussian of width `sigma`, cut to the prior.

        Differences of the cumulative distribution, so exact also at the edges of the range.
        """
        z = (self.edges - truth.double()[:, None]) / (sigma * math.sqrt(2))
        probability = torch.erf(z).diff(dim=1).clamp_min(0)
        return (probability / probability.sum(dim=1, keepdim=True)).float()


class Head(ABC):
    """A parametrisation of the density on a `Grid`."""

    @staticmethod
    @abstractmethod
    def n_outputs(bins: int) -> int:
        """Numbers an image and target that the last linear layer gives."""

    @staticmethod
    @abstractmethod
    def logits(outputs: Tensor, grid: Grid) -> Tensor:
        """(B, n_outputs) -> (B, K) logits of the bin probabilities."""

    @staticmethod
    @abstractmethod
    def loss(outputs: Tensor, truth: Tensor, grid: Grid, label_sigma: float) -> Tensor:
        """(B, n_outputs), (B,) truths -> (B,) negative log density, in nats."""


class BinnedHead(Head):
    """A free probability for every bin, trained towards a soft histogram of the truth."""

    @staticmethod
    def n_outputs(bins: int) -> int:
        return bins

    @staticmethod
    def logits(outputs: Tensor, grid: Grid) -> Tensor:
        return outputs

    @staticmethod
    def loss(outputs: Tensor, truth: Tensor, grid: Grid, label_sigma: float) -> Tensor:
        labels = grid.soft_histogram(truth, label_sigma)
        return -(labels * functional.log_softmax(outputs, dim=1)).sum(dim=1) + math.log(grid.width)


class GaussianHead(Head):
    """A normal distribution of free mean and width, cut to the prior range.

    On the grid its logits are a parabola, so the softmax is the truncation's normalisation and stays
    finite wherever the mean wanders. The width is at least one bin: the grid shows nothing finer.
    """

    @staticmethod
    def n_outputs(bins: int) -> int:
        return 2

    @staticmethod
    def _mean_and_sigma(outputs: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        span = grid.high - grid.low
        mean = (grid.low + grid.high) / 2 + span * outputs[:, :1]
        sigma = grid.width + span * functional.softplus(outputs[:, 1:] + 1.0)
        return mean, sigma

    @staticmethod
    def logits(outputs: Tensor, grid: Grid) -> Tensor:
        mean, sigma = GaussianHead._mean_and_sigma(outputs, grid)
        return -0.5 * ((grid.centres - mean) / sigma) ** 2

    @staticmethod
    def loss(outputs: Tensor, truth: Tensor, grid: Grid, label_sigma: float) -> Tensor:
        """Heteroscedastic, truncated; `label_sigma` widens it to E[z²] over the blurred label."""
        mean, sigma = GaussianHead._mean_and_sigma(outputs, grid)
        square = ((truth[:, None] - mean) ** 2 + label_sigma**2) / sigma**2
        normaliser = torch.logsumexp(GaussianHead.logits(outputs, grid), dim=1) + math.log(grid.width)
        return 0.5 * square.squeeze(1) + normaliser


HEADS: dict[str, type[Head]] = {"binned": BinnedHead, "gaussian": GaussianHead}
