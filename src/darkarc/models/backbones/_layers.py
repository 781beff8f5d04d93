"""Layers that several backbones share: normalisations, DropBlock, stochastic depth, padding."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

NormMaker = Callable[..., nn.Module]

GROUP_SIZE = 8
"""Channels that share a mean and a deviation in group normalisation."""


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel: (B, C, H, W), as ConvNeXt has it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def n_groups(n_channels: int) -> int:
    """How many groups of (at most) `GROUP_SIZE` channels divide `n_channels` evenly."""
    return n_channels // math.gcd(n_channels, GROUP_SIZE)


def _batch(n_channels: int, **options: Any) -> nn.Module:
    return nn.BatchNorm2d(n_channels, **options)


def _group(n_channels: int, **options: Any) -> nn.Module:
    """GroupNorm (arXiv:1803.08494): statistics of one image, no running averages."""
    return nn.GroupNorm(n_groups(n_channels), n_channels, **options)


def _layer(n_channels: int, **options: Any) -> nn.Module:
    return ChannelNorm(n_channels, eps=1e-6, **options)


NORM_LAYERS: dict[str, NormMaker] = {"batch": _batch, "group": _group, "layer": _layer}
"""Number of channels -> a normalisation of (B, C, H, W) maps."""


class DropBlock(nn.Module):
    """DropBlock (arXiv:1810.12890): blanks square patches of a map (B, C, H, W), in training only.

    The patch is 0.4 of the map wide (odd, at most 7 pixels): 7 on 14 pixels and 3 on 7 in the paper's and
    timm's ResNets. `rate` is the expected share of blanked values.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        from torchvision.ops import drop_block2d

        block_size = min(7, int(0.4 * min(x.shape[-2:])) | 1)
        return cast(Tensor, drop_block2d(x, self.rate, block_size, training=True))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def drop_blocks(n_stages: int, rate: float, where: range) -> nn.ModuleList:
    """For every stage what to do with its output: DropBlock in those of `where`, the last ones.

    The paper found the last two resolutions to be the best place.
    """
    return nn.ModuleList(
        DropBlock(rate) if rate > 0 and stage in where else nn.Identity() for stage in range(n_stages)
    )


def run_stages(stages: Sequence[nn.Module] | nn.Sequential, drops: nn.ModuleList, x: Tensor) -> Tensor:
    """Each stage and then its entry of `drop_blocks`."""
    for stage, drop in zip(stages, drops, strict=True):
        x = drop(stage(x))
    return x


def drop_path(rate: float) -> nn.Module:
    """Stochastic depth (arXiv:1603.09382): drops the whole branch of an image, in training only."""
    from torchvision.ops import StochasticDepth

    return cast(nn.Module, StochasticDepth(rate, "row"))


def pooled(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C) means over the map."""
    return x.mean(dim=(2, 3))


class SubsampledPointwise(nn.Conv2d):
    """A 1x1 convolution that takes every `every`-th pixel first, which is what its stride would do."""

    def __init__(self, strided: nn.Conv2d) -> None:
        super().__init__(strided.in_channels, strided.out_channels, 1, bias=strided.bias is not None)
        self.every = strided.stride
        self.weight, self.bias = strided.weight, strided.bias

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :, :: self.every[0], :: self.every[1]])


def subsample_pointwise(network: nn.Module) -> None:
    """Replaces every strided 1x1 convolution of `network` by its equal, with the same weights.

    oneDNN 3.12 (torch 2.14) overruns the heap in the backward pass of some of them in channels-last memory:
    8 -> 16 channels of 64 x 64 pixels with a stride of 2 end the process.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and child.kernel_size == (1, 1) and child.stride != (1, 1):
                setattr(parent, name, SubsampledPointwise(child))


class PadTo(nn.Module):
    """Repeats the border of (B, C, H, W) evenly on both sides up to multiples of `multiple` pixels."""

    def __init__(self, shape: tuple[int, int], multiple: int) -> None:
        super().__init__()
        self.shape = tuple(math.ceil(size / multiple) * multiple for size in shape)
        extra = [padded - size for padded, size in zip(self.shape, shape, strict=True)]
        self.padding = [n for size in reversed(extra) for n in (size // 2, size - size // 2)]

    def forward(self, x: Tensor) -> Tensor:
        if not any(self.padding):
            return x
        return functional.pad(x, self.padding, mode="replicate")
