"""`binned`: a free probability for every bin, or for every few of them."""

from torch import Tensor

from darkarc.config import ModelConfig
from darkarc.models.heads.base import Head
from darkarc.models.heads.grid import Grid


class BinnedHead(Head):
    """A free probability for every bin, trained towards a soft histogram of the truth.

    With `free_bins` one for every bins / free_bins neighbours: the network learns what it would with so many
    bins, and what is added to its answer (a fitted vortex) may be narrower.
    """

    def __init__(self, model: ModelConfig) -> None:
        self.n_outputs = model.free_bins or model.bins

    def logits(self, outputs: Tensor, grid: Grid) -> Tensor:
        shared = grid.bins // self.n_outputs
        return outputs if shared == 1 else outputs[:, :, None].expand(-1, -1, shared).flatten(1)
