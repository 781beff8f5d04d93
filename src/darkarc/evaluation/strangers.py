"""Images that a regressor was not trained for, rendered as its training images were, one thing changed.

Each case has one departure from the preset: the instrument, the lens, the source, or no lens at all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from darkarc.data.form import DataForm
from darkarc.simulation import (
    PRESETS,
    Instrument,
    Preset,
    Scenes,
    add_noise,
    draw_scenes,
    noise_moments,
    observe,
    pixel_axis_arcsec,
    render,
    source_plane,
)
from darkarc.simulation.source import convolve, pixel_flux

Images = NDArray[np.float32]
Floats = NDArray[np.float64]

WIDER, WIDEST = 1.5, 2.0
OTHER_SCALE = 1.25
LENS_LIGHT_SHARE = 0.5
"""Light of the lens galaxy within the image, in units of the arc's."""
LENS_RADIUS_ARCSEC, LENS_SERSIC_INDEX = 0.6, 4.0
GALAXY_RADIUS_ARCSEC = 0.5
CLUMPS = 5
CLUMP_RADIUS_SHARE, CLUMP_SCATTER_SHARE = 0.25, 0.8
"""Of the source's half-light radius: radii of the clumps and the scatter of their places."""


@dataclass(frozen=True, eq=False)
class Case:
    """N images (N, H, W) with one thing changed; truth (N,): log10 mass, nan where there is no vortex."""

    name: str
    meaning: str
    images: Images
    truth: Floats


class Studio:
    """N axion scenes of a preset, rendered again and again with something changed.

    form: preset, noise and distances of the images that the regressor was trained on.
    """

    def __init__(self, form: DataForm, n: int, seed: int) -> None:
        assert form.preset is not None and form.noise is not None and form.distances is not None
        self.preset, self.noise, self.distances = PRESETS[form.preset], form.noise, form.distances
        self.seed, self.indices = seed, np.arange(n)
        self.scenes: Scenes = draw_scenes(self.preset, "axion", seed, self.indices)
        self.model = self.rendered(self.preset)

    @property
    def truth(self) -> Floats:
        return self.scenes.log10_mass_ev

    def rendered(self, preset: Preset) -> Floats:
        """(N, H, W) noise-free images of the scenes with this preset's lens, source and instrument."""
        images: Floats = render(preset, self.scenes, distances=self.distances).double().numpy()
        return images

    def stored(self, model: Floats, preset: Preset | None = None) -> Images:
        """Noise-free images in the form that the data set stores, with its noise."""
        return self._with_noise(model, self.noise, preset or self.preset).astype(np.float32)

    def doubled_noise(self) -> Images:
        """Twice the noise; images of a data set without noise get the instrument's own."""
        seconds = torch.from_numpy(self.scenes.exposure_s)[:, None, None]
        mean, variance = noise_moments(
            self.preset, torch.from_numpy(self.model), noise=self.noise, exposure_s=seconds
        )
        if not bool((variance > 0).any()):
            factor = self.preset.published_factor if self.noise == "published" else 1.0
            return (factor * self._with_noise(self.model, "physical", self.preset)).astype(np.float32)
        noisy = self._with_noise(self.model, self.noise, self.preset)
        return (mean.numpy() + 2 * (noisy - mean.numpy())).astype(np.float32)

    def lens_light(self) -> Images:
        """A de Vaucouleurs galaxy in front of the arcs."""
        galaxy = replace(
            self.preset.source,
            sersic_index=LENS_SERSIC_INDEX,
            half_light_radius_arcsec=LENS_RADIUS_ARCSEC,
            ellipticity=self.preset.lens.ellipticity,
        )
        light = self._unlensed(replace(self.preset, source=galaxy), np.zeros((1, 2)))
        share = LENS_LIGHT_SHARE * self.model.sum(axis=(1, 2), keepdims=True) / light.sum()
        return self.stored(self.model + share * light)

    def clumpy_source(self) -> Images:
        """A handful of round knots of the source's total light in its place."""
        source = self.preset.source
        radius = source.half_light_radius_arcsec
        knot = replace(source, half_light_radius_arcsec=CLUMP_RADIUS_SHARE * radius, ellipticity=(0.0, 0.0))
        light = 1 / CLUMPS if source.magnitude is not None else 1 / (CLUMPS * CLUMP_RADIUS_SHARE**2)
        x, y = source_plane(
            self.preset,
            log10_mass_ev=torch.from_numpy(self.scenes.log10_mass_ev),
            angle_rad=torch.from_numpy(self.scenes.angle_rad),
            distances=self.distances,
        )
        scatter = np.random.default_rng(self.seed).normal(size=(CLUMPS, len(self.scenes), 2))
        places = self.scenes.source_arcsec + CLUMP_SCATTER_SHARE * radius * scatter
        knots = replace(self.preset, source=knot)
        total: Tensor = sum(
            (observe(knots, x, y, torch.from_numpy(place)) for place in places), torch.zeros(())
        )
        return self.stored(light * total.numpy())

    def galaxies(self) -> Images:
        """Galaxies without a lens, as bright as the arcs."""
        galaxy = replace(self.preset.source, half_light_radius_arcsec=GALAXY_RADIUS_ARCSEC)
        light = self._unlensed(replace(self.preset, source=galaxy), self.scenes.source_arcsec)
        share = self.model.sum(axis=(1, 2), keepdims=True) / light.sum(axis=(1, 2), keepdims=True)
        return self.stored(share * light)

    def shuffled(self) -> Images:
        """The pixels of lenses in random order."""
        images = self.stored(self.model)
        flat = images.reshape(len(images), -1)
        mixed = np.random.default_rng(self.seed).permuted(flat, axis=1)
        return mixed.reshape(images.shape)

    def constant(self) -> Images:
        """Every pixel the image's mean."""
        images = self.stored(self.model)
        return np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape).copy()

    def _unlensed(self, preset: Preset, centres: Floats) -> Floats:
        axis = pixel_axis_arcsec(preset)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        light = convolve(preset.instrument, pixel_flux(preset, x, y, torch.from_numpy(centres)))
        return light.double().numpy()

    def _with_noise(self, model: Floats, noise: str, preset: Preset) -> NDArray[Any]:
        scenes = self.scenes
        return add_noise(
            preset,
            model,
            scenes.exposure_s,
            noise=noise,
            seed=self.seed,
            class_index=scenes.class_index,
            indices=self.indices,
        )

    def through(self, instrument: Instrument) -> Images:
        """The scenes through another instrument."""
        preset = replace(self.preset, instrument=instrument)
        return self.stored(self.rendered(preset), preset)


