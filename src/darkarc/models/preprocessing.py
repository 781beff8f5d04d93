"""Preprocessing of raw pixels inside the model, so that training and serving cannot differ."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from darkarc.config import ModelConfig
from darkarc.models.lens_residual import CHANNELS, LENSES, LensResidual
from darkarc.models.smooth_residual import SmoothResidual
from darkarc.models.vortex_evidence import central


class StatisticsError(ValueError):
    """Statistics of the train split or a crop that cannot prepare such images; the message says why."""


STRETCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "asinh": torch.asinh,
    "log": lambda x: torch.sign(x) * torch.log1p(x.abs()),
    "sqrt": lambda x: torch.sign(x) * 2 * (torch.sqrt(1 + x.abs()) - 1),
}
"""`model.stretch` -> an odd function of slope 1 at nought, so that faint pixels stay as they are."""

_BORDER_SHARE = 1 / 32
"""Width of the border that tells an image's background, as a share of the shorter side."""


class Standardise(nn.Module):
    """Raw pixels (B, 1, H, W), any real dtype -> float32 (B, C, H, W) of about unit deviation.

    Channel 0: `normalisation: dataset` divides by the deviation of the train split, which keeps each
    image's flux, `image` by the image's own. Nought is their mean, or with `background: border_median`
    the median of the image's outermost pixels. `stretch` then compresses what exceeds `stretch_scale`
    deviations. With `lens_residual` three channels for each fitted lens follow (see
    `models.lens_residual`); `form` is then the preset, noise form and distances of the images. With
    `residual` > 0 the last channel is `SmoothResidual`. With `crop_pixels` > 0 each channel is the central
    square of that, `seen` (H', W'); lenses are fitted to that square, all else to the whole image.
    """

    def __init__(
        self,
        model: ModelConfig,
        statistics: Mapping[str, Any],
        shape: tuple[int, int],
        form: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        lenses = LENSES[model.lens_residual] if form else ()
        self.seen = _cropped(shape, model.crop_pixels)
        made = [
            LensResidual(**form, shape=shape, lens=name, fit=model.lens_fit, seen=model.crop_pixels)
            for name in lenses
            if form
        ]
        self.lenses = nn.ModuleList(made)
        self.n_facts = sum(lens.n_facts for lens in made)
        self.per_image = model.normalisation == "image"
        self.stretch, self.scale = STRETCHES[model.stretch], model.stretch_scale
        mean, std = float(statistics["mean"]), float(statistics["std"])
        if not (std > 0 and abs(mean) < float("inf") and std < float("inf")):
            raise StatisticsError(
                f"statistics: expected a finite mean and a positive std of the train pixels, "
                f"found {mean}, {std}"
            )
        self.mean, self.std = mean, std
        self.border = BorderMedian(shape) if model.background == "border_median" else None
        self.residual = SmoothResidual(model.residual, shape) if model.residual else None
        self.channels = 1 + CHANNELS * len(made) + (self.residual is not None)

    def forward(self, images: Tensor) -> Tensor:
        return self.look(images)[0]

    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `forward` gives, and the fitted lens's facts (B, n_facts), None where there are none."""
        # Outside of autocast: raw counts in bfloat16 would lose the very differences that matter.
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(torch.float32)
            standard, facts = self.linear(images), None
            channels = [self.scale * self.stretch(standard / self.scale)]
            for lens in self.lenses:
                residual, found = lens(images)
                channels.append(residual)
                facts = facts if found is None else found
            if self.residual is not None:
                channels.append(self.residual(standard))
            if self.seen != images.shape[2:]:
                channels = [central(channel, self.seen[0]) for channel in channels]
            return torch.cat(channels, dim=1) if len(channels) > 1 else channels[0], facts

    def linear(self, images: Tensor) -> Tensor:
        """Channel 0 before the stretch, float32."""
        images = images.to(torch.float32)
        nought = None if self.border is None else self.border(images)
        if not self.per_image:
            return (images - (self.mean if nought is None else nought)) / self.std
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        centred = images - mean
        deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        # The floor keeps a constant image finite: it becomes all zeros.
        return (centred if nought is None else images - nought) / deviation.clamp_min(1e-6 * self.std)


def _cropped(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """(H', W') that the backbone sees."""
    if side == 0:
        return shape
    if side > min(shape) or any((size - side) % 2 for size in shape):
        raise StatisticsError(
            f"model.crop_pixels is {side}: expected at most {min(shape)}, and the same border on both sides "
            f"of images of {shape[0]} x {shape[1]} pixels; 0 shows all of them"
        )
    return side, side


class BorderMedian(nn.Module):
    """Images (B, 1, H, W) -> the median of each one's outermost pixels, (B, 1, 1, 1)."""

    where: Tensor

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        width = max(1, math.floor(min(shape) * _BORDER_SHARE))
        border = torch.ones(shape, dtype=torch.bool)
        border[width : shape[0] - width, width : shape[1] - width] = False
        self.register_buffer("where", border.flatten().nonzero().squeeze(1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        ordered = images.flatten(1)[:, self.where].sort(dim=1).values
        n = len(self.where)
        return ((ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2)[:, None, None, None]
