"""The Cramer-Rao bound: what the image's response to each parameter allows, without any posterior.

The Fisher information of pixels with mean mu and variance V, both functions of the parameters,

    F_ij = sum over pixels of d_i mu d_j mu / V + d_i V d_j V / (2 V²),

by forward-mode derivatives through the simulator. The bound on log10 m is the square root of the first
diagonal element of its inverse: angle, source (and Model I's exposure) are unknown too. It knows neither
the prior nor other maxima, so it says little once it comes near the prior's width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from darkarc.evaluation.floor.likelihood import NoFloor, why_no_floor
from darkarc.simulation import Preset, draw_scenes, get_preset, model_image, noise_moments

Floats = NDArray[np.float64]

MASSES = 21
SCENES = 8
_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class CramerRao:
    """Bound on the standard deviation of log10 m, (M, S), for S scenes at each of M masses."""

    log10_mass_ev: Floats
    sigma_dex: Floats

    def quantile(self, q: float) -> Floats:
        """(M,) over the scenes."""
        return np.quantile(self.sigma_dex, q, axis=1)


def cramer_rao(
    preset: str | Preset,
    noise: str,
    *,
    distances: str = "deeplense",
    masses: int = MASSES,
    scenes: int = SCENES,
    seed: int = 0,
) -> CramerRao:
    """The bound along the prior range, with angles, sources and exposures drawn from their priors.

    The scenes are the same at every mass. Raises `NoFloor` for a form without noise.
    """
    preset = get_preset(preset)
    drawn = draw_scenes(preset, "axion", seed, range(scenes))
    axis = np.linspace(*preset.lens.log10_axion_mass_ev, masses)
    columns = [np.repeat(axis, scenes), np.tile(drawn.angle_rad, masses)]
    columns += [np.tile(drawn.source_arcsec[:, k], masses) for k in range(2)]
    if preset.counts:
        columns.append(np.log(np.tile(drawn.exposure_s, masses)))
    parameters = torch.from_numpy(np.stack(columns, axis=1))
    information = fisher_information(preset, noise, parameters, distances=distances)
    return CramerRao(axis, marginal_sigma(information).reshape(masses, scenes))


def marginal_sigma(information: Floats) -> Floats:
    """(N,) bound on the first parameter with all others unknown, from (N, P, P)."""
    scale = 1 / np.sqrt(np.einsum("npp->np", information))
    inverse = np.linalg.inv(information * scale[:, :, None] * scale[:, None, :])
    result: Floats = np.sqrt(inverse[:, 0, 0]) * scale[:, 0]
    return result


@torch.no_grad()
def fisher_information(
    preset: str | Preset, noise: str, parameters: Tensor, *, distances: str = "deeplense"
) -> Floats:
    """(N, P, P) for parameters (N, P) float64: log10 m, angle, source x, source y and, for Model I, ln t.

    Model I's published counts are taken as normal with their exact mean and variance.
    """
    preset = get_preset(preset)
    reason = why_no_floor(preset, noise)
    if reason:
        raise NoFloor(reason)
    moments = _moments(preset, noise, distances)
    parts = []
    for part in parameters.split(_AT_ONCE):
        _, variance = moments(part)
        slopes = []
        for unit in torch.eye(part.shape[1], dtype=part.dtype):
            with forward_ad.dual_level():
                duals = moments(forward_ad.make_dual(part, unit.expand_as(part).contiguous()))
                slopes.append([forward_ad.unpack_dual(dual).tangent for dual in duals])
        by_mean = torch.stack([mean for mean, _ in slopes], dim=1).flatten(2)
        by_variance = torch.stack([v for _, v in slopes], dim=1).flatten(2)
        weight = variance.flatten(1)[:, None].reciprocal()
        first = torch.einsum("npx,nqx->npq", by_mean * weight, by_mean)
        second = torch.einsum("npx,nqx->npq", by_variance * weight.square(), by_variance)
        parts.append(first + 0.5 * second)
    return torch.cat(parts).numpy()


def _moments(preset: Preset, noise: str, distances: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Mean and variance (N, H, W) of stored pixels as a function of parameters (N, P)."""
    fixed = preset.instrument.exposures * 10 ** preset.instrument.log10_exposure_s[0]

    def moments(parameters: Tensor) -> tuple[Tensor, Tensor]:
        rate = model_image(
            preset,
            parameters[:, 2:4],
            log10_mass_ev=parameters[:, 0],
            angle_rad=parameters[:, 1],
            distances=distances,
        )
        seconds = parameters[:, 4].exp()[:, None, None] if preset.counts else fixed
        return noise_moments(preset, rate, noise=noise, exposure_s=seconds)

    return moments
