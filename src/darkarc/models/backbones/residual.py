"""Residual nets of our own blocks: the small one, one with CBAM, and XResNet with self-attention and Mish."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from darkarc.config import ModelConfig
from darkarc.models.backbones._contract import SMALL_IMAGE, Backbone, Shape, channels, chosen_norm
from darkarc.models.backbones._layers import (
    NORM_LAYERS,
    NormMaker,
    drop_blocks,
    drop_path,
    pooled,
    run_stages,
)

Attention = Callable[[int], nn.Module]


def relu() -> nn.Module:
    return nn.ReLU(inplace=True)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the second one starts at zero, the block as identity.

    A stride averages 2x2 pixels in the shortcut before its 1x1 convolution (ResNet-D, arXiv:1812.01187).
    `attention` weighs the branch before it is added.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        stride: int,
        drop_rate: float,
        norm: NormMaker,
        act: Callable[[], nn.Module] = relu,
        attention: Attention | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = norm(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = norm(n_out)
        self.attention = attention(n_out) if attention is not None else nn.Identity()
        self.drop = drop_path(drop_rate)
        self.act = act()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv2d(n_in, n_out, 1, bias=False), norm(n_out))
        nn.init.zeros_(cast(Tensor, self.norm2.weight))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.attention(self.norm2(self.conv2(self.act(self.norm1(self.conv1(x))))))
        return cast(Tensor, self.act(self.shortcut(x) + self.drop(branch)))


class ResidualNet(Backbone):
    """A stem, then stages of residual blocks, each but the first at half the resolution of the one before."""

    def __init__(
        self,
        model: ModelConfig,
        stem: nn.Module,
        n_in: int,
        widths: list[int],
        depth: int,
        act: Callable[[], nn.Module] = relu,
        attention: Callable[[int, int], Attention | None] = lambda stage, position: None,
    ) -> None:
        super().__init__()
        self.stem = stem
        norm = NORM_LAYERS[chosen_norm(model, "batch")]
        blocks: list[nn.Module] = []
        for stage, n_out in enumerate(widths):
            for position in range(depth):
                rate = model.stochastic_depth * (len(blocks) + 1) / (depth * len(widths))
                stride = 2 if stage > 0 and position == 0 else 1
                weigh = attention(stage, position)
                blocks.append(ResidualBlock(n_in, n_out, stride, rate, norm, act, weigh))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.drop_blocks = drop_blocks(
            len(blocks), model.drop_block, range(len(blocks) - 2 * depth, len(blocks))
        )
        self.n_features = n_in

    def forward(self, x: Tensor) -> Tensor:
        return pooled(run_stages(self.blocks, self.drop_blocks, self.stem(x)))


def small_resnet(model: ModelConfig, shape: Shape, in_channels: int) -> Backbone:
    """A residual CNN for two CPU cores.

    The stem is a strided convolution that keeps every pixel (5x5 over a grid of 2), so that nearly
    all arithmetic happens at half resolution and below.
    """
    widths = [channels(count, model.width) for count in (16, 32, 64, 96)]
    norm = NORM_LAYERS[chosen_norm(model, "batch")]
    stem = nn.Sequential(nn.Conv2d(in_channels, widths[0], 5, 2, 2, bias=False), norm(widths[0]), relu())
    return ResidualNet(model, stem, widths[0], widths, depth=2)


class ConvolutionalAttention(nn.Module):
    """CBAM (arXiv:1807.06521): weighs the channels of (B, C, H, W), then its pixels.

    The channels by an MLP of their mean and maximum over the map, the pixels by a 7x7 convolution of mean and
    maximum over the channels.
    """

    def __init__(self, n_channels: int, norm: NormMaker, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(8, n_channels // reduction)
        self.mlp = nn.Sequential(
            nn.Conv2d(n_channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, n_channels, 1)
        )
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = norm(1)

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        x = x * torch.sigmoid(self.mlp(mean) + self.mlp(largest))
        maps = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)  # (B, 2, H, W)
        return x * torch.sigmoid(self.norm(self.conv(maps)))


def imagenet_stem(model: ModelConfig, shape: Shape, convolutions: list[nn.Module]) -> nn.Module:
    """The convolutions, and ImageNet's max-pool for images that can spare the resolution."""
    if max(shape) > SMALL_IMAGE:
        convolutions = [*convolutions, nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*convolutions)


def resnet18_cbam(model: ModelConfig, shape: Shape, in_channels: int) -> Backbone:
    """ResNet-18 with CBAM at the end of every residual branch."""
    widths = [channels(count, model.width) for count in (64, 128, 256, 512)]
    norm = NORM_LAYERS[chosen_norm(model, "batch")]
    # One channel has no deviation over its channels: the map of attention keeps a norm over pixels.
    over_pixels = norm if chosen_norm(model, "batch") != "layer" else NORM_LAYERS["group"]
    first = nn.Conv2d(in_channels, widths[0], 7, 2, 3, bias=False)
    stem = imagenet_stem(model, shape, [first, norm(widths[0]), relu()])
    return ResidualNet(
        model,
        stem,
        widths[0],
        widths,
        depth=2,
        attention=lambda stage, position: lambda n: ConvolutionalAttention(n, over_pixels),
    )


class SelfAttention(nn.Module):
    """Self-attention of cost linear in the pixels, fastai's `SimpleSelfAttention` (after arXiv:1805.08318).

    y = x + gamma (1 / N) x xᵀ (W x) over the N pixels; gamma starts at zero. The factor 1 / N, which the
    original lacks, makes gamma independent of the image's size; the original's spectral norm of W is left
    out, because its power iteration would be a state that averages of weights do not know.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(n_channels, n_channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)  # (B, C, N)
        mixed = torch.bmm(flat, flat.transpose(1, 2)) / flat.shape[2]  # (B, C, C)
        return x + self.gamma * torch.bmm(mixed, self.conv(flat)).unflatten(2, x.shape[2:])


def xresnet_hybrid(model: ModelConfig, shape: Shape, in_channels: int) -> Backbone:
    """XResNet-18 (arXiv:1812.01187) with Mish and self-attention in its first stage.

    That is what the "XResNet18-hybrid" of DeepLense's regressions is, but for the stem: theirs whitens
    with network deconvolution (arXiv:1905.11926), this one normalises as the rest of the net does.
    """
    widths = [channels(count, model.width) for count in (64, 128, 256, 512)]
    norm = NORM_LAYERS[chosen_norm(model, "batch")]
    convolutions: list[nn.Module] = []
    n_in = in_channels
    for count, stride in ((32, 2), (32, 1), (64, 1)):
        n_out = channels(count, model.width)
        convolutions += [nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), norm(n_out), nn.Mish(inplace=True)]
        n_in = n_out
    return ResidualNet(
        model,
        imagenet_stem(model, shape, convolutions),
        n_in,
        widths,
        depth=2,
        act=lambda: nn.Mish(inplace=True),
        attention=lambda stage, position: SelfAttention if (stage, position) == (0, 1) else None,
    )
