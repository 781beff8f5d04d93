"""Plain Monte Carlo for the floor: importance sampling of all parameters with the full likelihood.

No Laplace approximation, no grid, no interpolation, and the simulator in float64. The proposal comes from
the lattice under test (bilinear in log10 m and angle, Student's t in the other parameters), but the weights
correct whatever is wrong with it, so long as it reaches everywhere; whether the lattice missed a place
altogether is what the coverage over many images tests.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from darkarc.evaluation.floor.bank import Bank, planes
from darkarc.evaluation.floor.explore import Explored
from darkarc.evaluation.floor.nuisance import fit, log_exposure_ends
from darkarc.simulation import Preset, model_image, noise_moments

Floats = NDArray[np.float64]

FREEDOM = 5.0
WIDENED = 1.3
FLATTENED = 0.7
BLOCK = 8


@dataclass(frozen=True, eq=False)
class Proposal:
    """Nodes (log10 m, angle) (N, 2) with probability (N,), spacing (2,), and a t in the rest at each."""

    nodes: Floats
    probability: Floats
    spacing: Floats
    centre: Floats
    root: Floats  # (N, P, P), Cholesky factor of the t's scale


@dataclass(frozen=True, eq=False)
class Sampled:
    """Weighted draws of log10 m, (S,), and how many independent ones they are worth."""

    log10_mass_ev: Floats
    weight: Floats

    @property
    def effective(self) -> float:
        return float(self.weight.sum() ** 2 / (self.weight**2).sum())

    def quantile(self, q: float) -> float:
        order = np.argsort(self.log10_mass_ev)
        cumulative = np.cumsum(self.weight[order]) / self.weight.sum()
        return float(np.interp(q, cumulative, self.log10_mass_ev[order]))


def make_proposal(bank: Bank, explored: Explored) -> Proposal:
    """From the lattice's nodes within 20 of the best."""
    lattice = explored.lattice
    likely = np.flatnonzero(lattice.on_present() & (lattice.value > lattice.value.max() - 20.0))
    unit = np.array(lattice.unit)
    nodes = lattice.places[likely] * unit + np.array([lattice.low, 0.0])
    plane = planes(bank.preset, bank.distances, torch.from_numpy(nodes))
    found = fit(bank.preset, explored.likelihood, plane, lattice.parameters[likely])
    covariance = np.linalg.inv(found.information.numpy()) * WIDENED**2
    value = FLATTENED * (lattice.value[likely] - lattice.value.max())
    probability = np.exp(value)
    return Proposal(
        nodes,
        probability / probability.sum(),
        unit * np.array(lattice.spacing),
        found.parameters.numpy(),
        np.linalg.cholesky(covariance),
    )


def draw(proposal: Proposal, samples: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Parameters (S, 2 + P) and the logarithm of the density they were drawn from, (S,)."""
    chosen = rng.choice(len(proposal.nodes), samples, p=proposal.probability)
    jitter = rng.triangular(-1.0, 0.0, 1.0, (samples, 2)) * proposal.spacing
    size = proposal.centre.shape[1]
    normal = rng.standard_normal((samples, size))
    stretch = np.sqrt(FREEDOM / rng.chisquare(FREEDOM, (samples, 1)))
    rest = proposal.centre[chosen] + np.einsum("spq,sq->sp", proposal.root[chosen], normal * stretch)
    place = proposal.nodes[chosen] + jitter
    density = np.empty(samples)
    inverse = np.linalg.inv(proposal.root)
    log_scale = np.log(np.abs(np.linalg.det(inverse)))
    constant = math.lgamma((FREEDOM + size) / 2) - math.lgamma(FREEDOM / 2)
    constant -= 0.5 * size * math.log(FREEDOM * math.pi)
    for s in range(samples):
        away = place[s] - proposal.nodes
        away[:, 1] = (away[:, 1] + math.pi / 2) % math.pi - math.pi / 2
        tent = np.prod(np.clip(1 - np.abs(away) / proposal.spacing, 0, None) / proposal.spacing, axis=1)
        near = np.flatnonzero(tent)
        z = np.einsum("npq,nq->np", inverse[near], rest[s] - proposal.centre[near])
        t = constant + log_scale[near] - 0.5 * (FREEDOM + size) * np.log1p((z * z).sum(1) / FREEDOM)
        density[s] = np.sum(proposal.probability[near] * tent[near] * np.exp(t - t.max()))
        density[s] = np.log(density[s]) + t.max()
    return np.concatenate([place, rest], axis=1), density


def log_prior(preset: Preset, parameters: Floats) -> Floats:
    """0 inside the priors, -inf outside (up to a constant)."""
    ends = [preset.lens.log10_axion_mass_ev, (-np.inf, np.inf), *[preset.source.position_arcsec] * 2]
    if parameters.shape[1] == 5:
        ends.append(log_exposure_ends(preset))
    low, high = np.array(ends).T
    return np.where(((parameters >= low) & (parameters <= high)).all(axis=1), 0.0, -np.inf)


def log_likelihood(bank: Bank, noise: str, explored: Explored, image: Floats, parameters: Floats) -> Floats:
    """(S,) of the full image in float64; Model I's published counts by the exact probabilities."""
    preset, result = bank.preset, np.empty(len(parameters))
    data = torch.from_numpy(image)
    for start in range(0, len(parameters), BLOCK):
        part = torch.from_numpy(parameters[start : start + BLOCK])
        rate = model_image(
            preset, part[:, 2:4], log10_mass_ev=part[:, 0], angle_rad=part[:, 1], distances=bank.distances
        )
        if preset.counts and noise == "published":
            seconds = part[:, 4].exp()[:, None, None]
            value = explored.likelihood.terms((rate * seconds).float(), part[:, 4]).value.double()
        else:
            seconds = part[:, 4].exp()[:, None, None] if preset.counts else torch.tensor(_exposure(preset))
            mean, variance = noise_moments(preset, rate, noise=noise, exposure_s=seconds)
            value = -0.5 * ((data - mean).square() / variance + variance.log())
        result[start : start + BLOCK] = value.sum((1, 2)).numpy()
    return result


def _exposure(preset: Preset) -> float:
    return preset.instrument.exposures * 10 ** preset.instrument.log10_exposure_s[0]


@torch.no_grad()
def sample(bank: Bank, noise: str, explored: Explored, image: Floats, samples: int, seed: int) -> Sampled:
    """Self-normalised importance sampling of one image's posterior."""
    parameters, density = draw(make_proposal(bank, explored), samples, np.random.default_rng(seed))
    prior = log_prior(bank.preset, parameters)
    inside = np.isfinite(prior)
    log_weight = log_likelihood(bank, noise, explored, image, parameters[inside]) - density[inside]
    return Sampled(parameters[inside, 0], np.exp(log_weight - log_weight.max()))
