"""Deflection of the vortex line with its slopes, in element-wise operations alone.

`vortex.line_deflection` gathers the few pixels near the line and sums there in float64, so that every image
is exact and the same bits wherever it stands in a batch. Within a network neither the gathering (no ONNX
file would have it) nor the bits are wanted, but the slopes with respect to length and angle are. Here every
pixel gets the difference of two digamma functions that the sum is (see there), and their derivatives: from
S(v) with v = z exp(-i phi) / spacing,

    deflection = k conj(S) exp(i phi),  k = theta^2 / spacing
    D = deflection + k conj(v S'(v)) exp(i phi)
    d deflection / d phi = i D,  d deflection / d ln(length) = -D
"""

import math

import torch
from torch import Tensor

from darkarc.simulation.vortex import END_SERIES

_SHIFT = 4
"""Steps of the recurrence at the nearer end: the first term left out of the series is then below 2e-6."""
_STEEP = 6.0
"""So many spacings from the line the sum is a rod's, to rounding."""
_LEAST = 1e-12


def line_slopes(
    x_arcsec: Tensor,
    y_arcsec: Tensor,
    half_length_arcsec: Tensor,
    angle_rad: Tensor,
    *,
    points: int,
    einstein_radius2_arcsec2: float,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Deflection (x, y) and D (x, y), each (B, H, W), arcsec, in the dtype of the axes; see above.

    `x_arcsec` (W,), `y_arcsec` (H,), `half_length_arcsec` and `angle_rad` (B,); 50 points or more. In float32
    deflections of lines of 0.02 arcsec and more are good to 5e-6 arcsec next to a mass, to 2e-7 elsewhere.
    """
    spacing = 2 * half_length_arcsec.double() / (points - 1)
    cos, sin = angle_rad.double().cos(), angle_rad.double().sin()
    c, s = (cos / spacing)[:, None], (sin / spacing)[:, None]
    dtype = x_arcsec.dtype
    half, x, y = points / 2, x_arcsec.double(), y_arcsec.double()
    # Whole and broken parts apart: of a pixel next to a mass their sum would lose the distance to it.
    (xc, xc_rest), (xs, xs_rest), (yc, yc_rest), (ys, ys_rest) = (
        _parts(product, dtype) for product in (x * c, x * s, y * c, y * s)
    )
    rest = xc_rest[:, None, :] + ys_rest[:, :, None]
    along = (xc[:, None, :] + ys[:, :, None]) + rest
    across = (yc[:, :, None] - xs[:, None, :]) + (yc_rest[:, :, None] - xs_rest[:, None, :])
    side = torch.where(along < 0, -1.0, 1.0).to(along)
    offset = rest - (half - 0.5) % 1
    offset = side * (offset - offset.round())
    sum_re, sum_im, slope_re, slope_im = _sum_with_derivative(along.abs(), across, offset, half)
    # v S'; then both for -|along|: S(-conj v) = -conj S(v), and so is v S'.
    scaled_re = along.abs() * slope_re - across * slope_im
    scaled_im = along.abs() * slope_im + across * slope_re
    k = einstein_radius2_arcsec2 / spacing
    kc, ks = ((k * part)[:, None, None].to(dtype) for part in (cos, sin))

    def turned(re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        """k conj(re + i im) exp(i phi)."""
        return side * re * kc + im * ks, side * re * ks - im * kc

    ax, ay = turned(sum_re, sum_im)
    sx, sy = turned(scaled_re, scaled_im)
    return (ax, ay), (ax + sx, ay + sy)


def _parts(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The nearest whole numbers and what is left of them."""
    whole = x.round()
    return whole.to(dtype), (x - whole).to(dtype)


def _sum_with_derivative(
    distance: Tensor, across: Tensor, offset: Tensor, half: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Re and Im of S(v) and of S'(v) for v = distance + i across, distance >= 0 (see `vortex.exact_sum`).

    offset: of v from the nearest mass, along the line, in spacings.
    """
    inside = distance < half
    sign = torch.where(inside, -1.0, 1.0).to(distance)
    far_re, near_re = distance + half, (half - distance).abs() + _SHIFT
    near_im = sign * across
    across2 = across * across
    far_norm, near_norm = far_re * far_re + across2, near_re * near_re + across2
    far_inverse, near_inverse = 1 / far_norm, 1 / near_norm
    far = _end(far_re, across, far_inverse, 0, 1)
    near = _end(near_re, near_im, near_inverse, _SHIFT, 2)
    # pi cot(pi u) of the offset u = f + i b from the nearest mass, and pi^2 / sin(pi u)^2.
    offset = offset * math.pi
    grown = torch.expm1(math.pi * across.abs().clamp_max(_STEEP))
    sinh = torch.where(across < 0, -1.0, 1.0).to(across) * (grown + grown / (grown + 1)) / 2
    cosh = grown + 1 - sinh.abs()
    sine, cosine = offset.sin(), offset.cos()
    norm = (sinh * sinh + sine * sine).clamp_min(_LEAST)
    within = inside.to(distance) * math.pi / norm
    re, im = sine * cosh, cosine * sinh
    square = within * math.pi / norm
    # ln z at the far end less that at the near one: one logarithm, one arc tangent.
    logarithm = torch.log(far_norm * near_inverse) / 2
    angle = _angle(far_re * near_re + across * near_im, across * near_re - near_im * far_re)
    return (
        logarithm + far[0] - near[0] + within * sine * cosine,
        angle + far[1] - near[1] - within * sinh * cosh,
        far[2] - sign * near[2] - square * (re * re - im * im),
        far[3] - sign * near[3] + square * 2 * re * im,
    )


def _angle(x: Tensor, y: Tensor) -> Tensor:
    """Of x + i y, accurate where it is small (no runtime's ONNX has atan2)."""
    flat = y.abs() < x
    ratio = torch.where(flat, y, -x) / torch.where(flat, x, y)
    quarters = torch.where(flat, 0.0, torch.where(y < 0, -1.0, 1.0)).to(x)
    return torch.atan(ratio) + quarters * (math.pi / 2)


def _end(
    z_re: Tensor, im: Tensor, inverse: Tensor, shift: int, terms: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Re and Im of psi(1/2 + z - shift) - ln z and of psi's derivative there, z = z_re + i im, z_re >= shift.

    inverse: 1 / |z|^2.
    """
    t_re, t_im = (z_re * z_re - im * im) * inverse * inverse, -2 * z_re * im * inverse * inverse
    psi_re, psi_im = torch.zeros_like(z_re), torch.zeros_like(z_re)
    scaled_re, scaled_im = torch.ones_like(z_re), torch.zeros_like(z_re)  # z times the derivative
    power_re, power_im = t_re, t_im
    for k in range(1, terms + 1):
        c = END_SERIES[k - 1]
        psi_re, psi_im = psi_re + c * power_re, psi_im + c * power_im
        scaled_re, scaled_im = scaled_re - 2 * k * c * power_re, scaled_im - 2 * k * c * power_im
        if k < terms:
            power_re, power_im = power_re * t_re - power_im * t_im, power_re * t_im + power_im * t_re
    slope_re = (scaled_re * z_re + scaled_im * im) * inverse
    slope_im = (scaled_im * z_re - scaled_re * im) * inverse
    for k in range(shift):
        step = z_re + (k + 0.5 - shift)
        inverse = 1 / (step * step + im * im)
        one_re, one_im = step * inverse, -im * inverse
        psi_re, psi_im = psi_re - one_re, psi_im - one_im
        slope_re, slope_im = slope_re + one_re * one_re - one_im * one_im, slope_im + 2 * one_re * one_im
    return psi_re, psi_im, slope_re, slope_im
