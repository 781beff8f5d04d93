"""The images that a training sees: where they come from, and what is done to each."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from darkarc.config import Config
from darkarc.data.augmentation import Augmentation
from darkarc.data.batches import Batch, ImageSource
from darkarc.data.online import OnlineSource
from darkarc.data.store import Store


@dataclass(frozen=True)
class TrainImages:
    """So many images an epoch, on a device; every one a pure function of (seed, epoch, index)."""

    source: ImageSource | OnlineSource
    augmentation: Augmentation

    @classmethod
    def of(cls, config: Config, prepared: Store, device: torch.device | str) -> "TrainImages":
        """As `data.source` and the section `train` say.

        Raises `BatchError` if the store's train split or the store itself cannot be trained on.
        """
        source: ImageSource | OnlineSource
        if config.data.source == "online":
            source = OnlineSource(config, prepared, device=device)
        else:
            memory_gb = config.data.memory_gb
            source = ImageSource(prepared, "train", config.targets, memory_gb=memory_gb, device=device)
        return cls(source, Augmentation.of(config, prepared))

    def __len__(self) -> int:
        return len(self.source)

    @property
    def device(self) -> torch.device:
        return self.source.device

    def batches(self, epoch: int, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Batch]]:
        """Batches of the samples `order` of an epoch, each with its indices (B,); not yet augmented."""
        return self.source.batches(epoch, order, batch_size)

    def augmented(self, batch: Batch, indices: Tensor, epoch: int) -> Batch:
        """A batch as training sees it."""
        return self.augmentation(batch, indices, epoch)
