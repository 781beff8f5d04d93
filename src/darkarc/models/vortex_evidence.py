"""What the residual of a smooth lens says of a short vortex, as a few numbers beside the image.

Far from a line of half-length L at angle phi, its field is that of a point with the same mass, plus
L^2 (cos 2 phi, sin 2 phi) times two fields that depend on neither (to second order in L: the mean of
1 / (z - t) over t from -L to L is 1 / z + L^2 / (3 z^3) + ..., rotated by phi). These two numbers, the
vortex's quadrupole, are measured by linear least squares outside of the centre. They are all there is to
know there of a heavy particle, which no pixel alone betrays.

In the centre, where the expansion fails, images with the instrument's noise are compared with those of
vortices of some lengths and angles. Both together give the likelihood of each length, the angle averaged
over: sum over the pixels of (r d - d^2 / 2) / variance for the residual r and the change d of the image.
"""

import math

import torch
from torch import Tensor, nn

from darkarc.models.weighted_fit import Pair, fit_pair, orthogonal
from darkarc.simulation import Preset, observe, pixel_axis_arcsec, source_plane, vortex_deflection

POINT_MASS_LOG10_EV = -19.0
"""Half-length 3e-5 arcsec: a point for every instrument."""

_UNIT_LOG10_EV = -22.5  # half-length 0.095 arcsec: that of a unit quadrupole
_FAR_ARCSEC = {True: (0.3, 0.8), False: (0.3,)}
"""From where on the expansion is used: without noise (True), where its error is all there is, or with it."""
_CORE_ARCSEC = 0.4  # half a side of the centre, at least
_CORE_LOG10_EV = (-22.8, -22.0, 11)  # lengths from 0.19 to 0.03 arcsec
_ANGLES = 16
_LARGEST = 1e12


def central(images: Tensor, side: int) -> Tensor:
    """The central (..., side, side) of images (..., H, W)."""
    top, left = ((size - side) // 2 for size in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def reach_pixels(preset: Preset) -> int:
    """How far the point-spread function carries light, in whole pixels."""
    instrument = preset.instrument
    sigma = instrument.psf_fwhm_arcsec / math.sqrt(8 * math.log(2))
    return math.ceil(instrument.psf_truncation_sigma * sigma / instrument.pixel_scale_arcsec)


def quadrupole_fields(preset: Preset, distances: str, side: int) -> Tensor:
    """(2, 2, side, side) float64, arcsec: the deflections of a unit quadrupole at 0 and at 45 degrees."""
    angles = torch.tensor([0.0, math.pi / 4, 0.0], dtype=torch.float64)
    masses = torch.tensor([_UNIT_LOG10_EV] * 2 + [POINT_MASS_LOG10_EV], dtype=torch.float64)
    field = torch.stack(vortex_deflection(preset, masses, angles, distances=distances), dim=1)
    return central(field[:2] - field[2], side)


class VortexEvidence(nn.Module):
    """The fit's residual (B, H, W) and what it was fitted with -> `n_facts` numbers (B, n_facts).

    For each distance from which the expansion is used, half the logarithms of the quadrupole's square, of
    its variance, and of one plus the chi-square that it takes away; with `core` the inverse hyperbolic sine
    of the log likelihood ratio of each length to a point's.
    """

    far: Tensor
    planes: Tensor
    quadrupoles: Tensor

    def __init__(self, preset: Preset, distances: str, side: int, *, exact: bool, core: bool) -> None:
        super().__init__()
        self.preset, self.reach = preset, reach_pixels(preset)
        axis = central(pixel_axis_arcsec(preset)[None].expand(side, -1), side)[0]
        distance = torch.hypot(axis[:, None], axis[None, :])
        masks = [distance > radius for radius in _FAR_ARCSEC[exact]]
        self.core = 0
        if core:
            half = math.ceil(_CORE_ARCSEC / preset.instrument.pixel_scale_arcsec)
            self.core = 2 * half - side % 2
            inside = axis.abs() < half * preset.instrument.pixel_scale_arcsec
            masks = [~(inside[:, None] & inside[None, :])]
            self._tabulate(distances)
        far = torch.stack(masks)
        self.register_buffer("far", far.double() if exact else far.float(), persistent=False)
        self.n_facts = 3 * len(masks) + (_CORE_LOG10_EV[2] if core else 0)

    def _tabulate(self, distances: str) -> None:
        masses = torch.linspace(*_CORE_LOG10_EV, dtype=torch.float64)
        angles = torch.arange(_ANGLES, dtype=torch.float64) * math.pi / _ANGLES
        grid = torch.cartesian_prod(masses, angles)
        every = torch.cat([torch.tensor([[POINT_MASS_LOG10_EV, 0.0]], dtype=torch.float64), grid])
        side = self.core + 2 * self.reach
        planes = [
            central(
                torch.stack(source_plane(self.preset, log10_mass_ev=m, angle_rad=a, distances=distances)),
                side,
            )
            for m, a in zip(*(column.split(32) for column in every.unbind(1)), strict=True)
        ]
        size = 10 ** (2 * (_UNIT_LOG10_EV - grid[:, :1]))  # L^2 in units of the unit's
        doubled = 2 * grid[:, 1:]
        self.register_buffer(
            "planes", torch.cat(planes, dim=1).float(), persistent=False
        )  # (2, 1 + K A, c, c)
        parts = size * torch.cat([doubled.cos(), doubled.sin()], dim=1)
        self.register_buffer("quadrupoles", parts.float(), persistent=False)  # (K A, 2)

    def forward(
        self, rest: Tensor, weight: Tensor, source: Tensor, free: list[Tensor], unit: tuple[Tensor, Tensor]
    ) -> Tensor:
        """`free` images (B, H, W) were fitted beside the source (B, 2); `unit`: of the unit quadrupoles."""
        facts: list[Tensor] = []
        for far in self.far.unbind(0):
            outside = weight * far
            pair = fit_pair(rest, *unit, orthogonal(free, outside), outside)
            facts += _logarithms(pair)
        if self.core:
            facts += self._likelihoods(rest, weight, source, pair).unbind(1)
        return torch.stack(facts, dim=1).float()

    def _likelihoods(self, rest: Tensor, weight: Tensor, source: Tensor, outside: Pair) -> Tensor:
        """(B, K): inverse hyperbolic sines of the log likelihood ratios, the angle averaged over."""
        whole = observe(self.preset, self.planes[0], self.planes[1], source[:, None])  # (B, 1 + K A, c, c)
        images = central(whole, self.core).flatten(2)
        change = images[:, 1:] - images[:, :1]
        rest, weight = (central(x, self.core).flatten(1)[:, None] for x in (rest, weight))
        ratio = (weight * change * (rest - change / 2)).sum(dim=2)  # (B, K A)
        (xx, yy, xy), (qx, qy) = outside.normal[:, :, None].unbind(1), self.quadrupoles.unbind(1)
        ratio = ratio + outside.right @ self.quadrupoles.T
        ratio = ratio - (xx * qx * qx + yy * qy * qy) / 2 - xy * qx * qy
        averaged = torch.logsumexp(ratio.unflatten(1, (-1, _ANGLES)), dim=2) - math.log(_ANGLES)
        return torch.asinh(averaged.clamp(-_LARGEST, _LARGEST))


def _logarithms(pair: Pair) -> list[Tensor]:
    values = pair.found.square().sum(dim=1), pair.variance, 1 + pair.chi_square.clamp_min(0)
    return [torch.log(value.clamp(1 / _LARGEST, _LARGEST)) / 2 for value in values]
