"""Deflection of the vortex line: equally spaced point masses, in closed form.

In units of their spacing and along the line, n masses sit at j = -(n-1)/2 ... (n-1)/2 and deflect
by (theta^2 / spacing) conj(S(v)) at v = a + ib, with

    S(v) = sum_j 1 / (v - j) = psi(v + (n+1)/2) - psi(v - (n-1)/2)

(Abramowitz & Stegun 6.3.6). With psi's asymptotic series (6.3.18, shifted by a half),
psi(1/2 + z) = ln z + 1/(24 z^2) - 7/(960 z^4) + ..., S is the field of a uniform rod of half-length n/2
plus a correction from each end: that is evaluated on every pixel. Pixels within `_NEAR` spacings of the
line get the exact sum, always in float64, from the recurrence and the reflection formula of psi. So the
cost does not depend on n, and float32 stays accurate next to a point mass.

Only functions that round the same wherever an element stands in a tensor are used (torch's atan2, sinh
and sums over an axis do not): an image's bits must not depend on its neighbours in a batch.
"""

import math

import torch
from torch import Tensor

_NEAR = 8.0
# (1 - 2^(1-2k)) B_2k / (2k): coefficients of z^-2k in psi(1/2 + z) - ln z.
END_SERIES = (1 / 24, -7 / 960, 31 / 8064, -127 / 30720, 511 / 67584)
# Terms that matter _NEAR spacings from an end: the first one left out is 2e-6 and 7e-12 of S ~ 1.
_TERMS = {torch.float32: 1, torch.float64: 4}
_SHIFT = 8


