"""Published convolutional families, from torchvision and timm, with stems for small images of few channels.

No weights are ever loaded: photographs teach little about lensed arcs, and nothing here reaches the network.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from darkarc.config import ModelConfig
from darkarc.models.backbones._contract import SMALL_IMAGE, Backbone, Shape, channels, chosen_norm
from darkarc.models.backbones._layers import (
    NORM_LAYERS,
    drop_blocks,
    drop_path,
    pooled,
    run_stages,
    subsample_pointwise,
)


def first_convolution(out_channels: int, in_channels: int, shape: Shape) -> nn.Conv2d:
    """A 3x3 stem; images of at most 96 pixels a side keep their resolution (stride 1 instead of 2)."""
    return nn.Conv2d(in_channels, out_channels, 3, 1 if max(shape) <= SMALL_IMAGE else 2, 1, bias=False)


class ResNet(Backbone):
    """timm's ResNet (arXiv:1512.03385) or, with `variant_d`, ResNet-D (arXiv:1812.01187).

    Images of at most 96 pixels a side skip the stem's max-pool: a quarter of the resolution would be left.
    `width` multiplies the stages (and the stem of ResNet-D).
    """

    def __init__(
        self,
        model: ModelConfig,
        shape: Shape,
        in_channels: int,
        *,
        layers: tuple[int, ...],
        bottleneck: bool = False,
        variant_d: bool = False,
    ) -> None:
        from timm.models.resnet import BasicBlock, Bottleneck
        from timm.models.resnet import ResNet as TimmResNet

        super().__init__()
        stem: dict[str, Any] = {}
        if variant_d:
            stem = {"stem_type": "deep", "stem_width": channels(32, model.width), "avg_down": True}
        self.network = TimmResNet(
            Bottleneck if bottleneck else BasicBlock,
            layers,
            num_classes=0,
            in_chans=in_channels,
            channels=tuple(channels(count, model.width) for count in (64, 128, 256, 512)),
            norm_layer=NORM_LAYERS[chosen_norm(model, "batch")],
            drop_path_rate=model.stochastic_depth,
            **stem,
        )
        subsample_pointwise(self.network)
        if max(shape) <= SMALL_IMAGE:
            self.network.maxpool = nn.Identity()
        self.drop_blocks = drop_blocks(4, model.drop_block, range(2, 4))
        self.n_features = self.network.num_features

    def forward(self, x: Tensor) -> Tensor:
        net = self.network
        x = net.maxpool(net.act1(net.bn1(net.conv1(x))))
        return pooled(run_stages([net.layer1, net.layer2, net.layer3, net.layer4], self.drop_blocks, x))


class Features(Backbone):
    """A torchvision network that is one sequence of stages; `dropped` names those that DropBlock follows."""

    def __init__(self, features: nn.Sequential, n_features: int, drop_rate: float, dropped: range) -> None:
        super().__init__()
        self.features = features
        self.drop_blocks = drop_blocks(len(features), drop_rate, dropped)
        self.n_features = n_features

    def forward(self, x: Tensor) -> Tensor:
        return pooled(run_stages(self.features, self.drop_blocks, x))


EFFICIENTNET_B0 = (
    # expansion, kernel, stride, channels in, channels out, layers
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)

EFFICIENTNET_V2_S = (
    (1, 3, 1, 24, 24, 2),
    (4, 3, 2, 24, 48, 4),
    (4, 3, 2, 48, 64, 4),
    (4, 3, 2, 64, 128, 6),
    (6, 3, 1, 128, 160, 9),
    (6, 3, 2, 160, 256, 15),
)
FUSED_STAGES = 3
"""So many of V2's first stages fuse the depthwise convolution with the one before it."""


def efficientnet_b0(model: ModelConfig, shape: Shape, in_channels: int) -> Backbone:
    """torchvision's EfficientNet-B0 (arXiv:1905.11946, table 1)."""
    from torchvision.models.efficientnet import MBConvConfig

    settings = [MBConvConfig(*stage, width_mult=model.width) for stage in EFFICIENTNET_B0]
    return _efficientnet(settings, model, shape, in_channels, nn.BatchNorm2d, last_channel=None)


def efficientnet_v2_s(model: ModelConfig, shape: Shape, in_channels: int) -> Backbone:
    """torchvision's EfficientNetV2-S (arXiv:2104.00298, table 4)."""
    from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig

    settings = []
    for number, (*head, n_in, n_out, layers) in enumerate(EFFICIENTNET_V2_S):
        kind = FusedMBConvConfig if number < FUSED_STAGES else MBConvConfig
        settings.append(kind(*head, channels(n_in, model.width), channels(n_out, model.width), layers))
    norm = partial(nn.BatchNorm2d, eps=1e-3)
    return _efficientnet(settings, model, shape, in_channels, norm, channels(1280, model.width))


def _efficientnet(
    settings: Sequence[Any],
    model: ModelConfig,
    shape: Shape,
    in_channels: int,
    batch_norm: Any,
    last_channel: int | None,
) -> Backbone:
    from torchvision.models import EfficientNet

    norm = chosen_norm(model, "batch")
    network = EfficientNet(
        settings,
        dropout=0.0,
        stochastic_depth_prob=model.stochastic_depth,
        num_classes=1,
        norm_layer=batch_norm if norm == "batch" else NORM_LAYERS[norm],
        last_channel=last_channel,
    )
    stem = network.features[0]
    stem[0] = first_convolution(stem[0].out_channels, in_channels, shape)
    n_stages = len(settings)  # the sequence also has the stem before them and a 1x1 convolution after
    dropped = range(n_stages - 1, n_stages + 1)
    return Features(network.features, network.classifier[-1].in_features, model.drop_block, dropped)


