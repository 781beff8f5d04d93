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


def uniforms(keys: Tensor, n: int, first: int = 0) -> Tensor:
    """(B, n) float64 deviates in [0, 1), 53 bits each, of keys (B,), from number `first` on."""
    return _shift_right(bits(keys, n, first), 11).double() * 2.0**-53


def normals(keys: Tensor, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, n) standard normal deviates of keys (B,): Box and Muller, two of each 64 bits (|z| < 6.8)."""
    high, low = halves(bits(keys, (n + 1) // 2), dtype)
    radius = high.log_().mul_(-2.0).sqrt_()
    angle = low.mul_(2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :n]


def bits(keys: Tensor, n: int, first: int = 0) -> Tensor:
    """(B, n) int64: outputs `first`, `first` + 1, ... of splitmix64 started at each key."""
    steps = torch.arange(first + 1, first + n + 1, device=keys.device) * _GAMMA
    return _mix(keys[:, None] + steps)


def halves(bits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
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
