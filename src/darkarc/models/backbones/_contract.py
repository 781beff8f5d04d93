"""What every backbone is: one shape of module, one way to build it, one check of its options."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from darkarc.config import ModelConfig

Shape = tuple[int, int]

SMALL_IMAGE = 96
"""Up to this many pixels a side, an ImageNet stem's first halvings would throw the arc's detail away."""

NORMS = ("batch", "group", "layer")


class BackboneError(ValueError):
    """A backbone that cannot do what is asked of it; the message names the key and the way out."""


class Backbone(nn.Module):
    """Standardised images (B, in_channels, H, W) -> features (B, n_features)."""

    n_features: int


Builder = Callable[[ModelConfig, Shape, int], Backbone]


@dataclass(frozen=True)
class Recipe:
    """How to build a backbone, and which options of the model section it can honour.

    build: (model section, image shape, input channels) -> the module. source: the paper that describes
    it. norms: choices of `model.norm`; the first is the paper's own. drop_block, stochastic_depth:
    whether those rates mean anything here. symmetric: whether the answer must not depend on how an image is
    turned, so that images must be square and nothing with an orientation of its own may stand beside them.
    """

    build: Builder
    source: str
    norms: tuple[str, ...] = NORMS
    drop_block: bool = True
    stochastic_depth: bool = True
    symmetric: bool = False

    def problem(self, model: ModelConfig) -> str | None:
        """Why this backbone cannot honour the model section, or None."""
        if model.norm not in ("native", *self.norms):
            return (
                f"model.norm: {model.backbone} cannot have {model.norm} normalisation: "
                f"set it to {' or '.join(('native', *self.norms))}"
            )
        if model.drop_block > 0 and not self.drop_block:
            return (
                f"model.drop_block: {model.backbone} has no convolutional stages whose maps DropBlock could "
                f"blank: set it to 0, found {model.drop_block:g}"
            )
        if model.stochastic_depth > 0 and not self.stochastic_depth:
            return (
                f"model.stochastic_depth: {model.backbone} has no residual branches to drop: set it to 0, "
                f"found {model.stochastic_depth:g}"
            )
        oriented = {
            "lens_residual": model.lens_residual not in ("auto", "none"),
            "residual": model.residual > 0,
            "vortex_fit": model.vortex_fit,
        }
        if self.symmetric and any(oriented.values()):
            key = next(key for key, found in oriented.items() if found)
            return (
                f"model.{key}: lenses have an orientation, which {model.backbone} must not see: leave it at "
                f"its default or take another model.backbone, found {getattr(model, key)}"
            )
        return None

    def __call__(self, model: ModelConfig, shape: Shape, in_channels: int = 1) -> Backbone:
        """The untrained backbone; weights come from torch's current seed.

        Raises `BackboneError` for an option or an image shape that it cannot honour.
        """
        problem = self.problem(model)
        if problem is None and self.symmetric and shape[0] != shape[1]:
            problem = (
                f"model.backbone: {model.backbone} needs square images, found {shape[0]} x {shape[1]} pixels"
            )
        if problem is not None:
            raise BackboneError(problem)
        return self.build(model, shape, in_channels)


def chosen_norm(model: ModelConfig, native: str) -> str:
    """The normalisation to build with, where `native` is the paper's own."""
    return native if model.norm == "native" else model.norm


def channels(count: float, width: float) -> int:
    """A channel count times `width`, rounded to a multiple of 8 (vector registers), at least 8."""
    return max(8, round(count * width / 8) * 8)