MOBILENET_V3_LARGE = (
    # channels in, kernel, expanded, channels out, squeeze-and-excitation, activation, stride
    (16, 3, 16, 16, False, "RE", 1),
    (16, 3, 64, 24, False, "RE", 2),
    (24, 3, 72, 24, False, "RE", 1),
    (24, 5, 72, 40, True, "RE", 2),
    (40, 5, 120, 40, True, "RE", 1),
    (40, 5, 120, 40, True, "RE", 1),
    (40, 3, 240, 80, False, "HS", 2),
    (80, 3, 200, 80, False, "HS", 1),
    (80, 3, 184, 80, False, "HS", 1),
    (80, 3, 184, 80, False, "HS", 1),
    (80, 3, 480, 112, True, "HS", 1),
    (112, 3, 672, 112, True, "HS", 1),
    (112, 5, 672, 160, True, "HS", 2),
    (160, 5, 960, 160, True, "HS", 1),
    (160, 5, 960, 160, True, "HS", 1),
)

MOBILENET_V3_SMALL = (
    (16, 3, 16, 16, True, "RE", 2),
    (16, 3, 72, 24, False, "RE", 2),
    (24, 3, 88, 24, False, "RE", 1),
    (24, 5, 96, 40, True, "HS", 2),
    (40, 5, 240, 40, True, "HS", 1),
    (40, 5, 240, 40, True, "HS", 1),
    (40, 5, 120, 48, True, "HS", 1),
    (48, 5, 144, 48, True, "HS", 1),
    (48, 5, 288, 96, True, "HS", 2),
    (96, 5, 576, 96, True, "HS", 1),
    (96, 5, 576, 96, True, "HS", 1),
)


def mobilenet_v3(
    model: ModelConfig, shape: Shape, in_channels: int, *, table: Sequence[tuple[Any, ...]]
) -> Backbone:
    """torchvision's MobileNetV3 (arXiv:1905.02244, tables 1 and 2), to which stochastic depth is added."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    settings = [InvertedResidualConfig(*row, dilation=1, width_mult=model.width) for row in table]
    norm = chosen_norm(model, "batch")
    batch_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
    network = MobileNetV3(
        settings,
        last_channel=8,
        num_classes=1,
        norm_layer=batch_norm if norm == "batch" else NORM_LAYERS[norm],
    )
    for number, block in enumerate(network.features[1:-1], start=1):
        if block.use_res_connect:
            block.block.append(drop_path(model.stochastic_depth * number / len(settings)))
    stem = network.features[0]
    stem[0] = first_convolution(stem[0].out_channels, in_channels, shape)
    lowest = max(number for number, row in enumerate(table, start=1) if row[-1] == 2)
    dropped = range(lowest, len(table) + 1)  # the blocks at the lowest resolution
    return Features(network.features, network.features[-1].out_channels, model.drop_block, dropped)


def regnet_y_400mf(model: ModelConfig, shape: Shape, in_channels: int) -> Backbone:
    """torchvision's RegNetY-400MF (arXiv:2003.13678), to which stochastic depth is added.

    `width` multiplies the first width and the slope of the rule that RegNets take their widths from.
    """
    from torchvision.models.regnet import BlockParams, RegNet

    first, slope = channels(48, model.width), 27.89 * model.width
    rule = BlockParams.from_init_params(
        depth=16, w_0=first, w_a=slope, w_m=2.09, group_width=8, se_ratio=0.25
    )
    stem_width = channels(32, model.width)
    norm = NORM_LAYERS[chosen_norm(model, "batch")]
    network = RegNet(rule, num_classes=1, stem_width=stem_width, norm_layer=norm)
    blocks = [block for stage in network.trunk_output for block in stage]
    for number, block in enumerate(blocks, start=1):
        block.f.append(drop_path(model.stochastic_depth * number / len(blocks)))
    network.stem[0] = first_convolution(stem_width, in_channels, shape)
    features = nn.Sequential(network.stem, *network.trunk_output)
    subsample_pointwise(features)
    dropped = range(len(features) - 2, len(features))
    return Features(features, network.fc.in_features, model.drop_block, dropped)


class ConvNeXt(Backbone):
    """timm's ConvNeXt (arXiv:2201.03545); patches of 2 pixels instead of 4 up to 96 pixels a side."""

    def __init__(
        self,
        model: ModelConfig,
        shape: Shape,
        in_channels: int,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
    ) -> None:
        from timm.models.convnext import ConvNeXt as TimmConvNeXt

        super().__init__()
        self.network = TimmConvNeXt(
            in_chans=in_channels,
            num_classes=0,
            depths=depths,
            dims=tuple(channels(count, model.width) for count in dims),
            drop_path_rate=model.stochastic_depth,
        )
        if max(shape) <= SMALL_IMAGE:
            # Not by timm's `patch_size`: it would halve the resolution once more before the first stage.
            stem = nn.Conv2d(in_channels, self.network.stem[0].out_channels, 2, 2)
            nn.init.trunc_normal_(stem.weight, std=0.02)
            nn.init.zeros_(cast(Tensor, stem.bias))
            self.network.stem[0] = stem
        self.drop_blocks = drop_blocks(len(depths), model.drop_block, range(len(depths) - 2, len(depths)))
        self.n_features = self.network.num_features

    def forward(self, x: Tensor) -> Tensor:
        net = self.network
        x = run_stages(net.stages, self.drop_blocks, net.stem(x))
        return net.head(net.norm_pre(x))
