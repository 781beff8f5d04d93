"""The three published lens models: lens, source, instrument, in the numbers of DeepLenseSim.

Sources: DeepLenseSim's `lens.py` and its `Model_*` scripts (arXiv:1909.07346, 2008.12731, 2112.12121);
the observations of models II and III are those of lenstronomy 1.9.2, which the published sets were
made with (later versions of lenstronomy changed them).
"""

import difflib
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

FloatOrArray = TypeVar("FloatOrArray", float, np.ndarray)

DISTANCES = ("deeplense", "physical")
NOISES = ("none", "published", "physical")


class SimulationError(ValueError):
    """Physical parameters that cannot be simulated; the message says what was expected and found."""


@dataclass(frozen=True)
class Instrument:
    """Pixels, point-spread function and noise of one camera.

    A count-rate image is in electrons a second (Model I: in its arbitrary photon unit a second).
    `background_rms` (per pixel and second) is given for Model I; for the others it follows from sky,
    read noise and exposure. `gain` (electrons an ADU) does not enter images in electrons a second.
    """

    name: str
    pixels: int
    pixel_scale_arcsec: float
    psf_fwhm_arcsec: float
    psf_truncation_sigma: float
    exposures: int
    log10_exposure_s: tuple[float, float]
    """Range of log10 of one exposure's time, drawn uniformly; two equal ends fix it."""
    background_rms: float | None = None
    sky_mag_arcsec2: float | None = None
    zero_point_mag: float | None = None
    read_noise_electrons: float | None = None
    gain: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.pixels, self.pixels)

    def background_sigma(self, exposure_s: FloatOrArray) -> FloatOrArray:
        """Background noise of a pixel, counts a second, for a total exposure time in seconds.

        Sky photons and one read-out an exposure (lenstronomy, `data_util.bkg_noise`):
        sqrt(n RN^2 + t S p^2) / t with the sky S = 10^(-0.4 (sky - zero point)) per square arcsecond.
        """
        if self.background_rms is not None:
            return self.background_rms + 0 * exposure_s
        assert self.sky_mag_arcsec2 is not None and self.zero_point_mag is not None
        assert self.read_noise_electrons is not None
        sky = 10 ** (-0.4 * (self.sky_mag_arcsec2 - self.zero_point_mag)) * self.pixel_scale_arcsec**2
        return (self.exposures * self.read_noise_electrons**2 + exposure_s * sky) ** 0.5 / exposure_s


@dataclass(frozen=True)
class Lens:
    """Main halo, external shear and dark-matter substructure (masses in solar masses)."""

    halo_mass_msun: float = 1e12
    ellipticity: tuple[float, float] = (0.1, 0.0)
    shear: tuple[float, float] = (0.05, 0.0)
    vortex_mass_msun: float = 3e10
    vortex_points: int = 100
    vortex_half_length_arcsec: float = 0.03
    """Half-length at a particle mass of 1e-22 eV; it grows as 1 / mass."""
    log10_axion_mass_ev: tuple[float, float] = (-24.0, -22.0)
    subhalos: int = 25
    subhalo_mass_msun: tuple[float, float] = (1e6, 1e10)
    subhalo_slope: float = -0.9
    """Masses m = (A + (B - A) u)^(1 / (1 + slope)), A and B the ends to the power 1 + slope."""
    subhalo_radius_arcsec: tuple[float, float] = (0.25, 2.0)


@dataclass(frozen=True)
class Source:
    """Elliptical Sersic source; either `amplitude` (surface brightness at the half-light radius, per
    square arcsecond) or `magnitude` (of the whole source) is given."""

    half_light_radius_arcsec: float = 0.25
    sersic_index: float = 1.0
    ellipticity: tuple[float, float] = (-0.1, 0.1)
    position_arcsec: tuple[float, float] = (-0.35, 0.35)
    """Range of each coordinate of the centre, drawn uniformly."""
    amplitude: float | None = None
    magnitude: float | None = None


@dataclass(frozen=True)
class Preset:
    """One of the published models.

    `deflection_rescaling` is what lenstronomy multiplies DeepLense's deflections by because the Einstein
    radii are declared for a source at redshift 2.5 and the source lies at 1.0 (models II and III).
    `published_factor`: models II and III store model + model where model + noise was evidently meant.
    """

    name: str
    instrument: Instrument
    source: Source
    lens: Lens = Lens()
    deflection_rescaling: float = 1.0
    published_factor: float = 1.0
    counts: bool = False
    """Noisy images are photon counts of the whole exposure (Model I), not a rate."""

    def as_dict(self) -> dict[str, Any]:
        """Every number of the preset, nested, fit for JSON."""
        return asdict(self)


BETA_WMAP9 = 0.6343147665739448
"""[D_LS / D_S](z_S = 1.0) / [D_LS / D_S](z_S = 2.5) for z_L = 0.5 in WMAP9, which pyHalo hands over."""


def _fixed_exposure(seconds: float) -> tuple[float, float]:
    return (float(np.log10(seconds)), float(np.log10(seconds)))


PRESETS: dict[str, Preset] = {
    "model_i": Preset(
        name="model_i",
        instrument=Instrument(
            name="DeepLense Model I",
            pixels=150,
            pixel_scale_arcsec=0.05,
            psf_fwhm_arcsec=0.087,
            psf_truncation_sigma=3.0,
            exposures=1,
            log10_exposure_s=(3.0, 3.5),
            background_rms=0.01,
        ),
        source=Source(amplitude=20.0),
        counts=True,
    ),
    "model_ii": Preset(
        name="model_ii",
        instrument=Instrument(
            name="Euclid VIS",
            pixels=64,
            pixel_scale_arcsec=0.101,
            psf_fwhm_arcsec=0.16,
            psf_truncation_sigma=5.0,
            exposures=4,
            log10_exposure_s=_fixed_exposure(565.0),
            sky_mag_arcsec2=22.35,
            zero_point_mag=24.0,
            read_noise_electrons=4.2,
            gain=3.1,
        ),
        source=Source(magnitude=20.0),
        deflection_rescaling=BETA_WMAP9,
        published_factor=2.0,
    ),
    "model_iii": Preset(
        name="model_iii",
        instrument=Instrument(
            name="HST WFC3 F160W",
            pixels=64,
            pixel_scale_arcsec=0.08,
            psf_fwhm_arcsec=0.08,
            psf_truncation_sigma=5.0,
            exposures=1,
            log10_exposure_s=_fixed_exposure(5400.0),
            sky_mag_arcsec2=22.3,
            zero_point_mag=25.96,
            read_noise_electrons=4.0,
            gain=2.5,
        ),
        source=Source(magnitude=20.0),
        deflection_rescaling=BETA_WMAP9,
        published_factor=2.0,
    ),
}


def get_preset(preset: "str | Preset") -> Preset:
    """A preset by name; a preset is handed through. Raises `SimulationError` for an unknown name."""
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        near = difflib.get_close_matches(str(preset).lower(), list(PRESETS), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SimulationError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}{hint}")
    return PRESETS[preset]


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `SimulationError` unless `value` of the option `name` is one of `known`."""
    if value not in known:
        raise SimulationError(f"{name}={value!r}: expected one of {', '.join(known)}")
