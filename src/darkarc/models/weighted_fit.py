"""Weighted least squares between images, a batch at once, in operations that ONNX has."""

from typing import NamedTuple

from torch import Tensor, stack


class Pair(NamedTuple):
    """Least squares for the factors on two images: `found` (B, 2) solves normal @ found = right.

    right: (B, 2); normal: (B, 3), the matrix's diagonal and what is off it.
    """

    found: Tensor
    right: Tensor
    normal: Tensor

    @property
    def variance(self) -> Tensor:
        """(B,) the two factors' variances together, where the weights are inverse variances."""
        xx, yy, xy = self.normal.unbind(1)
        return (xx + yy) / (xx * yy - xy * xy).clamp_min(1e-30)

    @property
    def chi_square(self) -> Tensor:
        """(B,) what the fit takes away from chi-square."""
        return (self.found * self.right).sum(dim=1)


def inner(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """(B,) weighted products of images (B, H, W)."""
    return (weight * a * b).sum(dim=(1, 2))


def share(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """(B,) the multiple of `b` nearest to `a`."""
    return inner(a, b, weight) / inner(b, b, weight).clamp_min(1e-30)


def beyond(a: Tensor, directions: list[Tensor], weight: Tensor) -> Tensor:
    """Of `a` (B, H, W) what multiples of orthogonal directions cannot mend."""
    for b in directions:
        a = a - share(a, b, weight)[:, None, None] * b
    return a


def orthogonal(directions: list[Tensor], weight: Tensor) -> list[Tensor]:
    """Gram and Schmidt's."""
    made: list[Tensor] = []
    for direction in directions:
        made.append(beyond(direction, made, weight))
    return made


def fit_pair(rest: Tensor, first: Tensor, second: Tensor, free: list[Tensor], weight: Tensor) -> Pair:
    """The multiples of two images nearest to `rest`, those of orthogonal `free` ones fitted too."""
    first, second = beyond(first, free, weight), beyond(second, free, weight)
    xx, yy = inner(first, first, weight), inner(second, second, weight)
    xy = inner(first, second, weight)
    bx, by = inner(first, rest, weight), inner(second, rest, weight)
    determinant = (xx * yy - xy * xy).clamp_min(1e-30)
    found = stack([yy * bx - xy * by, xx * by - xy * bx], dim=1) / determinant[:, None]
    return Pair(found, stack([bx, by], dim=1), stack([xx, yy, xy], dim=1))
