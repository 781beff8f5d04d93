"""Changes of images for training, each sample by its own numbers; `data.augmentation` draws them."""

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from darkarc.simulation import Instrument
from darkarc.simulation.counter import hash_indices, normals
from darkarc.simulation.source import convolve, psf_taps

GROUPS = {"none": range(1), "half_turn": range(0, 4, 3), "flips": range(4), "full": range(8)}
"""`train.dihedral` -> codes of the elements of the group (see `dihedral`).

Every preset's lens is elliptical along the axes and sheared along them, so that only the four
elements of "flips" map it onto itself; a rotation by 90 degrees shows a lens that does not exist. The
sources are elliptical along a diagonal: a half turn alone maps them onto sources that exist.
"""


def dihedral_codes(seed: int, epoch: int, indices: Tensor, group: str = "full") -> Tensor:
    """(B,) element of the dihedral group for each sample index in this epoch, one of `GROUPS[group]`."""
    # Arithmetic, not a table: a GPU would wait for one that comes from the host.
    codes = GROUPS[group]
    return (hash_indices(seed, 2 * epoch + 1, indices) >> 32) % len(codes) * codes.step


def dihedral(images: Tensor, codes: Tensor) -> Tensor:
    """Images (B, 1, H, W), each under its own element of the dihedral group, codes (B,) in 0..7.

    Bit 0 reverses the columns, bit 1 the rows, bit 2 then exchanges rows and columns (H = W only).
    """
    bits = codes[:, None, None, None]
    images = torch.where((bits & 1).bool(), images.flip(3), images)
    images = torch.where((bits & 2).bool(), images.flip(2), images)
    if images.shape[2] == images.shape[3]:
        return torch.where((bits & 4).bool(), images.transpose(2, 3), images)
    # A GPU would have to wait for the answer; `new_regressor` has refused train.dihedral: full by then.
    if codes.is_cpu and bool((codes & 4).any()):
        raise ValueError(
            f"images of {images.shape[2]} x {images.shape[3]} pixels cannot be rotated by 90 degrees: "
            "set train.dihedral to flips or none"
        )
    return images


def rotation_matrices(angles_rad: Tensor) -> Tensor:
    """(B,) angles -> (B, 2, 2) float32, what a rotation by them does to (x, y); x towards y is positive."""
    cos, sin = angles_rad.cos(), angles_rad.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).unflatten(1, (2, 2)).float()


def rotate(images: Tensor, angles_rad: Tensor) -> Tensor:
    """Images (B, 1, H, W), each turned about its centre by its angle (B,), bilinear; float32.

    Beyond the edge the outermost pixel is repeated. Interpolation smooths a little, noise most of all.
    """
    height, width = images.shape[2:]
    x = (torch.arange(width, device=images.device) - (width - 1) / 2).expand(height, width)
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None].expand(height, width)
    cos, sin = (f.float()[:, None, None] for f in (angles_rad.cos(), angles_rad.sin()))
    from_x, from_y = cos * x + sin * y, cos * y - sin * x  # (B, H, W), where each pixel's light comes from
    half = [max(size - 1, 1) / 2 for size in (width, height)]
    grid = torch.stack([from_x / half[0], from_y / half[1]], dim=3)
    return grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)


def shift(images: Tensor, pixels: Tensor) -> Tensor:
    """Images (B, 1, H, W), each moved by whole pixels (B, 2): along the columns (x), along the rows (y).

    No interpolation: neither noise nor PSF is smoothed. Beyond the edge the outermost pixel is repeated.
    """
    height, width = images.shape[2:]
    columns = (torch.arange(width, device=images.device) - pixels[:, :1]).clamp(0, width - 1)
    rows = (torch.arange(height, device=images.device) - pixels[:, 1:]).clamp(0, height - 1)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images[which, 0, rows[:, :, None], columns[:, None, :]][:, None]


def add_background(images: Tensor, rms: Tensor, keys: Tensor, instrument: Instrument) -> Tensor:
    """Images (B, 1, H, W) plus Gaussian noise smoothed by the instrument's PSF; float32.

    Each has its own root mean square `rms` (B,), after the smoothing, and key (B,) of the draws.
    """
    height, width = images.shape[2:]
    taps = psf_taps(instrument)
    margin = len(taps) // 2
    wide, high = width + 2 * margin, height + 2 * margin
    white = normals(keys, high * wide).unflatten(1, (high, wide))
    smooth = convolve(instrument, white)[:, margin : margin + height, margin : margin + width]
    # The PSF is a product of two of `taps`: it leaves (sum of squares)^2 of the variance.
    scale = rms.float() / math.fsum(tap * tap for tap in taps)
    return images.float() + (smooth * scale[:, None, None])[:, None]
