"""The source's flux and the PSF against closed forms, scipy and lenstronomy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lenstronomy.LightModel.light_model import LightModel
from scipy.ndimage import gaussian_filter

from darkarc.simulation import PRESETS
from darkarc.simulation.source import convolve, pixel_flux, psf_matrix, psf_taps, sersic_amplitude

FWHM_PER_SIGMA = 2.3548200450309493


@pytest.mark.parametrize(
    ("name", "taps", "truncation"), [("model_i", 5, 3), ("model_ii", 7, 5), ("model_iii", 5, 5)]
)
def test_psf_is_scipys_truncated_gaussian(name: str, taps: int, truncation: int) -> None:
    instrument = PRESETS[name].instrument
    assert len(psf_taps(instrument)) == taps
    sigma = instrument.psf_fwhm_arcsec / FWHM_PER_SIGMA / instrument.pixel_scale_arcsec
    images = torch.rand(3, *instrument.shape, dtype=torch.float64)
    expected = [gaussian_filter(i, sigma, mode="nearest", truncate=truncation) for i in images.numpy()]
    assert np.abs(convolve(instrument, images).numpy() - expected).max() < 1e-14


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [3, 20, 94])
def test_two_products_with_the_psfs_matrix_convolve(name: str, size: int) -> None:
    """The edges, where the outermost pixel is repeated, and images smaller than the PSF included."""
    instrument = PRESETS[name].instrument
    images = torch.rand(2, size, size, dtype=torch.float64)
    matrix = psf_matrix(instrument, size)
    assert (matrix @ images @ matrix.T - convolve(instrument, images)).abs().max() < 1e-14
    assert (matrix.sum(dim=1) - 1).abs().max() < 1e-14


@pytest.mark.parametrize(("name", "magnitude_flux"), [("model_ii", 39.8107), ("model_iii", 242.1029)])
def test_source_holds_the_flux_of_its_magnitude(name: str, magnitude_flux: float) -> None:
    """Unlensed on a fine, wide grid: 10^(-0.4 (20 - zero point)) electrons a second in all."""
    preset = PRESETS[name]
    axis = (torch.arange(1200, dtype=torch.float64) - 599.5) * 0.005
    density = pixel_flux(
        preset, axis[None, :], axis[:, None], torch.tensor([0.1, -0.05], dtype=torch.float64)
    )
    density = density / preset.instrument.pixel_scale_arcsec**2
    assert density.sum().item() * 0.005**2 == pytest.approx(magnitude_flux, rel=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_brightness_against_lenstronomy(name: str) -> None:
    """Everywhere, the smoothed centre and the far outskirts included."""
    preset = PRESETS[name]
    x, y = torch.from_numpy(np.random.default_rng(0).normal(0.2, [[1.5], [1.5]], (2, 500)))
    x[:3] = torch.tensor([0.2, 0.2 + 3e-5, 0.2], dtype=torch.float64)
    y[:3] = torch.tensor([-0.1, -0.1, -0.1 + 8e-5], dtype=torch.float64)
    sersic = {"R_sersic": 0.25, "n_sersic": 1, "e1": -0.1, "e2": 0.1, "center_x": 0.2, "center_y": -0.1}
    sersic["amp"] = sersic_amplitude(preset) * preset.instrument.pixel_scale_arcsec**2
    expected = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(x.numpy(), y.numpy(), [sersic])
    ours = pixel_flux(preset, x[None], y[None], torch.tensor([0.2, -0.1], dtype=torch.float64))[0].numpy()
    assert np.abs(ours / expected - 1).max() < 1e-12


def test_a_steeper_source_is_lenstronomys_too() -> None:
    """de Vaucouleurs' n = 4, as of a galaxy in front of the arcs; every preset's source is exponential."""
    given = PRESETS["model_iii"]
    preset = replace(given, source=replace(given.source, sersic_index=4.0))
    x, y = torch.from_numpy(np.random.default_rng(0).normal(0.0, 0.5, (2, 500)))
    sersic = {"R_sersic": 0.25, "n_sersic": 4, "e1": -0.1, "e2": 0.1, "center_x": 0.0, "center_y": 0.0}
    sersic["amp"] = sersic_amplitude(preset) * preset.instrument.pixel_scale_arcsec**2
    expected = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(x.numpy(), y.numpy(), [sersic])
    ours = pixel_flux(preset, x[None], y[None], torch.zeros(2, dtype=torch.float64))[0].numpy()
    assert np.abs(ours / expected - 1).max() < 1e-12
