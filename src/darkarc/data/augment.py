"""Dihedral augmentation, drawn per sample as a pure function of (seed, epoch, index)."""

import torch
from torch import Tensor

from darkarc.simulation.counter import hash_indices

GROUPS = {"none": (0,), "half_turn": (0, 3), "flips": (0, 1, 2, 3), "full": tuple(range(8))}
"""`train.dihedral` -> codes of the elements of the group (see `dihedral`).

Every preset's lens is elliptical along the axes and sheared along them, so that only the four
elements of "flips" map it onto itself; a rotation by 90 degrees shows a lens that does not exist. The
sources are elliptical along a diagonal: a half turn alone maps them onto sources that exist.
"""


def dihedral_codes(seed: int, epoch: int, indices: Tensor, group: str = "full") -> Tensor:
    """(B,) element of the dihedral group for each sample index in this epoch, one of `GROUPS[group]`."""
    codes = torch.tensor(GROUPS[group], device=indices.device)
    return codes[(hash_indices(seed, 2 * epoch + 1, indices) >> 32) % len(codes)]


def dihedral(images: Tensor, codes: Tensor) -> Tensor:
    """Images (B, 1, H, W), each under its own element of the dihedral group, codes (B,) in 0..7.

    Bit 0 reverses the columns, bit 1 the rows, bit 2 then exchanges rows and columns (H = W only).
    """
    bits = codes[:, None, None, None]
    images = torch.where((bits & 1).bool(), images.flip(3), images)
    images = torch.where((bits & 2).bool(), images.flip(2), images)
    if images.shape[2] == images.shape[3]:
        return torch.where((bits & 4).bool(), images.transpose(2, 3), images)
    if bool((codes & 4).any()):
        raise ValueError(
            f"images of {images.shape[2]} x {images.shape[3]} pixels cannot be rotated by 90 degrees: "
            "set train.dihedral to flips or none"
        )
    return images
