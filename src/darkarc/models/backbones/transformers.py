"""Vision transformers and hybrids of convolution and attention, from timm, for small images of few channels.

Their position encodings belong to one image size, so images are padded (by repeating the border) to the
next size that patches and windows divide.
"""

import math
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from darkarc.config import ModelConfig
from darkarc.models.backbones._contract import SMALL_IMAGE, Backbone, Shape, channels
from darkarc.models.backbones._layers import PadTo


class Padded(Backbone):
    """A timm network without a classifier: (B, C, H, W) of its own size -> pooled features."""

    def __init__(self, padding: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.padding = padding
        self.network = network
        self.n_features = int(cast(Any, network).num_features)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.network(self.padding(x)))


def vit_tiny(model: ModelConfig, shape: Shape, in_channels: int) -> Backbone:
    """timm's ViT (arXiv:2010.11929) in the tiny size of DeiT (arXiv:2012.12877), tokens averaged.

    Patches of 8 pixels up to 96 pixels a side (64 tokens of a 64-pixel image), of 10 beyond (225 of 150).
    """
    from timm.models.vision_transformer import VisionTransformer

    patch, n_heads = 8 if max(shape) <= SMALL_IMAGE else 10, 3
    padding = PadTo(shape, patch)
    network = VisionTransformer(
        img_size=padding.shape,
        patch_size=patch,
        in_chans=in_channels,
        num_classes=0,
        global_pool="avg",
        class_token=False,
        embed_dim=n_heads * channels(64, model.width),
        depth=12,
        num_heads=n_heads,
        drop_path_rate=model.stochastic_depth,
    )
    return Padded(padding, network)


def swin_tiny(model: ModelConfig, shape: Shape, in_channels: int) -> Backbone:
    """timm's Swin-T (arXiv:2103.14030); patches of 2 pixels instead of 4 up to 96 pixels a side.

    The window is the largest of at most 8 tokens that divides the maps of all stages but the last.
    """
    from timm.models.swin_transformer import SwinTransformer

    patch = 2 if max(shape) <= SMALL_IMAGE else 4
    padding = PadTo(shape, 8 * patch)
    smallest = [size // (8 * patch) for size in padding.shape]  # tokens a side in the last stage
    fitting = [w for w in range(8, 3, -1) if all(2 * size % w == 0 for size in smallest)]
    heads = (3, 6, 12, 24)
    network = SwinTransformer(
        img_size=padding.shape,
        patch_size=patch,
        in_chans=in_channels,
        num_classes=0,
        embed_dim=heads[0] * channels(32, model.width),
        depths=(2, 2, 6, 2),
        num_heads=heads,
        window_size=fitting[0] if fitting else 8,
        drop_path_rate=model.stochastic_depth,
    )
    return Padded(padding, network)


def coatnet_pico(model: ModelConfig, shape: Shape, in_channels: int) -> Backbone:
    """timm's CoAtNet (arXiv:2106.04803) in its pico size: convolutions first, then global attention."""
    return _maxxvit("coatnet_pico_rw", model, shape, in_channels)


def maxvit_pico(model: ModelConfig, shape: Shape, in_channels: int) -> Backbone:
    """timm's MaxViT (arXiv:2204.01697) in its pico size: convolution, window and grid attention a block."""
    return _maxxvit("maxvit_pico_rw", model, shape, in_channels)


def _maxxvit(name: str, model: ModelConfig, shape: Shape, in_channels: int) -> Backbone:
    """Five halvings in the original; images of at most 96 pixels a side keep their resolution in the stem.

    `width` multiplies every channel count; attention heads stay 32 channels wide.
    """
    from timm.models.maxxvit import MaxxVit, model_cfgs

    small = max(shape) <= SMALL_IMAGE
    padding = PadTo(shape, 16 if small else 32)
    # timm derives the size of every stage's map from the image's and a stem of stride 2.
    nominal = tuple(2 * size for size in padding.shape) if small else padding.shape
    partition = tuple(max(1, size // 32) for size in nominal)
    published = model_cfgs[name]
    settings = replace(
        published,
        embed_dim=tuple(_multiple_of_head(count * model.width) for count in published.embed_dim),
        stem_width=tuple(channels(count, model.width) for count in cast(Any, published.stem_width)),
        transformer_cfg=replace(published.transformer_cfg, window_size=partition, grid_size=partition),
    )
    network = MaxxVit(
        settings,
        img_size=nominal,
        in_chans=in_channels,
        num_classes=0,
        drop_path_rate=model.stochastic_depth,
    )
    if small:
        network.stem.conv1.stride = (1, 1)
    return Padded(padding, network)


def _multiple_of_head(count: float, head: int = 32) -> int:
    return max(1, math.floor(count / head + 0.5)) * head
