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
    """Deflection (x, y) and D (x, y), each (B, H, W), arcsec, in the dtype of the arguments; see above.

    `x_arcsec` (W,), `y_arcsec` (H,), `half_length_arcsec` and `angle_rad` (B,); 50 points or more. In float32
    deflections of lines of 0.02 arcsec and more are good to 1e-5 arcsec next to a mass, to 2e-6 elsewhere.
    """
    spacing = 2 * half_length_arcsec / (points - 1)
    cos, sin = angle_rad.cos(), angle_rad.sin()
    c, s = (cos / spacing)[:, None], (sin / spacing)[:, None]
    along = (x_arcsec * c)[:, None, :] + (y_arcsec * s)[:, :, None]
    across = (y_arcsec * c)[:, :, None] - (x_arcsec * s)[:, None, :]
    sum_re, sum_im, slope_re, slope_im = _sum_with_derivative(along.abs(), across, points / 2)
    # v S'; then both for -|along|: S(-conj v) = -conj S(v), and so is v S'.
    scaled_re = along.abs() * slope_re - across * slope_im
    scaled_im = along.abs() * slope_im + across * slope_re
    side = torch.where(along < 0, -1.0, 1.0).to(along)
    k = einstein_radius2_arcsec2 / spacing
    kc, ks = (k * cos)[:, None, None], (k * sin)[:, None, None]

    def turned(re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        """k conj(re + i im) exp(i phi)."""
        return side * re * kc + im * ks, side * re * ks - im * kc

    ax, ay = turned(sum_re, sum_im)
    sx, sy = turned(scaled_re, scaled_im)
    return (ax, ay), (ax + sx, ay + sy)


def _sum_with_derivative(
    distance: Tensor, across: Tensor, half: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Re and Im of S(v) and of S'(v) for v = distance + i across, distance >= 0 (see `vortex.exact_sum`)."""
    inside = distance < half
    sign = torch.where(inside, -1.0, 1.0).to(distance)
    far = _digamma_half(distance + half, across, 0, 1)
    near = _digamma_half((half - distance).abs(), sign * across, _SHIFT, 2)
    # pi cot(pi u) of the offset u = f + i b from the nearest mass, and pi^2 / sin(pi u)^2.
    offset = distance - (half - 0.5) % 1
    offset = (offset - offset.round()) * math.pi
    grown = torch.expm1(math.pi * across.abs().clamp_max(_STEEP))
    sinh = torch.where(across < 0, -1.0, 1.0).to(across) * (grown + grown / (grown + 1)) / 2
    cosh = grown + 1 - sinh.abs()
    sine, cosine = offset.sin(), offset.cos()
    norm = (sinh * sinh + sine * sine).clamp_min(_LEAST)
    within = inside.to(distance) * math.pi / norm
    re, im = sine * cosh, cosine * sinh
    square = within * math.pi / norm
    return (
        far[0] - near[0] + within * sine * cosine,
        far[1] - near[1] - within * sinh * cosh,
        far[2] - sign * near[2] - square * (re * re - im * im),
        far[3] - sign * near[3] + square * 2 * re * im,
    )


def _digamma_half(re: Tensor, im: Tensor, shift: int, terms: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Re and Im of psi(1/2 + z) and of its derivative for z = re + i im, re >= 0."""
    z_re = re + shift
    inverse = 1 / (z_re * z_re + im * im)
    t_re, t_im = (z_re * z_re - im * im) * inverse * inverse, -2 * z_re * im * inverse * inverse
    psi_re, psi_im = -torch.log(inverse) / 2, torch.atan(im / z_re)
    scaled_re, scaled_im = torch.ones_like(re), torch.zeros_like(re)  # z times the derivative
    power_re, power_im = t_re, t_im
    for k in range(1, terms + 1):
        c = END_SERIES[k - 1]
        psi_re, psi_im = psi_re + c * power_re, psi_im + c * power_im
        scaled_re, scaled_im = scaled_re - 2 * k * c * power_re, scaled_im - 2 * k * c * power_im
        power_re, power_im = power_re * t_re - power_im * t_im, power_re * t_im + power_im * t_re
    slope_re = (scaled_re * z_re + scaled_im * im) * inverse
    slope_im = (scaled_im * z_re - scaled_re * im) * inverse
    for k in range(shift):
        step = re + (k + 0.5)
        inverse = 1 / (step * step + im * im)
        one_re, one_im = step * inverse, -im * inverse
        psi_re, psi_im = psi_re - one_re, psi_im - one_im
        slope_re, slope_im = slope_re + one_re * one_re - one_im * one_im, slope_im + 2 * one_re * one_im
    return psi_re, psi_im, slope_re, slope_im
