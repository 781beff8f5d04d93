"""After training: neighbouring bins are drawn onto a smooth curve, as wide as the calibration split bears.

A free probability for every bin learns the chance of its own few training images, too: 30,000 masses in
1,024 bins are 30 a bin, and such numbers scatter by a fifth. One posterior hardly shows it, but all of a
regressor's posteriors share it, and the product of a hundred is a comb. So the logits are smoothed along
the bins by local quadratic regression with a normal kernel (Fan & Gijbels 1996, Local Polynomial
Modelling), which leaves a normal density as it is, at the ends of the prior as well. How wide, at a few
places of the prior, the calibration split says: the widest kernel whose negative log-likelihood is within
one standard error of the best one's (Breiman et al. 1984, section 3.4.3), at the temperature that a
recalibration will give the logits. Smoothing is linear, so it is done to the weights of the last layer, and
an answer costs nothing more.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from darkarc.models import Grid, Recalibration, Regressor
from darkarc.models.heads import BinnedHead

LEAST_IMAGES = 30
"""With fewer truths a target keeps its bins: the kernel would be mostly chance."""
LEAST_BINS = 8
"""With fewer free bins, too: a kernel of one bin would reach over an eighth of the prior."""
PLACES = ((4_500, 9), (300, 5), (0, 1))
"""So many images, so many places of the prior with a kernel of their own, its logarithm interpolated."""
NONE = 0.4
"""Bins; so narrow a kernel sees three of them, through which a parabola passes, and nothing changes."""
WIDTHS = (NONE, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
"""Standard deviations of the kernel in bins; at most an eighth of all bins counts."""
REACH = 4.0
"""Standard deviations after which a kernel ends."""
SWEEPS = 3
"""Times that each place chooses, the others held; in the last one the widest that will do."""


@torch.no_grad()
def smooth_bins(
    regressor: Regressor, features: Tensor, truth: Tensor, novelty: Tensor | None = None
) -> float | None:
    """Smooth the last layer of a `binned` head; returns the gain in nats an image, for the first target.

    features (N, F) of images that training never saw, truth (N, T) of their targets, NaN where unknown;
    novelty (N,) of the images, if the regressor gives one.
    None if the head is of another kind, has too few bins or too few truths are known.
    """
    singles = [cast(Regressor, one) for one in getattr(regressor, "members", [regressor])]
    if not isinstance(singles[0].head, BinnedHead):
        return None
    gains = []
    for single, own in zip(singles, features.chunk(len(singles), dim=1), strict=True):
        outputs = single.answers(own)[0]
        for t, item in enumerate(single.grids):
            grid, known = cast(Grid, item), truth[:, t].isfinite()
            if int(known.sum()) < LEAST_IMAGES or single.n_outputs < LEAST_BINS:
                continue
            share = (truth[known, t].double() - grid.low) / (grid.width * grid.bins)
            logits = outputs[known, t]
            if single is regressor and regressor.vortex_fit is None:
                # What comes next acts on a mixture otherwise, and these logits stay as they are.
                recalibration = cast(Recalibration, regressor.recalibrations[t])
                strange = None if novelty is None else novelty[known]
                logits = tempered(logits, share, recalibration.method, strange)
            matrix, gain = fitted_smoother(logits, share)
            _apply(single, t, matrix)
            if t == 0:
                gains.append(gain)
    return float(np.mean(gains)) if gains else None


def tempered(logits: Tensor, share: Tensor, method: str, novelty: Tensor | None = None) -> Tensor:
    """Logits (N, K) times the inverse temperature that `model.recalibration` would give each image now."""
    recalibration = Recalibration(method).to(logits.device)
    recalibration.fit(logits, share * logits.shape[1], novelty)
    return recalibration.tempered(logits, novelty)


def fitted_smoother(logits: Tensor, share: Tensor) -> tuple[Tensor, float]:
    """The smoothing matrix (K, K) for logits (N, K), and what it gains on them in nats an image.

    share (N,): where the truth lies between the ends of the prior, 0 to 1.
    """
    n, bins = logits.shape
    own = (share * bins).to(torch.int64).clamp(0, bins - 1)
    widths = [width for width in WIDTHS if width <= max(bins / 8, NONE)]
    places = next(count for least, count in PLACES if n >= least)
    nodes = np.linspace(0, bins - 1, places) if places > 1 else np.array([(bins - 1) / 2])
    chosen = [0] * places
    smoothed = logits.clone()
    for sweep in range(SWEEPS):
        for place in range(places):
            first, last = _touched(nodes, place, bins)
            rows = np.arange(first, last)
            rest = torch.cat([smoothed[:, :first], smoothed[:, last:]], dim=1)
            rest_sum = rest.logsumexp(dim=1) if rest.shape[1] else None
            outside = (own < first) | (own >= last)
            mine = (own - first).clamp(0, len(rows) - 1)[:, None]
            tried, losses = [], []
            for width in range(len(widths)):
                profile = _profile([*chosen[:place], width, *chosen[place + 1 :]], widths, nodes, rows)
                columns = _smoothed(logits, rows, profile)
                total = columns.logsumexp(dim=1)
                if rest_sum is not None:
                    total = torch.logaddexp(total, rest_sum)
                at_truth = torch.where(
                    outside, smoothed.gather(1, own[:, None])[:, 0], columns.gather(1, mine)[:, 0]
                )
                tried.append(columns)
                losses.append(total - at_truth)
            chosen[place] = _choice(torch.stack(losses), widest=sweep == SWEEPS - 1)
            smoothed[:, first:last] = tried[chosen[place]]
    gain = (logits.logsumexp(dim=1) - logits.gather(1, own[:, None])[:, 0]).mean()
    gain -= (smoothed.logsumexp(dim=1) - smoothed.gather(1, own[:, None])[:, 0]).mean()
    rows = np.arange(bins)
    return smoother(rows, _profile(chosen, widths, nodes, rows), bins).to(logits.device), float(gain)


def smoother(rows: NDArray[np.intp], widths: NDArray[np.float64], bins: int) -> Tensor:
    """(R, K) float64: what local quadratic regression over `bins` bins puts at these rows.

    widths (R,): the kernel's standard deviation at each row, in bins. Quadratic functions stay as they are.
    """
    u = (np.arange(bins)[None, :] - rows[:, None]) / widths[:, None]
    # At least the three nearest, for at an end of the prior a narrow kernel would see fewer.
    nearest = np.abs(np.arange(bins)[None, :] - rows.clip(1, bins - 2)[:, None]) <= 1
    weight = np.where((np.abs(u) <= REACH) | nearest, np.exp(-0.5 * u**2), 0.0)
    powers = np.stack([weight * u**p for p in range(5)])  # (5, R, K)
    moments = powers.sum(axis=2)
    system = np.stack([np.stack([moments[p + q] for q in range(3)], axis=-1) for p in range(3)], axis=-2)
    first = np.zeros((len(rows), 3, 1))
    first[:, 0] = 1.0
    solved = np.linalg.solve(system, first)[..., 0]  # (R, 3)
    return torch.from_numpy(np.einsum("rp,prk->rk", solved, powers[:3]))


def _smoothed(logits: Tensor, rows: NDArray[np.intp], widths: NDArray[np.float64]) -> Tensor:
    """(N, R) the smoothed logits at these rows; the matrix is nought away from them."""
    bins, reach = logits.shape[1], int(np.ceil(REACH * widths.max())) + 2
    first, last = max(0, int(rows[0]) - reach), min(bins, int(rows[-1]) + reach + 1)
    matrix = smoother(rows, widths, bins)[:, first:last].to(logits)
    return logits[:, first:last] @ matrix.T


def _touched(nodes: NDArray[np.float64], place: int, bins: int) -> tuple[int, int]:
    """The bins [first, last) whose kernel depends on that of a place."""
    first = 0 if place == 0 else int(np.floor(nodes[place - 1])) + 1
    last = bins if place == len(nodes) - 1 else int(np.ceil(nodes[place + 1]))
    return first, last


def _profile(
    chosen: Sequence[int], widths: Sequence[float], nodes: NDArray[np.float64], rows: NDArray[np.intp]
) -> NDArray[np.float64]:
    """(R,) the kernel's width at these bins, its logarithm interpolated between the places."""
    return np.exp(np.interp(rows, nodes, np.log([widths[k] for k in chosen])))


def _choice(losses: Tensor, *, widest: bool) -> int:
    """Of (C, N) losses, the kernels widening: the least, or the widest within a standard error of it."""
    best = int(losses.mean(dim=1).argmin())
    if not widest:
        return best
    worse = losses - losses[best]
    error = worse.std(dim=1) / losses.shape[1] ** 0.5
    return int((worse.mean(dim=1) <= error).nonzero().max())


def _apply(regressor: Regressor, t: int, matrix: Tensor) -> None:
    """The matrix (n, n) on the outputs of target t, folded into the weights of the last layer."""
    layer, n = regressor.target_layer, regressor.n_outputs
    rows = slice(t * n, (t + 1) * n)
    layer.weight[rows] = (matrix @ layer.weight[rows].double()).to(layer.weight)
    layer.bias[rows] = (matrix @ layer.bias[rows].double()).to(layer.bias)
