"""Backbones: standardised images (B, C, H, W) -> features (B, F), behind one signature.

A builder takes the model section of the configuration, the image shape and the number C of input
channels (the image, and whatever `Standardise` puts beside it), and gives a module with an attribute
`n_features`. Add one to `BACKBONES` and `model.backbone` knows it.
"""

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from darkarc.config import ModelConfig

Shape = tuple[int, int]

SMALL_IMAGE = 96
"""Up to this many pixels a side, an ImageNet stem's first halving would throw the arc's detail away."""


class Backbone(nn.Module):
    """(B, C, H, W) -> (B, n_features)"""

    n_features: int


def channels(count: int, width: float) -> int:
    """A channel count times `width`, rounded to a multiple of 8 (vector registers), at least 8."""
    return max(8, round(count * width / 8) * 8)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the second one starts at zero, the block as identity."""

    def __init__(self, n_in: int, n_out: int, stride: int, drop_rate: float) -> None:
        from torchvision.ops import StochasticDepth

        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.drop = StochasticDepth(drop_rate, "row")
        self.act = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out))
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return cast(Tensor, self.act(self.shortcut(x) + self.drop(branch)))


class SmallResNet(Backbone):
    """A residual CNN for two CPU cores.

    The stem is a strided convolution that keeps every pixel (5x5 over a grid of 2), so that nearly
    all arithmetic happens at half resolution and below.
    """

    def __init__(self, model: ModelConfig, shape: Shape, in_channels: int = 1) -> None:
        super().__init__()
        widths = [channels(count, model.width) for count in (16, 32, 64, 96)]
        stem = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem, 5, 2, 2, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = []
        n_in, n_blocks = stem, 2 * len(widths)
        for stage, n_out in enumerate(widths):
            for position in range(2):
                rate = model.stochastic_depth * (len(blocks) + 1) / n_blocks
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(ResidualBlock(n_in, n_out, stride, rate))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.n_features = n_in

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.blocks(self.stem(x)).mean(dim=(2, 3)))


class EfficientNetB0(Backbone):
    """torchvision's EfficientNet-B0 (arXiv:1905.11946, table 1) with a stem for any number of channels.

    Images of at most 96 pixels a side keep their resolution in the stem (stride 1 instead of 2).
    """

    def __init__(self, model: ModelConfig, shape: Shape, in_channels: int = 1) -> None:
        from torchvision.models import EfficientNet
        from torchvision.models.efficientnet import MBConvConfig

        super().__init__()
        # expansion, kernel, stride, channels in, channels out, layers
        stages = (
            (1, 3, 1, 32, 16, 1),
            (6, 3, 2, 16, 24, 2),
            (6, 5, 2, 24, 40, 2),
            (6, 3, 2, 40, 80, 3),
            (6, 5, 1, 80, 112, 3),
            (6, 5, 2, 112, 192, 4),
            (6, 3, 1, 192, 320, 1),
        )
        settings = [MBConvConfig(*stage, width_mult=model.width) for stage in stages]
        network = EfficientNet(
            settings, dropout=0.0, stochastic_depth_prob=model.stochastic_depth, num_classes=1
        )
        stem = network.features[0][0]
        stride = 1 if max(shape) <= SMALL_IMAGE else 2
        network.features[0][0] = nn.Conv2d(in_channels, stem.out_channels, 3, stride, 1, bias=False)
        self.features = network.features
        self.n_features = network.classifier[-1].in_features

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.features(x).mean(dim=(2, 3)))


BACKBONES: dict[str, Callable[[ModelConfig, Shape, int], Backbone]] = {
    "small_resnet": SmallResNet,
    "efficientnet_b0": EfficientNetB0,
}
