"""Poisson numbers as pure functions of keys, for whole batches on any device; exact.

A Poisson number of mean n + d, n whole and d below 1, is the sum of two of means n and d. The first comes
from a table by the alias method (Walker 1977, doi:10.1145/355744.355749), the second by inversion of its
distribution function. Means beyond the table come from transformed rejection (Hoermann 1993,
doi:10.1016/0167-6687(93)90997-4, PTRS).
"""

from functools import cache

import torch
from torch import Tensor

from darkarc.simulation.counter import bits, halves, uniforms

_TABLED = 1024
"""The table holds whole means below this: the counts of every preset."""
_CELLS = 640
"""Values a row of the table, from `_BELOW` deviations under its mean to at least eleven above it."""
_BELOW = 9.0

_STEPS = 3
"""Steps of the inversion that every pixel takes; few need more."""
_NEGLIGIBLE = 1e-18
"""A probability that no longer changes a sum near 1."""


def poissons(keys: Tensor, mean: Tensor) -> Tensor:
    """(B, n) Poisson deviates (float64 whole numbers) of means (B, n) >= 0 and keys (B,)."""
    n = mean.shape[1]
    mean = mean.double()
    whole = mean.floor().clamp_max_(_TABLED - 1)
    rest = (mean - whole).clamp_max_(1.0)
    count = _tabled(whole, uniforms(keys, n)) + _below_one(rest, uniforms(keys, n, n))
    beyond = mean >= _TABLED
    if bool(beyond.any()):
        for row in beyond.any(dim=1).nonzero().squeeze(1).tolist():
            where = beyond[row].nonzero().squeeze(1)
            count[row, where] = _rejected(keys[row], mean[row, where], where, n)
    return count


def _tabled(whole: Tensor, deviate: Tensor) -> Tensor:
    """Poisson numbers of whole means below `_TABLED`."""
    place = deviate * _CELLS
    cell = place.floor()
    entry = _table(whole.device)[(whole * _CELLS + cell).to(torch.int64)]
    alias = (entry / 2).floor()
    value = torch.where(place - cell < entry - 2 * alias, cell, alias)
    return value + _first(whole)


def _first(whole: Tensor) -> Tensor:
    """The least value of a mean's row in the table."""
    return (whole - _BELOW * whole.sqrt()).floor().clamp_min(0.0)


@cache
def _table(device: torch.device) -> Tensor:
    """(_TABLED * _CELLS,) float64: of each cell twice its alias plus the probability of staying."""
    means = torch.arange(_TABLED, dtype=torch.float64)[:, None]
    values = _first(means) + torch.arange(_CELLS, dtype=torch.float64)
    log_probability = torch.xlogy(values, means) - means - torch.lgamma(values + 1)
    probability = log_probability.exp()
    probability = probability / probability.sum(dim=1, keepdim=True) * _CELLS
    return (
        torch.tensor([_alias(row) for row in probability.tolist()], dtype=torch.float64).flatten().to(device)
    )


def _alias(share: list[float]) -> list[float]:
    """Walker's table of a row of probabilities times its length, in Vose's order."""
    entry = [1.0 + 2.0 * cell for cell in range(len(share))]
    small = [cell for cell, p in enumerate(share) if p < 1]
    large = [cell for cell, p in enumerate(share) if p >= 1]
    while small and large:
        poor, rich = small.pop(), large[-1]
        entry[poor] = 2.0 * rich + share[poor]
        share[rich] -= 1 - share[poor]
        if share[rich] < 1:
            small.append(large.pop())
    return entry


def _below_one(mean: Tensor, deviate: Tensor) -> Tensor:
    """The least k with P(<= k) > deviate, for means up to 1."""
    term = torch.exp(-mean)
    total, count = term.clone(), (deviate >= term).double()
    for k in range(1, _STEPS):
        term = term * mean / k
        total += term
        count += (deviate >= total).double()
    left = (count >= _STEPS).flatten().nonzero().squeeze(1)
    if left.numel():
        count.view(-1)[left] = _inverted(mean.flatten()[left], deviate.flatten()[left])
    return count


def _inverted(mean: Tensor, deviate: Tensor) -> Tensor:
    """As `_below_one`, step by step until no sum changes any more."""
    term = torch.exp(-mean)
    total, count = term.clone(), torch.zeros_like(mean)
    k = 0
    while True:
        above = (deviate >= total) & (term > _NEGLIGIBLE)
        if not bool(above.any()):
            return count
        count += above.double()
        k += 1
        term = term * mean / k
        total += term


def _rejected(key: Tensor, mean: Tensor, where: Tensor, n: int) -> Tensor:
    """Poisson numbers of one key for large means (P,) at pixels `where`; each takes a draw an attempt."""
    count = torch.zeros_like(mean)
    left = torch.arange(len(mean), device=mean.device)
    attempt = 2  # the first two draws of a pixel are the table's
    while left.numel():
        drawn = bits(key[None], n, attempt * n)[0][where[left]]
        candidate, accepted = _transformed(mean[left], *halves(drawn, torch.float64))
        count[left[accepted]] = candidate[accepted]
        left = left[~accepted]
        attempt += 1
    return count


def _transformed(mean: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One attempt of PTRS: candidates and whether they are accepted; u and v in (0, 1)."""
    b = 0.931 + 2.53 * mean.sqrt()
    a = -0.059 + 0.02483 * b
    u = u - 0.5
    us = 0.5 - u.abs()
    k = torch.floor((2 * a / us + b) * u + mean + 0.43)
    quick = (us >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2))
    possible = (k >= 0) & ~((us < 0.013) & (v > us))
    weight = torch.log(v * (1.1239 + 1.1328 / (b - 3.4)) / (a / (us * us) + b))
    full = weight <= k * torch.log(mean) - mean - torch.lgamma(k.clamp_min(0) + 1)
    return k, quick | (possible & full)
