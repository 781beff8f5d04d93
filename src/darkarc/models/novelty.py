"""How unlike the training images is an image? A score that travels inside the regressor.

Two things are looked at: the features that the answer is made of, and the texture of the pixels (radial
power spectrum, noise, sharpest edge), because a backbone learns to overlook just what a wider
point-spread function or more noise changes. Where the model fits a lens, a third: how large the residual is
and how much of it is blur, which takes a point-spread function a tenth too wide for what it is, and not for
a vortex. Each has a mixture of Gaussians, fitted on the train split after
training; the calibration split, which none of them saw, says how rare a value is.
"""

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

FEATURE_COMPONENTS, TEXTURE_COMPONENTS, BLUR_COMPONENTS = 8, 16, 8
"""Most Gaussians of the mixtures: a texture has few dimensions and a bent distribution."""
IMAGES_PER_COMPONENT = 200
"""Fewer Gaussians are taken if there are not so many images for each."""
DIRECTIONS = 64
"""Principal directions kept; what lies outside of them counts by its length."""
RIDGE = 1e-2
"""Added to the variances of a component, in units of the whole data's."""
SMALLEST_VARIANCE = 1e-4
"""Of a principal direction, in units of the mean: below it lies rounding, not data."""
BANDS = 12
"""Rings of the power spectrum, equally wide up to the Nyquist frequency of an axis."""
LEAST_SPREAD = 1e-3
"""Of an input, in units of the root mean square of all inputs' deviations: what spreads less is a constant (a
unit that never fires) and its rounding, which another runtime rounds otherwise."""
TINY = 1e-9
"""Least argument of a logarithm. Not added: ONNX Runtime takes such a sum for nothing and drops it."""
FAR = 1e4
"""Standard deviations at which an input is cut, so that garbage scores high and stays finite."""

LEVELS = (0.5, 0.9, 0.99)
"""Quantiles of the calibration images that the score's scale is tied to."""
RARE, VERY_RARE = 2.0, 3.0
"""Scores that one in 100 and one in 1,000 calibration images exceed (the latter by extrapolation)."""

Floats = NDArray[np.float64]


