"""Standardisation of raw pixels inside the model, so that training and serving cannot differ."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from darkarc.config import ModelConfig
from darkarc.models.lens_residual import CHANNELS, LENSES, LensResidual


class StatisticsError(ValueError):
    """Statistics of the train split that cannot standardise anything."""


class Standardise(nn.Module):
    """Raw pixels (B, 1, H, W), any real dtype -> float32 (B, C, H, W) of about unit size, C = `channels`.

    `normalisation: dataset` uses mean and deviation of the train split, which keeps each image's
    flux; `image` uses the image's own. `stretch: asinh` then compresses the bright arc. With
    `lens_residual` three channels for each fitted lens follow (see `models.lens_residual`); `form` is then
    the preset, noise form and distances of the images.
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
        self.lenses = nn.ModuleList(LensResidual(**(form or {}), shape=shape, lens=name) for name in lenses)
        self.channels = 1 + CHANNELS * len(self.lenses)
        self.per_image = model.normalisation == "image"
        self.stretch = model.stretch
        mean, std = float(statistics["mean"]), float(statistics["std"])
        if not (std > 0 and abs(mean) < float("inf") and std < float("inf")):
            raise StatisticsError(
                f"statistics: expected a finite mean and a positive std of the train pixels, "
                f"found {mean}, {std}"
            )
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        # Outside of autocast: raw counts in bfloat16 would lose the very differences that matter.
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(torch.float32)
            residuals = [lens(images) for lens in self.lenses]
            if self.per_image:
                centred = images - images.mean(dim=(1, 2, 3), keepdim=True)
                deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
                # The floor keeps a constant image finite: it becomes all zeros.
                images = centred / deviation.clamp_min(1e-6 * self.std)
            else:
                images = (images - self.mean) / self.std
            images = torch.asinh(images) if self.stretch == "asinh" else images
            return torch.cat([images, *residuals], dim=1) if residuals else images
