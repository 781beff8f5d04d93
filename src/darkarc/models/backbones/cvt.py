"""A convolutional vision transformer: CvT (arXiv:2103.15808) with tokens that are averaged at the end.

Each stage embeds its map with an overlapping strided convolution, and attention takes its queries, keys and
values from depthwise convolutions, so that no position encoding is needed and any image size will do.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from darkarc.config import ModelConfig
from darkarc.models.backbones._contract import SMALL_IMAGE, Backbone, Shape, channels
from darkarc.models.backbones._layers import ChannelNorm, drop_path

STAGES = (
    # channels, heads, blocks, kernel and stride of the embedding: CvT-13, table 1
    (64, 1, 1, 7, 4),
    (192, 3, 2, 3, 2),
    (384, 6, 10, 3, 2),
)


def projection(n_channels: int, stride: int, bias: bool = True) -> nn.Module:
    """Depthwise 3x3 convolution, batch normalisation, pointwise convolution (section 3.2)."""
    return nn.Sequential(
        nn.Conv2d(n_channels, n_channels, 3, stride, 1, groups=n_channels, bias=False),
        nn.BatchNorm2d(n_channels),
        nn.Conv2d(n_channels, n_channels, 1, bias=bias),
    )


class ConvolutionalProjectionAttention(nn.Module):
    """(B, C, H, W) -> (B, C, H, W); keys and values have half the resolution of the queries."""

    def __init__(self, n_channels: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = projection(n_channels, 1)
        # A bias of the keys would shift all scores of a query alike: softmax does not see it.
        self.key = projection(n_channels, 2, bias=False)
        self.value = projection(n_channels, 2)
        self.out = nn.Conv2d(n_channels, n_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._heads(project(x)) for project in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value)  # (B, heads, H W, C / heads)
        return cast(Tensor, self.out(mixed.transpose(2, 3).reshape(x.shape)))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, H W, C / heads)"""
        return x.flatten(2).unflatten(1, (self.n_heads, -1)).transpose(2, 3)


class TransformerBlock(nn.Module):
    """Attention and an MLP of 1x1 convolutions, each a residual branch that normalises first."""

    def __init__(self, n_channels: int, n_heads: int, drop_rate: float) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            ChannelNorm(n_channels),
            ConvolutionalProjectionAttention(n_channels, n_heads),
            drop_path(drop_rate),
        )
        self.mlp = nn.Sequential(
            ChannelNorm(n_channels),
            nn.Conv2d(n_channels, 4 * n_channels, 1),
            nn.GELU(),
            nn.Conv2d(4 * n_channels, n_channels, 1),
            drop_path(drop_rate),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return cast(Tensor, x + self.mlp(x))


class ConvolutionalVisionTransformer(Backbone):
    """CvT-13; images of at most 96 pixels a side halve their resolution in the first stage, not quarter it.

    `width` multiplies the channels of each head.
    """

    def __init__(self, model: ModelConfig, shape: Shape, in_channels: int) -> None:
        super().__init__()
        n_blocks = sum(blocks for _, _, blocks, _, _ in STAGES)
        layers: list[nn.Module] = []
        n_in, number = in_channels, 0
        for count, n_heads, blocks, kernel, stride in STAGES:
            n_out = n_heads * channels(count / n_heads, model.width)
            if stride == 4 and max(shape) <= SMALL_IMAGE:
                stride = 2
            layers += [nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2), ChannelNorm(n_out)]
            for _ in range(blocks):
                number += 1
                layers.append(TransformerBlock(n_out, n_heads, model.stochastic_depth * number / n_blocks))
            n_in = n_out
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(n_in)
        self.n_features = n_in
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.layers(x).mean(dim=(2, 3))))


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
