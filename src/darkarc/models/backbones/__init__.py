"""Backbones: standardised images (B, in_channels, H, W) -> features (B, n_features), behind one signature.

`BACKBONES[name](model, shape, in_channels=1)` gives a module with an attribute `n_features`. The model
section says the rest: width, stochastic_depth, drop_block, norm; what a backbone cannot honour is a
`BackboneError`. Dropout is the regressor's, before the heads. docs/architectures.md says how to add one.
"""

from functools import partial

from darkarc.models.backbones._contract import Backbone, BackboneError, Recipe, Shape
from darkarc.models.backbones.convolutional import (
    MOBILENET_V3_LARGE,
    MOBILENET_V3_SMALL,
    ConvNeXt,
    ResNet,
    efficientnet_b0,
    efficientnet_v2_s,
    mobilenet_v3,
    regnet_y_400mf,
)
from darkarc.models.backbones.cvt import ConvolutionalVisionTransformer
from darkarc.models.backbones.equivariant import D4ResNet
from darkarc.models.backbones.graph import ArcGraph
from darkarc.models.backbones.residual import resnet18_cbam, small_resnet, xresnet_hybrid
from darkarc.models.backbones.transformers import coatnet_pico, maxvit_pico, swin_tiny, vit_tiny

__all__ = ["BACKBONES", "Backbone", "BackboneError", "Recipe", "Shape"]

_LAYER = ("layer",)
_MIXED = ()
"""A hybrid has batch normalisation in its convolutions and layer normalisation in its attention."""

BACKBONES: dict[str, Recipe] = {
    "small_resnet": Recipe(small_resnet, "after arXiv:1512.03385, arXiv:1812.01187"),
    "resnet18": Recipe(partial(ResNet, layers=(2, 2, 2, 2)), "arXiv:1512.03385"),
    "resnet34": Recipe(partial(ResNet, layers=(3, 4, 6, 3)), "arXiv:1512.03385"),
    "resnet50": Recipe(partial(ResNet, layers=(3, 4, 6, 3), bottleneck=True), "arXiv:1512.03385"),
    "resnet18_d": Recipe(partial(ResNet, layers=(2, 2, 2, 2), variant_d=True), "arXiv:1812.01187"),
    "resnet50_d": Recipe(
        partial(ResNet, layers=(3, 4, 6, 3), bottleneck=True, variant_d=True), "arXiv:1812.01187"
    ),
    "resnet18_cbam": Recipe(resnet18_cbam, "arXiv:1807.06521"),
    "xresnet_hybrid": Recipe(xresnet_hybrid, "arXiv:1812.01187, arXiv:1805.08318, arXiv:1908.08681"),
    "efficientnet_b0": Recipe(efficientnet_b0, "arXiv:1905.11946"),
    "efficientnet_v2_s": Recipe(efficientnet_v2_s, "arXiv:2104.00298"),
    "mobilenet_v3_small": Recipe(partial(mobilenet_v3, table=MOBILENET_V3_SMALL), "arXiv:1905.02244"),
    "mobilenet_v3_large": Recipe(partial(mobilenet_v3, table=MOBILENET_V3_LARGE), "arXiv:1905.02244"),
    "regnet_y_400mf": Recipe(regnet_y_400mf, "arXiv:2003.13678"),
    "convnext_femto": Recipe(
        partial(ConvNeXt, depths=(2, 2, 6, 2), dims=(48, 96, 192, 384)), "arXiv:2201.03545", norms=_LAYER
    ),
    "convnext_tiny": Recipe(
        partial(ConvNeXt, depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)), "arXiv:2201.03545", norms=_LAYER
    ),
    "vit_tiny": Recipe(vit_tiny, "arXiv:2010.11929", norms=_LAYER, drop_block=False),
    "swin_tiny": Recipe(swin_tiny, "arXiv:2103.14030", norms=_LAYER, drop_block=False),
    "coatnet_pico": Recipe(coatnet_pico, "arXiv:2106.04803", norms=_MIXED, drop_block=False),
    "maxvit_pico": Recipe(maxvit_pico, "arXiv:2204.01697", norms=_MIXED, drop_block=False),
    "cvt_13": Recipe(ConvolutionalVisionTransformer, "arXiv:2103.15808", norms=_MIXED, drop_block=False),
    "d4_resnet": Recipe(D4ResNet, "arXiv:1602.07576", symmetric=True),
    "arc_graph": Recipe(ArcGraph, "arXiv:1801.07829", norms=("batch", "layer"), drop_block=False),
}