class Novelty(nn.Module):
    """Raw images (B, 1, H, W), their features (B, F) and channels (B, C, H', W') -> (B,) score.

    The score is -log10 of a tail probability: 2 is exceeded by one calibration image in 100. Beyond, the tail
    is taken for exponential: the way from 1 in 10 to 1 in 100 is a decade. Until fitted, every image scores
    alike and below 1. `fitted_lens`: the channels are those of `Standardise` with a fitted lens.
    """

    typical: Tensor
    scale: Tensor
    quantiles: Tensor

    def __init__(
        self, n_features: int, shape: tuple[int, int], pixel_std: float, *, fitted_lens: bool = False
    ) -> None:
        super().__init__()
        self.texture = Texture(shape, pixel_std)
        self.of_features = Mixture(n_features, FEATURE_COMPONENTS)
        self.of_texture = Mixture(self.texture.n_features, TEXTURE_COMPONENTS)
        self.of_blur = Mixture(N_BLUR, BLUR_COMPONENTS) if fitted_lens else None
        n = len(self._mixtures())
        self.register_buffer("typical", torch.zeros(n))
        self.register_buffer("scale", torch.ones(n))
        self.register_buffer("quantiles", 1e30 * torch.arange(3.0))

    def forward(self, images: Tensor, features: Tensor, channels: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            surprise = self._surprise(self.measure(images, features, channels))
            return self._rarity(((surprise - self.typical) / self.scale).amax(dim=1))

    def measure(self, images: Tensor, features: Tensor, channels: Tensor) -> list[Tensor]:
        """What each mixture looks at, (B, ...) each: features, texture and, with a fitted lens, blur."""
        seen = [features.float(), self.texture(images)]
        return seen if self.of_blur is None else [*seen, blur(channels)]

    def _mixtures(self) -> "list[Mixture]":
        known = [self.of_features, self.of_texture]
        return known if self.of_blur is None else [*known, self.of_blur]

    def _surprise(self, measured: Sequence[Tensor]) -> Tensor:
        """(B, M) of each mixture."""
        found = [mixture(values) for mixture, values in zip(self._mixtures(), measured, strict=True)]
        return torch.stack(found, dim=1)

    def _rarity(self, strangeness: Tensor) -> Tensor:
        """Piecewise linear through `LEVELS` on the scale of -log10(1 - level), and on beyond them."""
        median, tenth, hundredth = self.quantiles.unbind()
        first = -math.log10(1 - LEVELS[0])
        below = (strangeness - tenth) / (tenth - median) * (1 - first)
        above = (strangeness - tenth) / (hundredth - tenth)
        return 1 + torch.where(strangeness < tenth, below, above)

    @torch.no_grad()
    def fit(self, train: Sequence[Tensor], calibration: Sequence[Tensor]) -> None:
        """Learn from what `measure` gave of the train split's images and of the calibration split's."""
        for mixture, values in zip(self._mixtures(), train, strict=True):
            mixture.fit(values)
        surprise = self._surprise(calibration).double()  # (N, M)
        self.typical.copy_(surprise.quantile(0.5, dim=0))
        self.scale.copy_((surprise.quantile(LEVELS[-1], dim=0) - self.typical).clamp_min(TINY))
        strangeness = ((surprise - self.typical) / self.scale).amax(dim=1)
        levels = torch.tensor(LEVELS, dtype=torch.float64, device=strangeness.device)
        quantiles = strangeness.quantile(levels)
        # Equal images would leave no width to measure by.
        steps = torch.arange(3, dtype=torch.float64, device=strangeness.device) * 1e-3
        self.quantiles.copy_(torch.maximum(quantiles, quantiles[0] + steps))


class Texture(nn.Module):
    """Raw images (B, 1, H, W) -> (B, S) numbers about pixels that see noise, sharpness and scale.

    Logarithms of the power in `BANDS` rings, of the noise in the outer frame (mean second difference, as in
    `darkarc.data.quality`), of the sharpest point and of the peak; and the mean. Pixels count in units of
    `pixel_std`, the train split's deviation. The Fourier transform is two products with matrices, which
    every runtime has. With the cosines C and sines S of rows and columns, the power at rows' frequencies f
    and -f adds up to 2 (CC^2 + SS^2 + CS^2 + SC^2): the cross terms cancel, and half of the rows will do.
    """

    row_cosine: Tensor
    row_sine: Tensor
    columns: Tensor
    rings: Tensor
    frame: Tensor

    def __init__(self, shape: tuple[int, int], pixel_std: float) -> None:
        super().__init__()
        self.pixel_std = pixel_std
        self.n_features = BANDS + 4
        height, width = shape
        rows = 2 * math.pi * np.outer(np.fft.rfftfreq(height), np.arange(height))
        columns = 2 * math.pi * np.outer(np.arange(width), np.fft.rfftfreq(width))
        radius = np.hypot(np.fft.rfftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
        # The mean (-1) and the corners (BANDS on) do not count.
        ring = np.ceil(2 * BANDS * radius).astype(int) - 1
        rows_alike = np.full(len(ring), 2.0)  # f and -f; nought and Nyquist's frequency stand alone
        rows_alike[[0, -1] if height % 2 == 0 else [0]] = 1
        member = (ring.reshape(-1, 1) == np.arange(BANDS)) * np.repeat(rows_alike, ring.shape[1])[:, None]
        rings = (member / np.maximum(member.sum(axis=0), 1)).reshape(*ring.shape, BANDS)
        frame = np.ones((height - 2, width - 2))
        edge_y, edge_x = max(1, height // 8), max(1, width // 8)
        frame[edge_y:-edge_y, edge_x:-edge_x] = 0
        constants = {
            "row_cosine": np.cos(rows),
            "row_sine": np.sin(rows),
            "columns": np.hstack([np.cos(columns), np.sin(columns)]),
            "rings": np.concatenate([rings, rings], axis=1).reshape(-1, BANDS),
            "frame": frame / frame.sum(),
        }
        for name, value in constants.items():
            # All follow from the shape, so they are no weights.
            self.register_buffer(name, torch.from_numpy(value).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            pixels = (images[:, 0].float() / self.pixel_std).clamp(-FAR, FAR)  # (B, H, W)
            mean = pixels.mean(dim=(1, 2), keepdim=True)
            power = self._power(pixels - mean).flatten(1) @ self.rings  # (B, BANDS)
            curvature = _second_differences(pixels).abs()
            single = [
                (curvature * self.frame).sum(dim=(1, 2)),
                curvature.amax(dim=(1, 2)),
                pixels.amax(dim=(1, 2)),
            ]
            logarithms = torch.cat([power, torch.stack(single, dim=1)], dim=1).clamp_min(TINY).log()
            return torch.cat([logarithms, mean[:, 0]], dim=1)

    def _power(self, pixels: Tensor) -> Tensor:
        """(B, H, W) -> (B, H // 2 + 1, 2 (W // 2 + 1)): the parts that add up to the power, see above."""
        across = pixels @ self.columns
        return (self.row_cosine @ across).square() + (self.row_sine @ across).square()


def _second_differences(pixels: Tensor) -> Tensor:
    """(B, H, W) -> (B, H-2, W-2): kills planes, keeps noise (Immerkaer 1996)."""
    across = pixels[:, :, :-2] - 2 * pixels[:, :, 1:-1] + pixels[:, :, 2:]
    return across[:, :-2] - 2 * across[:, 1:-1] + across[:, 2:]


N_BLUR = 2


def blur(channels: Tensor) -> Tensor:
    """Channels (B, C, H, W) of `Standardise` -> (B, 2): the fitted lens's residual, and its share of blur.

    The logarithm of the residual's root mean square in units of the noise; and the cosine between residual
    and the image's Laplacian, by which a wider point-spread function changes an image to first order.
    """
    image, residual, level = channels[:, 0].clamp(-FAR, FAR), channels[:, 2], channels[:, 3, 0, 0]
    inner = image[:, 1:-1, 1:-1]
    around = image[:, 2:, 1:-1] + image[:, :-2, 1:-1] + image[:, 1:-1, 2:] + image[:, 1:-1, :-2]
    laplacian, rest = around - 4 * inner, residual[:, 1:-1, 1:-1]
    power = laplacian.square().sum(dim=(1, 2)) * rest.square().sum(dim=(1, 2))
    cosine = (laplacian * rest).sum(dim=(1, 2)) / power.clamp_min(TINY).sqrt()
    return torch.stack([level.clamp(-FAR, FAR), cosine], dim=1)


class Mixture(nn.Module):
    """(B, F) -> (B,) surprise, the negative log density of a mixture of Gaussians, in nats up to a constant.

    The mixture lives in whitened principal directions, `DIRECTIONS` at most; if there are more, the length
    of the rest is one coordinate beside them. Constant until fitted.
    """

    centre: Tensor
    whitening: Tensor
    rest: Tensor
    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, n_features: int, components: int) -> None:
        super().__init__()
        self.components = components
        self.kept = min(DIRECTIONS, n_features)
        self.has_rest = n_features > self.kept
        size = self.kept + self.has_rest
        self.register_buffer("centre", torch.zeros(2, n_features))
        self.centre[1] = 1
        self.register_buffer("whitening", torch.zeros(n_features, self.kept))
        self.register_buffer("rest", torch.tensor([0.0, 1.0]))
        self.register_buffer("weights", torch.zeros(components))
        self.register_buffer("means", torch.zeros(components, size))
        self.register_buffer("factors", torch.zeros(components, size, size))

    def forward(self, values: Tensor) -> Tensor:
        place = self._whitened(values)  # (B, D)
        away = place[None] @ self.factors - (self.means[:, None] @ self.factors)  # (K, B, D)
        log_density = self.weights[:, None] - 0.5 * away.square().sum(dim=2)
        return -torch.logsumexp(log_density, dim=0)

    def _whitened(self, values: Tensor) -> Tensor:
        scaled = ((values - self.centre[0]) / self.centre[1]).clamp(-FAR, FAR)
        place = scaled @ self.whitening
        if not self.has_rest:
            return place
        # The whitening's columns are directions over their deviations: Pythagoras gives the rest's length.
        deviation2 = 1 / self.whitening.square().sum(dim=0).clamp_min(TINY)
        beyond = scaled.square().sum(dim=1) - (place.square() * deviation2).sum(dim=1)
        length = beyond.clamp_min(TINY).log()
        return torch.cat([place, ((length - self.rest[0]) / self.rest[1])[:, None]], dim=1)

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Learn from N images, (N, F)."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        device = self.centre.device
        x = values.double().cpu().numpy()
        deviation = x.std(axis=0)
        least = LEAST_SPREAD * float(np.sqrt(np.mean(deviation**2)))
        unit = np.maximum(deviation, least if least > TINY else 1.0)
        self.centre[0] = torch.from_numpy(x.mean(axis=0))
        self.centre[1] = torch.from_numpy(unit)
        whitening = _whitening((x - x.mean(axis=0)) / unit, self.kept)
        self.whitening.copy_(torch.from_numpy(whitening))
        if self.has_rest:
            self.rest.copy_(torch.tensor([0.0, 1.0]))
            length = self._whitened(values.to(device).float())[:, -1].double()
            self.rest.copy_(torch.stack([length.mean(), length.std().clamp_min(1e-3)]))
        place = self._whitened(values.to(device).float()).double().cpu().numpy()
        n_components = max(1, min(self.components, len(place) // IMAGES_PER_COMPONENT))
        mixture = GaussianMixture(n_components, reg_covar=RIDGE, random_state=0, max_iter=30, tol=1e-2)
        with warnings.catch_warnings():
            # A mixture that could still gain a little is good enough.
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(place)
        self._keep(mixture)

    def _keep(self, mixture: "GaussianMixture") -> None:
        """Take over scikit-learn's components; what is unused has (almost) no weight."""
        n = len(mixture.weights_)
        factors = mixture.precisions_cholesky_  # (n, D, D), precision = factor @ factor.T
        log_determinant = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
        self.weights.fill_(-1e30)
        self.weights[:n] = torch.from_numpy(np.log(mixture.weights_) + log_determinant)
        self.means.zero_()
        self.means[:n] = torch.from_numpy(mixture.means_)
        self.factors.zero_()
        self.factors[:n] = torch.from_numpy(factors)


def _whitening(scaled: Floats, kept: int) -> Floats:
    """(F, kept) the principal directions of most variance, each over its standard deviation."""
    variance, directions = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    variance, directions = variance[::-1][:kept], directions[:, ::-1][:, :kept]
    return directions / np.sqrt(np.maximum(variance, SMALLEST_VARIANCE * max(float(variance.mean()), TINY)))
