"""Keyed random numbers against scipy's distributions and a reference in Python's integers."""

import numpy as np
import pytest
import torch
from scipy import stats

from darkarc.simulation.counter import hash_indices, normals, seed_for, uniforms
from darkarc.simulation.poisson import poissons

MASK = 2**64 - 1
KEYS = hash_indices(7, 3, torch.arange(200))


def splitmix64(state: int, number: int) -> int:
    """Output `number` (from 0) of the generator started at `state`."""
    z = (state + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_uniforms_are_the_outputs_of_splitmix64() -> None:
    found = uniforms(KEYS[:3], 5).tolist()
    expected = [[(splitmix64(key, j) >> 11) / 2**53 for j in range(5)] for key in KEYS[:3].tolist()]
    assert found == expected


def test_normals_are_normal_and_independent() -> None:
    z = normals(KEYS, 4001).double()
    assert z.shape == (200, 4001)
    assert stats.kstest(z[:, ::7].flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float((z**4).mean()) - 3) < 5 * np.sqrt(96 / z.numel())
    # Pairs of one radius, neighbours in a row and the same pixel of two keys: no correlation.
    for a, b in ((z[:, :2000], z[:, 2001:]), (z[:, :-1], z[:, 1:]), (z[:-1], z[1:])):
        for f in (torch.clone, torch.square):
            correlation = np.corrcoef(f(a[:, : b.shape[1]]).flatten(), f(b[:, : a.shape[1]]).flatten())[0, 1]
            assert abs(correlation) < 5 / np.sqrt(b.numel())


@pytest.mark.parametrize("mean", [0.02, 0.9, 1.0, 9.5, 33.3, 800.0, 1023.9, 1024.0, 7000.0])
def test_poissons_are_poisson(mean: float) -> None:
    counts = poissons(KEYS, torch.full((200, 300), mean)).flatten().numpy()
    # Bins of about equal probability, and the tails on their own.
    edges = np.unique(stats.poisson.ppf([0.001, *np.linspace(0.05, 0.95, 19), 0.999], mean))
    cdf = np.concatenate([[0], stats.poisson.cdf(edges, mean), [1]])
    found = np.bincount(np.searchsorted(edges, counts), minlength=len(edges) + 1)
    expected = np.diff(cdf) * counts.size
    kept = expected > 0
    assert found[~kept].sum() == 0
    assert stats.chisquare(found[kept], expected[kept] * found.sum() / expected[kept].sum()).pvalue > 1e-3


def test_poissons_of_mixed_means_do_not_depend_on_their_neighbours() -> None:
    mean = torch.rand(200, 31, generator=torch.Generator().manual_seed(0)).double().pow(6) * 1500
    mean[:, 4] = 0
    whole = poissons(KEYS, mean)
    assert (whole[:, 4] == 0).all() and (whole == whole.round()).all() and (whole >= 0).all()
    rows = torch.tensor([150, 3, 77])
    assert torch.equal(poissons(KEYS[rows], mean[rows]), whole[rows])
    pulls = (whole - mean).sum() / mean.sum().sqrt()
    assert abs(float(pulls)) < 4


def test_a_row_is_the_same_bits_whatever_stands_beside_it() -> None:
    for n in (1, 63, 4096):
        whole = normals(KEYS, n)
        for row in (0, 3, 199):
            assert torch.equal(normals(KEYS[row : row + 1], n)[0], whole[row])


def test_seeds_of_two_purposes_differ() -> None:
    seeds = {seed_for(seed, purpose) for seed in (0, 1, 2**62) for purpose in ("a", "b")}
    assert len(seeds) == 6 and all(0 <= seed < 2**63 for seed in seeds)
