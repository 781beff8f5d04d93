"""Surface brightness of the source and what the instrument's pixels and PSF make of it."""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from darkarc.simulation.presets import Instrument, Preset, Source

# lenstronomy holds the profile constant inside this radius.
_SMOOTHING_ARCSEC = 1e-4


def sersic_coefficient(sersic_index: float) -> float:
    """lenstronomy's linear approximation of b_n, 1.9992 n - 0.3271."""
    from caustics.light.func import k_lenstronomy

    return float(k_lenstronomy(sersic_index))


@cache
def sersic_amplitude(preset: Preset) -> float:
    """Surface brightness at the half-light radius, counts a second and square arcsecond.

    From a magnitude: the total flux 10^(-0.4 (magnitude - zero point)) over that of a unit profile,
    2 pi n R^2 e^b b^(-2n) Gamma(2n) (Graham & Driver 2005, eq. 2).
    """
    source: Source = preset.source
    if source.amplitude is not None:
        return source.amplitude
    assert source.magnitude is not None and preset.instrument.zero_point_mag is not None
    n, b = source.sersic_index, sersic_coefficient(source.sersic_index)
    unit_flux = 2 * math.pi * n * source.half_light_radius_arcsec**2 * math.exp(b) * b ** (-2 * n)
    unit_flux *= math.gamma(2 * n)
    return 10 ** (-0.4 * (source.magnitude - preset.instrument.zero_point_mag)) / unit_flux


def pixel_flux(preset: Preset, x_arcsec: Tensor, y_arcsec: Tensor, centre_arcsec: Tensor) -> Tensor:
    """Counts a second in each pixel before the PSF: surface brightness times pixel area.

    Positions in the source plane and the centre `(..., 2)` broadcast: `centre_arcsec` gets two trailing
    axes for the pixels. Sersic: I = I_e exp(-b ((R / R_e)^(1/n) - 1)), where R is lenstronomy's
    product-averaged elliptical radius (`param_util.transform_e1e2_product_average`). Not caustics'
    function: that one has neither the smoothing nor this ellipticity.
    """
    dx, dy, radius2, _ = _elliptical(preset.source, x_arcsec, y_arcsec, centre_arcsec)
    del dx, dy
    return torch.exp(log_peak_flux(preset) - _exponent(preset.source, radius2))


def pixel_flux_with_gradient(
    preset: Preset, x_arcsec: Tensor, y_arcsec: Tensor, centre_arcsec: Tensor
) -> tuple[Tensor, Tensor]:
    """`pixel_flux` (..., H, W) and its derivatives (..., 2, H, W) with respect to the centre's x and y.

    In closed form: it costs a third of five fluxes for central differences, or of forward-mode autograd.
    """
    source = preset.source
    dx, dy, radius2, (xx, yy, xy) = _elliptical(source, x_arcsec, y_arcsec, centre_arcsec)
    power = _exponent(source, radius2)
    flux = torch.exp(log_peak_flux(preset) - power)
    slope = flux * power / radius2 * (0.5 / source.sersic_index)
    by_x = slope * torch.add(dx * (2 * xx), dy, alpha=xy)
    by_y = slope * torch.add(dy * (2 * yy), dx, alpha=xy)
    return flux, torch.stack([by_x, by_y], dim=-3)


def _elliptical(
    source: Source, x_arcsec: Tensor, y_arcsec: Tensor, centre_arcsec: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[float, float, float]]:
    """Offsets from the centre, the squared elliptical radius and its coefficients of dx², dy², dx dy.

    In units that make (radius²)^(1 / 2n) the exponent b (R / R_e)^(1/n).
    """
    dx = x_arcsec - centre_arcsec[..., 0, None, None]
    dy = y_arcsec - centre_arcsec[..., 1, None, None]
    e1, e2 = source.ellipticity
    n, b = source.sersic_index, sersic_coefficient(source.sersic_index)
    unit2 = (source.half_light_radius_arcsec / b**n) ** 2
    norm = (1 - e1**2 - e2**2) * unit2
    xx, yy, xy = ((1 - e1) ** 2 + e2**2) / norm, ((1 + e1) ** 2 + e2**2) / norm, -4 * e2 / norm
    radius2 = torch.addcmul(dy * dy * yy, dx, torch.add(dx * xx, dy, alpha=xy))
    return dx, dy, radius2.clamp_min(_SMOOTHING_ARCSEC**2 / unit2), (xx, yy, xy)


def _exponent(source: Source, radius2: Tensor) -> Tensor:
    """Sersic's b (R / R_e)^(1/n), from the squared radius of `_elliptical`."""
    # The same bits as the power, in an operation that every runtime has a fast form of.
    return radius2.sqrt() if source.sersic_index == 1 else radius2.pow(0.5 / source.sersic_index)


def log_peak_flux(preset: Preset) -> float:
    """ln of the flux, counts a second, of a pixel in the centre of the source: no pixel has more."""
    area = preset.instrument.pixel_scale_arcsec**2
    return math.log(sersic_amplitude(preset) * area) + sersic_coefficient(preset.source.sersic_index)


@cache
def psf_taps(instrument: Instrument) -> tuple[float, ...]:
    """One-dimensional Gaussian PSF in pixels, normalised after truncation at whole pixels.

    The same taps as `scipy.ndimage.gaussian_filter`, which lenstronomy convolves with.
    """
    sigma = instrument.psf_fwhm_arcsec / (2 * math.sqrt(2 * math.log(2))) / instrument.pixel_scale_arcsec
    radius = int(instrument.psf_truncation_sigma * sigma + 0.5)
    taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    return tuple(t / math.fsum(taps) for t in taps)


def convolve(instrument: Instrument, images: Tensor) -> Tensor:
    """Images (..., H, W) through the PSF; beyond the edge the outermost pixel is repeated."""
    taps = psf_taps(instrument)
    radius = len(taps) // 2
    height, width = images.shape[-2:]
    padded = pad(images.reshape(-1, height, width), (radius,) * 4, mode="replicate")
    rows = _correlate([padded.narrow(1, k, height) for k in range(len(taps))], taps)
    columns = _correlate([rows.narrow(2, k, width) for k in range(len(taps))], taps)
    return columns.reshape(images.shape)


def psf_matrix(instrument: Instrument, size: int) -> Tensor:
    """(size, size) float64 matrix P of the PSF along one axis: P @ image @ P.T is `convolve`, to rounding."""
    taps = torch.tensor(psf_taps(instrument), dtype=torch.float64)
    near = torch.arange(size)[:, None] + torch.arange(len(taps)) - len(taps) // 2
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, near.clamp(0, size - 1), taps.expand(size, -1).contiguous())


def _correlate(shifted: list[Tensor], taps: tuple[float, ...]) -> Tensor:
    total = shifted[0] * taps[0]
    for image, tap in zip(shifted[1:], taps[1:], strict=True):
        total.add_(image, alpha=tap)
    return total
