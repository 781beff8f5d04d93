"""What an image shows beyond smooth lenses: the rest after their principal components, as a channel.

The images of a smooth lens (class no_sub) lie on a surface of few dimensions, since only the source moves.
Its leading principal components carry almost all brightness of any image, and the small rest holds what
substructure adds. A network sees it better on a scale of its own.
"""

import torch
from torch import Tensor, nn

IMAGES = 1024
"""So many images of smooth lenses, at most, tell the components (or 4 a component, if that is more)."""

_RANK_TOLERANCE = 1e-13
"""Components whose variance is a smaller share of the first one's are rounding, and are left out."""


class SmoothResidual(nn.Module):
    """Standardised images (B, 1, H, W) -> their residual in the same shape, of about unit deviation.

    (x - c) - sum_k ((x - c) . u_k) u_k over the deviation of the train split's residuals, with the mean c
    and the orthonormal principal components u_k of the train split's smooth lenses. Until `fit` (or
    loaded weights) nothing is taken away. It is linear: noise stays what it was.
    """

    components: Tensor
    centre: Tensor
    deviation: Tensor

    def __init__(self, n_components: int, shape: tuple[int, int]) -> None:
        super().__init__()
        pixels = shape[0] * shape[1]
        self.register_buffer("components", torch.zeros(n_components, pixels))
        self.register_buffer("centre", torch.zeros(pixels))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        centred = images.flatten(1) - self.centre
        rest = centred - (centred @ self.components.T) @ self.components
        return (rest / self.deviation).view_as(images)

    @torch.no_grad()
    def fit(self, smooth: Tensor, all_classes: Tensor) -> None:
        """Fit to standardised images (N, 1, H, W) of smooth lenses, and of all classes (for the scale).

        Raises `ValueError` unless there are more smooth lenses than components.
        """
        n_components = len(self.components)
        if len(smooth) <= n_components:
            raise ValueError(
                f"{n_components} components need more than {len(smooth)} images of smooth lenses"
            )
        flat = smooth.flatten(1).double()
        centre = flat.mean(dim=0)
        components = principal_components(flat - centre, n_components)
        self.centre.copy_(centre)
        self.components.zero_()
        self.components[: len(components)] = components.to(self.components)
        self.deviation.fill_(1.0)
        deviation = float(self(all_classes).double().square().mean().sqrt())
        # Images without noise that the components describe to rounding leave nothing to scale.
        self.deviation.fill_(deviation if deviation > 0 else 1.0)


def principal_components(centred: Tensor, n_components: int) -> Tensor:
    """(K, P) orthonormal float64 directions of largest variance of centred rows (N, P), largest first.

    From the eigenvectors of the N x N matrix of inner products (Sirovich 1987); fewer than K where the
    rows have no more directions than that.
    """
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values, vectors = values.flip(0)[:n_components], vectors.flip(1)[:, :n_components]
    kept = values > _RANK_TOLERANCE * values[0].clamp_min(1e-300)
    directions = centred.T @ vectors[:, kept]
    return torch.linalg.qr(directions).Q.T.contiguous()
