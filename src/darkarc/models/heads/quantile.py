"""`quantile`: quantiles that cannot cross, and the density that lies between them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from darkarc.config import ModelConfig
from darkarc.models.heads.base import Head
from darkarc.models.heads.grid import Grid

LOWEST = 0.005
"""The lowest of the levels; the highest is 1 - LOWEST, the others lie evenly in log(level / (1 - level)).

Beyond the outermost quantiles the density is flat to the ends of the prior: the fewer is left there, the less
this choice shows; 90 and 95% intervals do not reach it.
"""


class QuantileHead(Head, nn.Module):
    """`model.quantiles` quantiles: shares of the prior range, laid end to end.

    A softmax gives the gaps between neighbours and to the ends of the range, so the quantiles rise and stay
    inside whatever the network says. Between two of them the density is constant.
    """

    levels: Tensor
    masses: Tensor

    def __init__(self, model: ModelConfig) -> None:
        nn.Module.__init__(self)
        self.n_outputs = model.quantiles + 1
        reach = math.log((1 - LOWEST) / LOWEST)
        levels = torch.sigmoid(torch.linspace(-reach, reach, model.quantiles, dtype=torch.float64))
        # Both follow from the specification, so they are no weights; buffers lie on the model's device.
        self.register_buffer("levels", levels, persistent=False)
        masses = functional.pad(functional.pad(levels, (1, 0)), (0, 1), value=1.0).diff()
        self.register_buffer("masses", masses, persistent=False)

    def quantiles(self, outputs: Tensor, grid: Grid) -> Tensor:
        """(B, Q + 1) -> (B, Q), the values at `levels`, in units of the target."""
        return grid.low + grid.span * self._places(outputs)[:, 1:-1]

    def _places(self, outputs: Tensor) -> Tensor:
        """(B, Q + 2): the quantiles between the ends of the prior range, which is from 0 to 1 here: near 0 a
        float32 is finer than near -24."""
        shares = functional.softmax(outputs + self.masses.to(outputs.dtype).log(), dim=1)
        return functional.pad(shares.cumsum(dim=1), (1, 0))

    def logits(self, outputs: Tensor, grid: Grid) -> Tensor:
        places = self._places(outputs)[:, :, None]  # (B, Q + 2, 1)
        gaps = places.diff(dim=1).clamp_min(1e-3 / grid.bins)
        edges = torch.linspace(0, 1, grid.bins + 1, device=outputs.device)
        # (B, Q + 1, K + 1): how much of each gap lies below each edge.
        below = ((edges - places[:, :-1]) / gaps).clamp(0, 1)
        masses = self.masses.to(outputs.dtype)[None, :, None]
        return (below.diff(dim=2) * masses).sum(dim=1).clamp_min(1e-9).log()
