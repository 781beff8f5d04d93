"""Random numbers as pure functions of keys, for whole batches on any device.

splitmix64 (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195) in wrapping int64 arithmetic: number j
of a key is the j-th output of that generator started at the key. What stands beside a key in a batch
does not matter. Integers are the same on every device, what is computed from them to rounding.
"""

import hashlib
import math

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_LOW_BITS = 2**32 - 1

_SMALL_MEAN = 10.0
"""From this mean on, Poisson numbers come from transformed rejection; below, from inversion."""
_INVERSION_STEPS = 8
_NEGLIGIBLE = 1e-18
"""A probability that no longer changes the sum: the deviate counts as reached."""


def hash_indices(seed: int, stream: int, indices: Tensor) -> Tensor:
    """(n,) non-negative 63-bit hashes of (seed, stream, index), the same on every device."""
    state = torch.full((), seed, dtype=torch.int64, device=indices.device)
    for value in (torch.full_like(state, stream), indices.to(torch.int64)):
        state = _mix(state + _GAMMA) ^ value
    return _mix(state + _GAMMA) & (2**63 - 1)


def seed_for(seed: int, purpose: str) -> int:
    """A 63-bit seed of a purpose of its own: streams of different purposes have nothing in common."""
    content = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8, person=b"darkarc-seed").digest()
    return int.from_bytes(content, "big") >> 1


def uniforms(keys: Tensor, n: int) -> Tensor:
    """(B, n) float64 deviates in [0, 1), 53 bits each, of keys (B,)."""
    return _shift_right(_bits(keys, n), 11).double() * 2.0**-53


def normals(keys: Tensor, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, n) standard normal deviates of keys (B,): Box and Muller, two of each 64 bits (|z| < 6.8)."""
    high, low = _halves(_bits(keys, (n + 1) // 2), dtype)
    radius = high.log_().mul_(-2.0).sqrt_()
    angle = low.mul_(2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :n]


def poissons(keys: Tensor, mean: Tensor) -> Tensor:
    """(B, n) Poisson deviates (float64 whole numbers) of means (B, n) >= 0 and keys (B,); exact.

    Means from 10 on by transformed rejection (Hoermann 1993, doi:10.1016/0167-6687(93)90997-4, PTRS);
    smaller ones by inversion of the distribution function.
    """
    count = torch.zeros_like(mean, dtype=torch.float64).flatten()
    flat, n = mean.double().flatten(), mean.shape[1]
    small = ((flat > 0) & (flat < _SMALL_MEAN)).nonzero().squeeze(1)
    if small.numel():
        deviate = uniforms_at(keys, small, n, attempt=0)
        count[small] = _inverted(flat[small], deviate)
    left = (flat >= _SMALL_MEAN).nonzero().squeeze(1)
    attempt = 0
    while left.numel():
        bits = _bits_at(keys, left, n, attempt)
        candidate, accepted = _transformed(flat[left], *_halves(bits, torch.float64))
        count[left[accepted]] = candidate[accepted]
        left = left[~accepted]
        attempt += 1
    return count.view_as(mean)


def uniforms_at(keys: Tensor, where: Tensor, n: int, attempt: int) -> Tensor:
    """(P,) float64 deviates in [0, 1) for flat positions (P,) of a (B, n) tensor."""
    return _shift_right(_bits_at(keys, where, n, attempt), 11).double() * 2.0**-53


def _inverted(mean: Tensor, deviate: Tensor) -> Tensor:
    """The least k with P(<= k) > deviate; (P,) float64 means below `_SMALL_MEAN`."""
    count = torch.zeros_like(mean)
    active = torch.arange(len(mean), device=mean.device)
    term, k = torch.exp(-mean), 0
    total = term.clone()
    while active.numel():
        for _ in range(_INVERSION_STEPS):
            above = (deviate >= total) & (term > _NEGLIGIBLE)
            count[active] += above.double()
            k += 1
            term = torch.where(above, term * mean / k, 0.0)
            total = total + term
        still = term > _NEGLIGIBLE
        active, mean, deviate = active[still], mean[still], deviate[still]
        term, total = term[still], total[still]
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


def _bits(keys: Tensor, n: int) -> Tensor:
    """(B, n) int64: the first n outputs of splitmix64 started at each key."""
    steps = torch.arange(1, n + 1, device=keys.device) * _GAMMA
    return _mix(keys[:, None] + steps)


def _bits_at(keys: Tensor, where: Tensor, n: int, attempt: int) -> Tensor:
    """(P,) int64: output number attempt * n + column of the keys at flat positions of (B, n)."""
    row = where // n
    return _mix(keys[row] + (where - row * n + (attempt * n + 1)) * _GAMMA)


def _halves(bits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits as deviates in (0, 1] (in float64: below 1)."""
    return (
        _shift_right(bits, 32).to(dtype).add_(0.5).mul_(2.0**-32),
        (bits & _LOW_BITS).to(dtype).add_(0.5).mul_(2.0**-32),
    )


def _mix(z: Tensor) -> Tensor:
    z = _shift_right(z, 30).bitwise_xor_(z).mul_(_MULTIPLIERS[0])
    z = _shift_right(z, 27).bitwise_xor_(z).mul_(_MULTIPLIERS[1])
    return _shift_right(z, 31).bitwise_xor_(z)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """A logical shift: torch's own fills with the sign."""
    return (z >> bits).bitwise_and_(2 ** (64 - bits) - 1)
