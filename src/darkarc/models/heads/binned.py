"""`binned`: a free probability for every bin."""

from torch import Tensor

from darkarc.config import ModelConfig
from darkarc.models.heads.base import Head
from darkarc.models.heads.grid import Grid


class BinnedHead(Head):
    """A free probability for every bin, trained towards a soft histogram of the truth."""

    def __init__(self, model: ModelConfig) -> None:
        self.n_outputs = model.bins

    def logits(self, outputs: Tensor, grid: Grid) -> Tensor:
        return outputs
