"""Exact probabilities of Model I's published counts: Poisson(max(g, 0)) of a normal g.

With g ~ N(lambda, V), V = lambda + s², and s the background in counts,

    P(k) = [k = 0] Phi(-lambda / sqrt(V)) + exp(V/2 - lambda) M_k / k!,
    M_k = integral over g > 0 of g^k N(g; -s², V),

because exp(-g) N(g; lambda, V) is exp(V/2 - lambda) N(g; lambda - V, V). The moments obey M_{k+1} =
-s² M_k + k V M_{k-1}; they are its minimal solution, so that the ratios M_k / M_{k-1} come, stably, from
above (Miller's algorithm).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import gammaln, log_ndtr
from torch import Tensor

Floats = NDArray[np.float64]

_EXTRA_TERMS = 400
_STEP = 0.25
_TAU_STEP = 0.02


def log_probability(mean: Floats, background: float, largest: int) -> Floats:
    """ln P(k), (largest + 1, L), for counts k = 0 ... largest and L values of lambda."""
    shift = background**2
    variance = mean + shift
    top = largest + _EXTRA_TERMS
    ratio = 0.5 * (np.sqrt(shift**2 + 4 * top * variance) - shift)
    ratios = np.ones((largest + 1, len(mean)))
    for k in range(top - 1, 0, -1):
        ratio = k * variance / (ratio + shift)
        if k <= largest:
            ratios[k] = ratio
    moments = log_ndtr(-shift / np.sqrt(variance)) + np.cumsum(np.log(ratios), axis=0)
    counts = np.arange(largest + 1)[:, None]
    logarithm: Floats = variance / 2 - mean + moments - gammaln(counts + 1)
    logarithm[0] = np.logaddexp(logarithm[0], log_ndtr(-mean / np.sqrt(variance)))
    return logarithm


class CompoundTable:
    """ln P(k) as cubic splines in w = sqrt(2 lambda + s²), in which a pixel's spread is about 1.

    To second order in delta = ln(s / background): the exposure of an image, which s is proportional to, is
    known to half a per cent. Each count's largest value is taken off, for the sake of float32.
    """

    def __init__(
        self,
        background: float,
        largest_mean: float,
        largest_count: int,
        device: torch.device | str = "cpu",
    ) -> None:
        end = np.sqrt(2 * largest_mean + background**2)
        self.w = np.arange(background, end + _STEP, _STEP)
        self.background2 = background**2
        mean = 0.5 * (self.w**2 - self.background2)
        counts = max(largest_count, int(largest_mean + 7 * end) + 1)
        below, here, above = (
            log_probability(mean, background * np.exp(step), counts) for step in (-_TAU_STEP, 0.0, _TAU_STEP)
        )
        by_tau = (above - below) / (2 * _TAU_STEP)
        by_mean = CubicSpline(self.w, here, axis=1)(self.w, 1) / self.w
        self.information = self._information(np.exp(here), by_mean, by_tau).to(device)
        here = here - here.max(axis=1, keepdims=True)
        kept = slice(0, largest_count + 1)
        cubic = CubicSpline(self.w, here[kept], axis=1).c  # (power, piece, count)
        columns = [*cubic, by_tau[kept, :-1].T, by_tau[kept, 1:].T]
        # A row for each (count, piece): the numbers that one pixel needs lie together.
        self.coefficients = torch.from_numpy(np.stack(columns, axis=-1).transpose(1, 0, 2).astype(np.float32))
        self.coefficients = self.coefficients.reshape(-1, len(columns)).contiguous().to(device)
        self.pieces = len(self.w) - 1

    @staticmethod
    def _information(probability: Floats, by_mean: Floats, by_tau: Floats) -> Tensor:
        """(3, L) expected information: mean-mean, mean-tau, tau-tau."""
        products = (by_mean * by_mean, by_mean * by_tau, by_tau * by_tau)
        rows = [np.sum(probability * product, axis=0) for product in products]
        return torch.from_numpy(np.stack(rows).astype(np.float32))

    def terms(
        self, counts: Tensor, mean: Tensor, delta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """For counts (H, W), lambda (B, H, W) and delta (B,): ln P, its derivative by lambda, the information
        mean-mean, the derivative by tau, the information mean-tau and tau-tau."""
        w = torch.sqrt(2 * mean + self.background2)
        place = (w - float(self.w[0])) / _STEP
        piece = place.long().clamp_(0, self.pieces - 1)
        share = place - piece
        rows = self.coefficients.index_select(0, (counts * self.pieces + piece).flatten())
        c3, c2, c1, c0, tau_low, tau_high = rows.t().contiguous().unflatten(1, mean.shape)
        x = share * _STEP
        value = ((c3 * x + c2) * x + c1) * x + c0
        slope = ((3 * c3 * x + 2 * c2) * x + c1) / w
        low, high = (self.information[:, part.flatten()] for part in (piece, piece + 1))
        uu, ut, tt = torch.lerp(low, high, share.flatten()).unflatten(1, mean.shape)
        delta = delta.to(mean.dtype)[:, None, None]
        by_tau = torch.lerp(tau_low, tau_high, share)
        # The second derivative by tau is taken at its expectation.
        return value + delta * (by_tau - 0.5 * delta * tt), slope, uu, by_tau - delta * tt, ut, tt
