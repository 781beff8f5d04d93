"""`Posterior`: what a regressor says about one target of each image, on a grid over its prior range."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from darkarc.config import CLASSES

Floats = NDArray[np.float64]

NORMALISATION_TOLERANCE = 1e-3


class PosteriorError(ValueError):
    """A density that is no probability density, or a question that a posterior cannot answer."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """Piecewise-constant probability densities of N images on one grid of K bins.

    The cumulative distribution is therefore piecewise linear, and every answer below is exact for it.

    edges: (K+1,) bin edges, rising, in units of the target.
    density: (N, K) probability per unit of the target; normalised here if it is to within 0.1%.
    class_probability: (N, 3) in the order of `darkarc.config.CLASSES`.
    target: the column of `samples.parquet` it speaks about, such as `log10_axion_mass_ev`.
    std_between: (N,) the part of the standard deviation that an ensemble's members disagree about; None for
        a single regressor. `std_within` is the rest: the two add in squares.
    novelty: (N,) how unlike the training images each image is: one calibration image in 100 exceeds 2, one
        in 1,000 exceeds 3; None if the regressor cannot tell.
    population: what the regressor knows of its answers to many lenses of one mass
        (`darkarc.models.population_errors`), which `combine` allows for; None: nothing, as for exact ones.

    Raises `PosteriorError` if the shapes disagree or a row is no density.
    """

    edges: Floats
    density: Floats
    class_probability: Floats
    target: str
    novelty: Floats | None = None
    std_between: Floats | None = None
    population: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        edges = np.asarray(self.edges, dtype=np.float64)
        density = np.asarray(self.density, dtype=np.float64)
        classes = np.asarray(self.class_probability, dtype=np.float64)
        if edges.ndim != 1 or len(edges) < 2 or not np.all(np.diff(edges) > 0):
            raise PosteriorError(
                f"edges must be a rising list of at least two numbers, found shape {edges.shape}"
            )
        if density.ndim != 2 or density.shape[1] != len(edges) - 1:
            raise PosteriorError(
                f"density must be (N, {len(edges) - 1}) for these edges, found {density.shape}"
            )
        if classes.shape != (len(density), len(CLASSES)):
            raise PosteriorError(
                f"class_probability must be ({len(density)}, {len(CLASSES)}), found {classes.shape}"
            )
        # Row by row: a product with a vector would let the last bit of a row depend on the others.
        total = np.sum(density * np.diff(edges), axis=1)
        bad = ~(np.isfinite(density).all(axis=1) & (density >= 0).all(axis=1))
        bad |= ~(np.abs(total - 1) < NORMALISATION_TOLERANCE)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise PosteriorError(
                f"{int(bad.sum())} of {len(density)} rows are no probability density; the first is row "
                f"{row}, which integrates to {total[row]:g}: look at that image (NaN or infinite pixels?)"
            )
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "density", density / total[:, None])
        object.__setattr__(self, "class_probability", classes)

    def __len__(self) -> int:
        return len(self.density)

    def __getitem__(self, index: int | slice | NDArray[np.intp] | NDArray[np.bool_]) -> "Posterior":
        """The posteriors of the chosen images (one integer gives a posterior of length 1)."""
        if isinstance(index, int | np.integer):
            index = np.array([index])
        novelty = None if self.novelty is None else self.novelty[index]
        between = None if self.std_between is None else self.std_between[index]
        return Posterior(
            self.edges,
            self.density[index],
            self.class_probability[index],
            self.target,
            novelty,
            between,
            self.population,
        )

    @property
    def widths(self) -> Floats:
        """(K,) bin widths."""
        return np.diff(self.edges)

    @property
    def centres(self) -> Floats:
        """(K,) middles of the bins."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @property
    def probability(self) -> Floats:
        """(N, K) probability of each bin."""
        return self.density * self.widths

    @property
    def median(self) -> Floats:
        """(N,) the point estimate."""
        return self.quantile(0.5)

    @property
    def mean(self) -> Floats:
        """(N,)"""
        return self.probability @ self.centres

    @property
    def std(self) -> Floats:
        """(N,) standard deviation, with the variance w²/12 of a uniform density within each bin."""
        away = self.centres[None, :] - self.mean[:, None]
        variance = np.sum(self.probability * (away**2 + self.widths**2 / 12), axis=1)
        return np.sqrt(variance)

    @property
    def std_within(self) -> Floats:
        """(N,) the standard deviation without the members' disagreement."""
        if self.std_between is None:
            return self.std
        return np.sqrt(np.maximum(self.std**2 - self.std_between**2, 0))

    def quantile(self, q: ArrayLike) -> Floats:
        """Value below which a share q of the probability lies: (N,) for a number, (N, Q) for a list.

        Where the density vanishes around the quantile (a flat stretch of the cumulative distribution),
        the lower end of that stretch is returned.
        """
        levels = np.asarray(q, dtype=np.float64)
        if levels.ndim > 1 or not np.all((levels >= 0) & (levels <= 1)):
            raise PosteriorError(f"a quantile is a number or list of numbers between 0 and 1, found {q!r}")
        cumulative = self._cumulative()
        columns = [self._quantile(cumulative, float(level)) for level in np.atleast_1d(levels)]
        stacked = np.stack(columns, axis=1) if columns else np.empty((len(self), 0))
        return stacked[:, 0] if levels.ndim == 0 else stacked

    def _quantile(self, cumulative: Floats, level: float) -> Floats:
        last = len(self.edges) - 2
        k = np.minimum((cumulative[:, 1:] < level).sum(axis=1), last)
        rows = np.arange(len(self))
        low, high = cumulative[rows, k], cumulative[rows, k + 1]
        step = np.where(high > low, high - low, 1.0)
        share = np.clip((level - low) / step, 0.0, 1.0)
        return self.edges[k] + share * self.widths[k]

    def interval(self, level: float = 0.68) -> Floats:
        """(N, 2) the equal-tailed credible interval that holds a share `level` of the probability."""
        if not 0 < level < 1:
            raise PosteriorError(f"the level of an interval lies between 0 and 1, found {level!r}")
        return self.quantile([0.5 - level / 2, 0.5 + level / 2])

    def cdf(self, x: ArrayLike) -> Floats:
        """(N,) probability below x, one number for all images or one an image."""
        value = self._per_image(x)
        inside = np.clip(value, self.edges[0], self.edges[-1])
        k = self._bin(inside)
        rows = np.arange(len(self))
        return self._cumulative()[rows, k] + (inside - self.edges[k]) * self.density[rows, k]

    def log_prob(self, x: ArrayLike) -> Floats:
        """(N,) natural logarithm of the density at x (one number, or one an image); -inf outside the grid."""
        value = self._per_image(x)
        outside = ~((value >= self.edges[0]) & (value <= self.edges[-1]))
        k = self._bin(np.where(outside, self.edges[0], value))
        with np.errstate(divide="ignore"):
            logarithm = np.log(self.density[np.arange(len(self)), k])
        return np.where(outside, -np.inf, logarithm)

    def samples(self, n: int, seed: int) -> Floats:
        """(N, n) independent draws, the same for the same seed."""
        uniform = np.random.default_rng(seed).random((len(self), n))
        cumulative = self._cumulative()
        draws = np.empty_like(uniform)
        for row in range(len(self)):
            # A draw never falls into a bin without probability, where the inverse is not defined.
            filled = np.flatnonzero(np.diff(cumulative[row]) > 0)
            k = filled[np.searchsorted(cumulative[row, filled + 1], uniform[row])]
            share = (uniform[row] - cumulative[row, k]) / (cumulative[row, k + 1] - cumulative[row, k])
            draws[row] = self.edges[k] + np.clip(share, 0.0, 1.0) * self.widths[k]
        return draws

    def _cumulative(self) -> Floats:
        cumulative = np.zeros((len(self), len(self.edges)))
        np.cumsum(self.probability, axis=1, out=cumulative[:, 1:])
        np.minimum(cumulative, 1.0, out=cumulative)
        cumulative[:, -1] = 1.0
        return cumulative

    def _bin(self, value: Floats) -> NDArray[np.intp]:
        return np.clip(np.searchsorted(self.edges, value, side="right") - 1, 0, len(self.edges) - 2)

    def _per_image(self, x: ArrayLike) -> Floats:
        value = np.asarray(x, dtype=np.float64)
        if value.ndim > 1 or (value.ndim == 1 and len(value) != len(self)):
            raise PosteriorError(f"expected one number or {len(self)} numbers, found shape {value.shape}")
        return np.broadcast_to(value, (len(self),))