def line_deflection(
    x_arcsec: Tensor,
    y_arcsec: Tensor,
    half_length_arcsec: Tensor,
    angle_rad: Tensor,
    *,
    points: int,
    einstein_radius2_arcsec2: float,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Deflection by lines of `points` equal masses through the origin: x and y, each (B, H, W), arcsec.

    `x_arcsec` (W,) and `y_arcsec` (H,) are the float64 axes of the pixel grid; `half_length_arcsec` and
    `angle_rad`, (B,) float64, give each line's outermost masses and direction. `dtype` is the
    arithmetic of the pixels and the type of the result. Differentiable.
    """
    spacing = 2 * half_length_arcsec / (points - 1)
    cos, sin = angle_rad.cos(), angle_rad.sin()
    along, across = _line_frame(x_arcsec, y_arcsec, cos, sin, spacing * points / 2, dtype)
    parallel, perpendicular = _rod(along, across, points, _TERMS[dtype])
    near = _near_pixels(along.detach(), across.detach(), points)
    if near.numel():
        exact = _exact_at(near, x_arcsec, y_arcsec, cos, sin, spacing, points)
        parallel, perpendicular = (
            field.view(-1).index_copy(0, near, value.to(dtype)).view_as(field)
            for field, value in zip((parallel, perpendicular), exact, strict=True)
        )
    strength = einstein_radius2_arcsec2 / spacing
    cos, sin = ((f * strength).to(dtype)[:, None, None] for f in (cos, sin))
    return (
        torch.addcmul(parallel * cos, perpendicular, sin, value=-1),
        torch.addcmul(parallel * sin, perpendicular, cos),
    )


def _line_frame(
    x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, unit: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Pixel coordinates (B, H, W) along and across each line, in multiples of `unit` (B,)."""
    c, s = (cos / unit)[:, None], (sin / unit)[:, None]
    xc, xs, yc, ys = ((f * g).to(dtype) for f, g in ((x, c), (x, s), (y, c), (y, s)))
    return xc[:, None, :] + ys[:, :, None], yc[:, :, None] - xs[:, None, :]


def _rod(along: Tensor, across: Tensor, points: int, terms: int) -> tuple[Tensor, Tensor]:
    """Re S and -Im S from the rod and its end corrections; coordinates in half-lengths n/2.

    By symmetry for |along|, so that the nearer end is the one at +1.
    """
    distance, across2 = along.abs(), across * across
    sum2 = torch.addcmul(across2, along, along) + 1
    to_far = torch.add(sum2, distance, alpha=2)
    to_near = torch.add(sum2, distance, alpha=-2)
    # The angle that the rod subtends, pi/2 minus the arc tangent of the other quadrant's ratio.
    quarter = torch.full((), math.pi / 2, dtype=along.dtype, device=along.device)
    perpendicular = torch.copysign(quarter, across) - torch.atan((sum2 - 2) / (across * 2))
    # With z = (distance +- 1) + i across at the two ends, z^-2 = conj(z^2) / |z|^4.
    difference2 = torch.add(sum2, across2, alpha=-2)
    inverse_far, inverse_near = (to_far * to_far).reciprocal(), (to_near * to_near).reciprocal()
    odd, even = inverse_far - inverse_near, inverse_far + inverse_near
    first = END_SERIES[0] / (points / 2) ** 2
    parallel = torch.add(torch.log(to_far / to_near) * 0.5, difference2 * odd, alpha=first)
    parallel = torch.addcmul(parallel, distance, even, value=2 * first)
    perpendicular = torch.addcmul(perpendicular, across, torch.addcmul(even, distance, odd), value=2 * first)
    if terms > 1:
        # Two terms do for the end that is n/2 or more away.
        for sign, inverse, needed in ((1, inverse_far, 2), (-1, inverse_near, terms)):
            t_re = torch.add(difference2, distance, alpha=2 * sign) * inverse
            t_im = across * (distance + sign) * inverse * -2
            higher_re, higher_im = _end_series(t_re, t_im, points / 2, needed, first=1)
            parallel = torch.add(parallel, higher_re, alpha=sign)
            perpendicular = torch.add(perpendicular, higher_im, alpha=-sign)
    return torch.copysign(parallel, along), perpendicular


def _end_series(t_re: Tensor, t_im: Tensor, unit: float, terms: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """psi(1/2 + z) - ln z: its series in t = (z / unit)^-2 by Horner's rule, `terms` less the `first`."""
    coefficients = [c / unit ** (2 * k) for k, c in enumerate(END_SERIES[:terms], start=1)]
    coefficients[:first] = [0.0] * first
    sum_re, sum_im = t_re * coefficients[-1], t_im * coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        sum_re = sum_re + coefficient if coefficient else sum_re
        sum_re, sum_im = (
            torch.addcmul(sum_re * t_re, sum_im, t_im, value=-1),
            torch.addcmul(sum_re * t_im, sum_im, t_re),
        )
    return sum_re, sum_im


def _near_pixels(along: Tensor, across: Tensor, points: int) -> Tensor:
    """Flat indices of the pixels within `_NEAR` spacings of a line (coordinates in half-lengths)."""
    margin = 2 * _NEAR / points
    reach = torch.maximum((along * (margin / (1 + margin))).abs_(), across.abs())
    return (reach < margin).view(-1).nonzero().squeeze(1)


def _exact_at(
    pixels: Tensor, x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, spacing: Tensor, points: int
) -> tuple[Tensor, Tensor]:
    """Re S and -Im S in float64 at flat indices (P,) of the (B, H, W) grid."""
    width, height = x.numel(), y.numel()
    line = pixels // (width * height)
    px, py = x[pixels % width], y[pixels // width % height]
    c, s = (cos / spacing)[line], (sin / spacing)[line]
    return exact_sum(px * c + py * s, py * c - px * s, points)


def exact_sum(along: Tensor, across: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Re S(v) and -Im S(v) of v = along + i across, (P,) float64, in units of the spacing.

    By symmetry for |along|. Before the line's end, reflection (A&S 6.3.7) keeps the arguments of psi in
    the right half-plane: S = psi(1/2 + n/2 + v) - psi(1/2 + n/2 - v) - pi tan(pi v)
    for an even number of masses; for an odd one, + pi cot(pi v).
    """
    distance, half = along.abs(), points / 2
    inside = distance < half
    far_re, far_im = _digamma_half(distance + half, across)
    near_re, near_im = _digamma_half((half - distance).abs(), torch.where(inside, -across, across))
    # pi tan about the nearest mass, f + ib away, without cancellation. From b = 20 on it is constant to
    # rounding, where the exponential would overflow.
    grown = torch.expm1(math.pi * across.abs().clamp_max(20.0))
    sinh = torch.copysign((grown + grown / (grown + 1)) * 0.5, across)
    cosh = grown + 1 - sinh.abs()
    f = distance - (half - 0.5) % 1
    f = f - f.round()
    sine, cosine = (math.pi * f).sin(), (math.pi * f).cos()
    scale = inside.to(f.dtype) * math.pi / (sinh * sinh + sine * sine)
    re = far_re - near_re + scale * sine * cosine
    im = far_im - near_im - scale * sinh * cosh
    return torch.copysign(torch.ones_like(re), along) * re, -im


def _digamma_half(re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
    """psi(1/2 + z) for z = re + i im with re >= 0, float64: recurrence, then the asymptotic series."""
    steps = re + torch.arange(0.5, _SHIFT, dtype=re.dtype, device=re.device)[:, None]
    inverse = torch.reciprocal(steps * steps + im * im)
    low_re, low_im = (part.unbind() for part in (steps * inverse, im * inverse))
    z_re = re + _SHIFT
    norm2 = z_re * z_re + im * im
    inverse2 = norm2.square().reciprocal()
    t_re, t_im = (z_re * z_re - im * im) * inverse2, z_re * im * inverse2 * -2
    series_re, series_im = _end_series(t_re, t_im, 1.0, len(END_SERIES))
    # Term by term: torch's sum over an axis rounds differently at different places.
    psi_re, psi_im = torch.log(norm2) * 0.5 + series_re, torch.atan(im / z_re) + series_im
    for term_re, term_im in zip(low_re, low_im, strict=True):
        psi_re, psi_im = psi_re - term_re, psi_im + term_im
    return psi_re, psi_im
