"""What all images of a preset share: source planes on a coarse grid of (log10 m, angle), and templates."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from darkarc.evaluation.floor.likelihood import PixelLikelihood, pixel_likelihood
from darkarc.evaluation.floor.nuisance import (
    LIKELY,
    Plane,
    Reply,
    fit,
    joined,
    log_exposure_ends,
)
from darkarc.simulation import Preset, get_preset, observe, source_plane

TEMPLATES = 15
BANK_MASSES = 21
BANK_ANGLES = 32

_BLOCK_PIXELS = {"cpu": 2**17, "cuda": 2**25}
"""On a CPU a block's temporaries stay in its cache; a GPU wants large ones."""


@dataclass(frozen=True, eq=False)
class Bank:
    """What all images of a preset share: source planes of nodes of (log10 m, angle), and templates.

    nodes: (N, 2) float64, masses times angles, on the CPU. templates: (T, H, W) images, in counts a second,
    of sources (T, 2) behind a lens whose vortex is a point.
    """

    preset: Preset
    distances: str
    nodes: Tensor
    plane: Plane
    sources: Tensor
    templates: Tensor

    @property
    def device(self) -> torch.device:
        return self.templates.device


def planes(preset: Preset, distances: str, nodes: Tensor) -> Plane:
    """Source planes (B, H, W), float32, of nodes (B, 2) of log10 m and angle."""
    x, y = source_plane(
        preset,
        log10_mass_ev=nodes[:, 0],
        angle_rad=nodes[:, 1],
        distances=distances,
        dtype=torch.float32,
        device=nodes.device,
    )
    return x, y


def blocks(preset: Preset, number: int, device: torch.device, share: int = 1) -> Iterator[slice]:
    """Slices of `number` nodes whose temporaries suit the device; `share` images each."""
    height, width = preset.instrument.shape
    size = max(1, _BLOCK_PIXELS.get(device.type, _BLOCK_PIXELS["cuda"]) // (height * width * share))
    return (slice(start, min(start + size, number)) for start in range(0, number, size))


@torch.no_grad()
def make_bank(preset: str | Preset, distances: str, device: torch.device | str = "cpu") -> Bank:
    """Compute the bank of a preset (float32: 44 MB at 64 x 64 pixels, 121 MB at 150 x 150)."""
    preset, device = get_preset(preset), torch.device(device)
    low, high = preset.lens.log10_axion_mass_ev
    masses = torch.linspace(low, high, BANK_MASSES, dtype=torch.float64)
    angles = torch.arange(BANK_ANGLES, dtype=torch.float64) * (math.pi / BANK_ANGLES)
    nodes = torch.cartesian_prod(masses, angles)
    parts = [planes(preset, distances, nodes[rows].to(device)) for rows in blocks(preset, len(nodes), device)]
    plane = (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    axis = torch.linspace(*preset.source.position_arcsec, TEMPLATES, dtype=torch.float64)
    sources = torch.cartesian_prod(axis, axis).to(device)
    point = (plane[0][-1], plane[1][-1])
    templates = torch.cat(
        [observe(preset, *point, sources[rows]) for rows in blocks(preset, len(sources), device)]
    )
    return Bank(preset, distances, nodes, plane, sources, templates)


def first_guess(bank: Bank, image: Tensor) -> Tensor:
    """(2,) or (3,): the source, and for Model I ln t, of the template nearest to the image."""
    counts = bank.preset.counts
    flat = bank.templates.flatten(1)
    product, square = flat @ image.flatten(), flat.square().sum(1)
    if not counts:
        return bank.sources[int((square - 2 * product).argmin())].clone()
    low, high = log_exposure_ends(bank.preset)
    scale = (product / square).clamp(math.exp(low), math.exp(high))
    best = int((scale * (scale * square - 2 * product)).argmin())
    return torch.cat([bank.sources[best], scale[best].log().double()[None]])


def start(bank: Bank, noise: str, image: Tensor) -> tuple[PixelLikelihood, Tensor]:
    """The likelihood of an image (H, W), and nuisance parameters (P,) fitted with the vortex as a point.

    The table of Model I's published form holds near one exposure, so that it is made twice.
    """
    preset, guess = bank.preset, first_guess(bank, image)
    point = (bank.plane[0][-1:], bank.plane[1][-1:])
    exposure_s = math.exp(sum(log_exposure_ends(preset)) / 2)
    for _ in range(2 if preset.counts else 1):
        if preset.counts:
            exposure_s = math.exp(float(guess[2]))
        likelihood = pixel_likelihood(preset, noise, image, exposure_s)
        guess = fit(preset, likelihood, point, guess[None], rounds=12).parameters[0]
    if preset.counts and noise == "published":
        likelihood = pixel_likelihood(preset, noise, image, math.exp(float(guess[2])))
    return likelihood, guess


def survey(bank: Bank, likelihood: PixelLikelihood, guess: Tensor) -> Reply:
    """Nuisance parameters and log-evidence at every node of the bank."""
    parts = []
    best = -math.inf
    for rows in blocks(bank.preset, len(bank.nodes), bank.device, share=3):
        plane = (bank.plane[0][rows], bank.plane[1][rows])
        start = guess.expand(rows.stop - rows.start, -1)
        bar = guess.new_tensor(best - LIKELY)
        found = fit(bank.preset, likelihood, plane, start, rounds=2, bar=bar)
        best = max(best, float(found.value.max()))
        parts.append(found)
    return joined(bank.preset, parts)
