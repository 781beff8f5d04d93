"""Rays that pass a mass of the vortex: single pixels of a noise-free residual that stand out of all around.

A ray that comes within a thousandth of an arcsecond of one of the vortex's masses is thrown out of the
image, and what it leaves says where that mass is and nothing of the vortex's length. About one lens in a
hundred shows one, and least squares would follow it. The point-spread function of a noise-free image can
be undone, and what is left of one ray is one pixel.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST = 2.0
"""A ray counts for at most so many times the second strongest of its eight neighbours: with two of them a
structure begins, such as the vortex's line."""


class LoneRays(nn.Module):
    """Residuals (B, H, W) in float64 -> what lone rays have too much in them, (B, H, W)."""

    psf: Tensor
    unsmear: Tensor

    def __init__(self, psf: Tensor) -> None:
        super().__init__()
        self.register_buffer("psf", psf, persistent=False)
        self.register_buffer("unsmear", inverse(psf), persistent=False)

    def forward(self, rest: Tensor) -> Tensor:
        rays = self.unsmear @ rest @ self.unsmear.T
        sizes = rays.abs()
        excess = torch.sign(rays) * (sizes - MOST * second_neighbour(sizes)).clamp_min(0)
        return self.psf @ excess @ self.psf.T


def second_neighbour(sizes: Tensor) -> Tensor:
    """(B, H, W) of numbers not below 0 -> the second largest of each pixel's eight neighbours."""
    height, width = sizes.shape[1:]
    padded = functional.pad(sizes, (1, 1, 1, 1))
    first = second = torch.zeros_like(sizes)
    for row in range(3):
        for column in range(3):
            if row == column == 1:
                continue
            beside = padded[:, row : row + height, column : column + width]
            second = torch.maximum(second, torch.minimum(first, beside))
            first = torch.maximum(first, beside)
    return second


def inverse(matrix: Tensor) -> Tensor:
    """(N, N) -> its inverse, for a matrix that needs no pivots, as that of a point-spread function.

    Gauss and Jordan's elimination: LAPACK's last bits depend on the number of threads, and this one's are
    part of an exported file.
    """
    n = len(matrix)
    both = torch.cat([matrix, torch.eye(n).to(matrix)], dim=1)
    for k in range(n):
        row = both[k] / both[k, k]
        both = both - both[:, k, None] * row
        both[k] = row
    return both[:, n:]
