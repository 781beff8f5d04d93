"""The source's position (and Model I's exposure) at nodes of (log10 m, angle): fitted, then integrated out.

The posterior of these nuisance parameters is narrow (a thousandth of an arcsecond, half a per cent of the
exposure), so Laplace's method, with the expected information, is exact for all purposes; a uniform prior
that ends inside it cuts the Gaussian off.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_ndtr
from torch import Tensor

from darkarc.evaluation.floor.likelihood import PixelLikelihood, PixelTerms
from darkarc.simulation import Preset, observe

Floats = NDArray[np.float64]
Plane = tuple[Tensor, Tensor]

_SOURCE_STEP_ARCSEC = 2e-3
_LARGEST_STEP = (0.05, 0.05, 0.1)  # arcsec, arcsec, ln t
_SETTLED = 0.02


@dataclass(frozen=True, eq=False)
class Fit:
    """Nuisance parameters (B, P) at B nodes, log-likelihood (B,) at its top, information (B, P, P)."""

    parameters: Tensor
    value: Tensor
    information: Tensor


def assemble(
    terms: PixelTerms, jacobian: Tensor, u: Tensor, fits_exposure: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihood (B,), gradient (B, P), information (B, P, P), float64, of pixel terms.

    jacobian: (B, S, H, W) of u with respect to all parameters but tau, which comes last.
    """
    flat = jacobian.flatten(2)
    if fits_exposure:
        flat = torch.cat([flat, u.flatten(1)[:, None]], dim=1)
    gradient = torch.einsum("bpn,bn->bp", flat, terms.by_u.flatten(1)).double()
    weighted = flat * terms.info_uu.flatten(1)[:, None]
    information = torch.einsum("bpn,bqn->bpq", weighted, flat).double()
    if fits_exposure:
        assert terms.by_tau is not None and terms.info_ut is not None and terms.info_tt is not None
        gradient[:, -1] += terms.by_tau.flatten(1).sum(1, dtype=torch.float64)
        cross = torch.einsum("bpn,bn->bp", flat, terms.info_ut.flatten(1)).double()
        information[:, -1, :] += cross
        information[:, :, -1] += cross
        information[:, -1, -1] += terms.info_tt.flatten(1).sum(1, dtype=torch.float64)
    return terms.value.flatten(1).sum(1, dtype=torch.float64), gradient, information


def source_derivatives(preset: Preset, plane: Plane, source_arcsec: Tensor) -> tuple[Tensor, Tensor]:
    """Rate (B, H, W) and its derivatives (B, 2, H, W) with respect to the source's position (B, 2).

    Central differences: five images on one plane cost a third of two forward-mode derivatives.
    """
    steps = _SOURCE_STEP_ARCSEC * source_arcsec.new_tensor([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    x, y = (p.unsqueeze(-3) for p in plane)
    images = observe(preset, x, y, source_arcsec[:, None] + steps)
    jacobian = torch.stack([images[:, 1] - images[:, 2], images[:, 3] - images[:, 4]], dim=1)
    return images[:, 0], jacobian / (2 * _SOURCE_STEP_ARCSEC)


def scored(
    preset: Preset, likelihood: PixelLikelihood, plane: Plane, parameters: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihood (B,), gradient (B, P) and information (B, P, P) in the nuisance parameters (B, P)."""
    rate, jacobian = source_derivatives(preset, plane, parameters[:, :2])
    if not likelihood.fits_exposure:
        return assemble(likelihood.terms(rate, None), jacobian, rate, False)
    tau = parameters[:, 2]
    seconds = tau.exp().to(rate.dtype)[:, None, None]
    u = rate * seconds
    return assemble(likelihood.terms(u, tau), jacobian * seconds[:, None], u, True)


def fit(preset: Preset, likelihood: PixelLikelihood, plane: Plane, start: Tensor, *, rounds: int = 6) -> Fit:
    """Fisher scoring from `start` (B, P) on planes (B, H, W); a step that loses is halved, tried again.

    Ends once no node promises more than 0.02 of log-likelihood; what is promised is added to the value.
    """
    parameters = start.clone()
    value, gradient, information = scored(preset, likelihood, plane, parameters)
    limit = parameters.new_tensor(_LARGEST_STEP[: parameters.shape[1]])
    share = parameters.new_ones(len(parameters))
    for _ in range(rounds):
        step = torch.linalg.solve(information, gradient)
        promised = 0.5 * (gradient * step).sum(1)
        todo = (promised > _SETTLED).nonzero().squeeze(1)
        if not len(todo):
            break
        move = torch.minimum(torch.maximum(step[todo], -limit), limit) * share[todo, None]
        tried = parameters[todo] + move
        part = (plane[0][todo], plane[1][todo]) if plane[0].dim() == 3 else plane
        new_value, new_gradient, new_information = scored(preset, likelihood, part, tried)
        better = new_value > value[todo]
        won, lost = todo[better], todo[~better]
        parameters[won], value[won] = tried[better], new_value[better]
        gradient[won], information[won] = new_gradient[better], new_information[better]
        share[won] = torch.clamp_max(2 * share[won], 1.0)
        share[lost] *= 0.3
    step = torch.linalg.solve(information, gradient)
    promised = (0.5 * (gradient * step).sum(1)).clamp_max(_SETTLED)
    return Fit(parameters, value + promised, information)


def log_evidence(preset: Preset, found: Fit) -> Floats:
    """(B,) log of the likelihood integrated over the nuisance parameters with their uniform priors."""
    ends = [preset.source.position_arcsec] * 2
    if found.parameters.shape[1] == 3:
        ends.append(log_exposure_ends(preset))
    covariance = torch.linalg.inv(found.information)
    deviation = torch.diagonal(covariance, dim1=1, dim2=2).sqrt().numpy()
    total = found.value + 0.5 * torch.logdet(covariance)
    result: Floats = total.numpy() + 0.5 * len(ends) * math.log(2 * math.pi)
    for place, (low, high) in enumerate(ends):
        centre = found.parameters[:, place].numpy()
        inside = _log_probability_between(
            (low - centre) / deviation[:, place], (high - centre) / deviation[:, place]
        )
        result += inside - math.log(high - low)
    return result


def log_exposure_ends(preset: Preset) -> tuple[float, float]:
    """Ends of the prior of ln(total exposure / s)."""
    low, high = preset.instrument.log10_exposure_s
    shift = math.log(preset.instrument.exposures)
    return (low * math.log(10) + shift, high * math.log(10) + shift)


def _log_probability_between(low: Floats, high: Floats) -> Floats:
    """ln(Phi(high) - Phi(low)), from whichever tail keeps the digits."""
    flip = low > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    upper, lower = log_ndtr(high), log_ndtr(low)
    result: Floats = upper + np.log1p(-np.exp(np.minimum(lower - upper, -1e-300)))
    return result
