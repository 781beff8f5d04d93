"""From physical parameters to source-plane positions: pixel grid, main lens, substructure."""

import math
from functools import cache

import torch
from torch import Tensor

from darkarc.simulation.cosmology import deflection_rescaling, einstein_radius2_arcsec2
from darkarc.simulation.presets import Preset
from darkarc.simulation.vortex import line_deflection

Device = torch.device | str

# lenstronomy's SIE is an isothermal ellipsoid with this core, along the major axis / sqrt(q).
_CORE_ARCSEC = 1e-10
# Where padding (nan) subhaloes are put; their mass is nought.
_PARKED_ARCSEC = 1e3


@cache
def pixel_axis_arcsec(preset: Preset, device: Device = "cpu") -> Tensor:
    """Pixel centres along either axis, (pixels,) float64, arcsec; the origin is the grid's centre."""
    instrument = preset.instrument
    index = torch.arange(instrument.pixels, dtype=torch.float64, device=device)
    return (index - (instrument.pixels - 1) / 2) * instrument.pixel_scale_arcsec


@cache
def smooth_source_plane(
    preset: Preset,
    distances: str = "deeplense",
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Where each pixel's ray ends without substructure: x and y, (H, W), arcsec.

    Singular isothermal ellipsoid and external shear, the same for every image of a preset: computed once
    in float64. Do not modify the tensors: they are shared.
    """
    # caustics takes seconds to import: only when something is simulated.
    from caustics.lenses.func import reduced_deflection_angle_external_shear, reduced_deflection_angle_sie

    lens, axis = preset.lens, pixel_axis_arcsec(preset, "cpu")
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    rescaling = deflection_rescaling(preset, distances)
    e = torch.tensor(lens.ellipticity, dtype=torch.float64)
    modulus = torch.linalg.vector_norm(e)
    axis_ratio, position_angle = (1 - modulus) / (1 + modulus), torch.atan2(e[1], e[0]) / 2
    einstein_radius = einstein_radius2_arcsec2(lens.halo_mass_msun, distances) ** 0.5
    core = _CORE_ARCSEC / axis_ratio**0.5
    ax, ay = reduced_deflection_angle_sie(0.0, 0.0, axis_ratio, position_angle, einstein_radius, x, y, core)
    sx, sy = reduced_deflection_angle_external_shear(0.0, 0.0, *lens.shear, x, y)
    plane = (x - rescaling * (ax + sx), y - rescaling * (ay + sy))
    return tuple(p.to(device=device, dtype=dtype) for p in plane)


def _power_of_ten(exponent: Tensor) -> Tensor:
    # Not torch's power, whose last bit depends on an element's place in the batch.
    return torch.exp(exponent * math.log(10.0))


def vortex_half_length_arcsec(preset: Preset, log10_mass_ev: Tensor) -> Tensor:
    """Half-length of the vortex line, arcsec: 0.03 (1e-22 eV / m), the only place where m enters."""
    return preset.lens.vortex_half_length_arcsec * _power_of_ten(-22.0 - log10_mass_ev)


def vortex_deflection(
    preset: Preset,
    log10_mass_ev: Tensor,
    angle_rad: Tensor,
    *,
    distances: str = "deeplense",
    dtype: torch.dtype = torch.float64,
    window: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Deflection by the vortex, x and y, each (B, H, W), arcsec; parameters (B,) float64.

    Differentiable with respect to both parameters. window: rows and columns (int64) of the pixels wanted.
    """
    axis = pixel_axis_arcsec(preset, log10_mass_ev.device)
    y, x = (axis, axis) if window is None else (axis[window[0]], axis[window[1]])
    return line_deflection(
        x,
        y,
        vortex_half_length_arcsec(preset, log10_mass_ev),
        angle_rad,
        points=preset.lens.vortex_points,
        einstein_radius2_arcsec2=vortex_point_arcsec2(preset, distances),
        dtype=dtype,
    )


def vortex_point_arcsec2(preset: Preset, distances: str = "deeplense") -> float:
    """theta^2 of each mass of the vortex, arcsec^2, DeepLense's rescaling included."""
    lens = preset.lens
    strength = einstein_radius2_arcsec2(lens.vortex_mass_msun / lens.vortex_points, distances)
    return strength * deflection_rescaling(preset, distances)


def subhalo_deflection(
    preset: Preset,
    log10_mass_msun: Tensor,
    position_arcsec: Tensor,
    *,
    distances: str = "deeplense",
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Deflection by point-mass subhaloes, x and y, each (B, H, W), arcsec.

    `log10_mass_msun` (B, S) and `position_arcsec` (B, S, 2) are float64; nan rows are padding.
    Offsets from a mass are taken in float64 before rounding, so float32 stays accurate next to it.
    """
    axis = pixel_axis_arcsec(preset, log10_mass_msun.device)
    mass_msun = _power_of_ten(log10_mass_msun.nan_to_num(-torch.inf))
    strength = einstein_radius2_arcsec2(mass_msun, distances) * deflection_rescaling(preset, distances)
    offset = axis - position_arcsec.nan_to_num(_PARKED_ARCSEC)[..., None]  # (B, S, 2, W)
    dx, dy = offset[:, :, 0, None, :].to(dtype), offset[:, :, 1, :, None].to(dtype)
    dx2, dy2, strength = dx * dx, dy * dy, strength.to(dtype)[..., None, None]
    size = (log10_mass_msun.shape[0], axis.numel(), axis.numel())
    ax = torch.zeros(size, dtype=dtype, device=axis.device)
    ay = torch.zeros_like(ax)
    for s in range(log10_mass_msun.shape[1]):
        weight = strength[:, s] / (dx2[:, s] + dy2[:, s])
        ax.addcmul_(weight, dx[:, s])
        ay.addcmul_(weight, dy[:, s])
    return ax, ay
