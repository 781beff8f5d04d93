"""What a training does to its images, each sample by its own draws: section `train`, all off but flips.

Every draw is a pure function of (seed, epoch, index), made on the device; evaluation knows none of this.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from darkarc.config import Config, TrainConfig
from darkarc.data.augment import add_background, dihedral, dihedral_codes, rotate, rotation_matrices, shift
from darkarc.data.auxiliary import dihedral_matrices, turn_auxiliary
from darkarc.data.batches import Batch, BatchError
from darkarc.data.form import data_form
from darkarc.data.store import Store
from darkarc.simulation import Instrument, get_preset
from darkarc.simulation.counter import hash_indices, seed_for, uniforms


@dataclass(frozen=True)
class Background:
    """Extra noise: up to `rms` in stored units, smoothed by the PSF of `instrument`."""

    instrument: Instrument
    rms: float


@dataclass(frozen=True)
class Augmentation:
    """The augmentations of a configuration, for the images of one store."""

    settings: TrainConfig
    seed: int
    background: Background | None = None

    @classmethod
    def of(cls, config: Config, prepared: Store) -> "Augmentation":
        """Raises `BatchError` if noise is asked for and the store's instrument is not known."""
        level = config.train.noise_augmentation
        background = _background(level, prepared) if level > 0 else None
        return cls(config.train, config.seed, background)

    def __call__(self, batch: Batch, indices: Tensor, epoch: int) -> Batch:
        """The batch as training sees it; `indices` (B,) are the samples' numbers in the epoch.

        Auxiliary truths turn with their images. A shift leaves them as they are: it moves lens and source
        together, and a source's position is relative to its lens.
        """
        auxiliary = batch.auxiliary
        for matrices in self._turns(indices, epoch):
            auxiliary = turn_auxiliary(auxiliary, matrices)
        return batch._replace(images=self.images(batch.images, indices, epoch), auxiliary=auxiliary)

    def images(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Only the images (B, 1, H, W). Noise comes last, so that no interpolation smooths it."""
        settings = self.settings
        if settings.dihedral != "none":
            images = dihedral(images, self._codes(indices, epoch))
        if settings.rotation > 0:
            images = rotate(images, self._angles_rad(indices, epoch))
        if settings.shift_pixels > 0:
            most = settings.shift_pixels
            drawn = self._uniforms("shift", indices, epoch, 2) * (2 * most + 1)
            images = shift(images, drawn.floor().to(torch.int64) - most)
        if self.background is not None:
            level = self._uniforms("noise level", indices, epoch, 1)[:, 0] * self.background.rms
            keys = hash_indices(seed_for(self.seed, "noise augmentation"), epoch, indices)
            images = add_background(images, level, keys, self.background.instrument)
        return images

    def _turns(self, indices: Tensor, epoch: int) -> list[Tensor]:
        """(B, 2, 2) matrices of what turns each image, in their order."""
        turns = []
        if self.settings.dihedral != "none":
            turns.append(dihedral_matrices(self._codes(indices, epoch)))
        if self.settings.rotation > 0:
            turns.append(rotation_matrices(self._angles_rad(indices, epoch)))
        return turns

    def _codes(self, indices: Tensor, epoch: int) -> Tensor:
        return dihedral_codes(self.seed, epoch, indices, self.settings.dihedral)

    def _angles_rad(self, indices: Tensor, epoch: int) -> Tensor:
        drawn = self._uniforms("rotation", indices, epoch, 1)[:, 0]
        return (2 * drawn - 1) * math.radians(self.settings.rotation)

    def _uniforms(self, purpose: str, indices: Tensor, epoch: int, n: int) -> Tensor:
        return uniforms(hash_indices(seed_for(self.seed, purpose), epoch, indices), n)


def _background(level: float, prepared: Store) -> Background:
    form = data_form(prepared.manifest)
    if form.preset is None or form.noise is None:
        raise BatchError(
            f"{prepared.path}: train.noise_augmentation needs the instrument's noise and PSF, known for "
            f"the images of DeepLense's models, not for {prepared.manifest.instrument!r}: set it to 0"
        )
    preset = get_preset(form.preset)
    instrument = preset.instrument
    seconds = instrument.exposures * 10 ** (sum(instrument.log10_exposure_s) / 2)
    rms = level * float(instrument.background_sigma(seconds))
    if form.noise == "published":
        rms *= preset.published_factor
    if preset.counts and form.noise != "none":
        rms *= seconds
    return Background(instrument, rms)