def strange_cases(form: DataForm, n: int, seed: int) -> Iterator[Case]:
    """The cases, one after the other, n images each; form: of the images that were trained on."""
    studio = Studio(form, n, seed)
    instrument = studio.preset.instrument
    fwhm, scale = instrument.psf_fwhm_arcsec, instrument.pixel_scale_arcsec
    lensed: list[tuple[str, str, Callable[[], Images]]] = [
        (
            "PSF × 1.5",
            "point-spread function 1.5 times wider",
            lambda: studio.through(replace(instrument, psf_fwhm_arcsec=WIDER * fwhm)),
        ),
        (
            "PSF × 2",
            "point-spread function twice as wide",
            lambda: studio.through(replace(instrument, psf_fwhm_arcsec=WIDEST * fwhm)),
        ),
        ("noise × 2", "twice the noise (the instrument's own where there was none)", studio.doubled_noise),
        (
            "pixels × 1.25",
            "pixels 1.25 times wider",
            lambda: studio.through(replace(instrument, pixel_scale_arcsec=OTHER_SCALE * scale)),
        ),
        ("lens light", "a de Vaucouleurs lens galaxy, half as bright as the arcs", studio.lens_light),
        ("clumpy source", "five knots in place of a Sersic source", studio.clumpy_source),
    ]
    for name, meaning, make in lensed:
        yield Case(name, meaning, make(), studio.truth)
    nothing = np.full(n, np.nan)
    others: list[tuple[str, str, Callable[[], Images]]] = [
        ("galaxy", "a galaxy without a lens", studio.galaxies),
        ("pure noise", "no light at all", lambda: studio.stored(np.zeros_like(studio.model))),
        ("shuffled", "a lens's pixels in random order", studio.shuffled),
        ("constant", "every pixel the same", studio.constant),
    ]
    for name, meaning, make in others:
        yield Case(name, meaning, make(), nothing)
