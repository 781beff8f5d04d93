"""Auxiliary truths: what else is known of a simulated lens, for the backbone to learn beside the targets.

Where the source stands and how the vortex lies decide most of an image, and the particle mass shows only
against them. Directions are regressed as cos and sin of twice the angle, because a line turned by half a
turn is the same line. Nothing of this is ever asked of a trained regressor.
"""

import numpy as np
import torch
from torch import Tensor

AUXILIARY = ("source_x", "source_y", "cos_2_angle", "sin_2_angle")
"""Columns of auxiliary truths; positions in units of `SOURCE_SCALE_ARCSEC`."""

SOURCE_SCALE_ARCSEC = 0.2
"""About the deviation of a source's coordinate in the presets, U(-0.35, 0.35): all columns weigh alike."""


def auxiliary_truths(
    source_x_arcsec: np.ndarray, source_y_arcsec: np.ndarray, vortex_angle_rad: np.ndarray
) -> np.ndarray:
    """(N,) each, nan where not known -> (N, 4) float32 in the order of `AUXILIARY`; pairs go together."""
    position = np.stack([source_x_arcsec, source_y_arcsec], axis=1).astype(np.float64) / SOURCE_SCALE_ARCSEC
    twice = 2 * np.asarray(vortex_angle_rad, dtype=np.float64)
    position[~np.isfinite(position).all(axis=1)] = np.nan
    twice[~np.isfinite(twice)] = np.nan
    direction = np.stack([np.cos(twice), np.sin(twice)], axis=1)
    return np.concatenate([position, direction], axis=1).astype(np.float32)


def turn_auxiliary(auxiliary: Tensor, matrices: Tensor) -> Tensor:
    """Auxiliary truths (B, 4) of images whose (x, y) went to M (x, y); `matrices` (B, 2, 2) orthogonal.

    A position is a vector, M p. A direction without sense is the tensor Q = [[cos, sin], [sin, -cos]] of
    twice its angle, M Q M^T.
    """
    # No matrix products: beside a nan, 0 * nan is nan, which each pair owes to itself alone.
    a, b, c, d = matrices.flatten(1).unbind(1)
    x, y, cos, sin = auxiliary.unbind(1)
    turned = (
        a * x + b * y,
        c * x + d * y,
        (a * a - b * b) * cos + 2 * a * b * sin,
        (a * c - b * d) * cos + (a * d + b * c) * sin,
    )
    return torch.stack(turned, dim=1)


def dihedral_matrices(codes: Tensor) -> Tensor:
    """(B,) codes of `data.augment.dihedral` -> (B, 2, 2) float32, what they do to (x, y).

    x runs along the columns and y along the rows: bit 0 reverses x, bit 1 y, bit 2 then exchanges them.
    """
    x_sign, y_sign = 1.0 - 2.0 * (codes & 1), 1.0 - 2.0 * ((codes >> 1) & 1)
    nought = torch.zeros_like(x_sign)
    kept = torch.stack([x_sign, nought, nought, y_sign], dim=1)
    exchanged = torch.stack([nought, y_sign, x_sign, nought], dim=1)
    return torch.where((codes & 4).bool()[:, None], exchanged, kept).unflatten(1, (2, 2))
