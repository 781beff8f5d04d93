"""The grid of a target: equal bins over its prior range, on which every head's density is put."""

import math

import torch
from torch import Tensor, nn


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

    @property
    def span(self) -> float:
        return self.high - self.low

    def soft_histogram(self, truth: Tensor, sigma: float) -> Tensor:
        """(B,) true values -> (B, K) bin probabilities of a Gaussian of width `sigma`, cut to the prior.

        Differences of the cumulative distribution, so exact also at the edges of the range.
        """
        z = (self.edges - truth.double()[:, None]) / (sigma * math.sqrt(2))
        probability = torch.erf(z).diff(dim=1).clamp_min(0)
        return (probability / probability.sum(dim=1, keepdim=True)).float()
