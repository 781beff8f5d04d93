"""The source's position (and Model I's exposure) at nodes of (log10 m, angle): fitted, then integrated out.

The posterior of these nuisance parameters is narrow (a thousandth of an arcsecond, half a per cent of the
exposure), so Laplace's method, with the expected information, is exact for all purposes; a uniform prior
that ends inside it cuts the Gaussian off.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_ndtr
from torch import Tensor

from darkarc.evaluation.floor.likelihood import PixelLikelihood, PixelTerms
from darkarc.simulation import Preset, observe_with_gradient

Floats = NDArray[np.float64]
Plane = tuple[Tensor, Tensor]

LIKELY = 12.0
"""Nodes whose log-evidence is this much below the best are left out: a part of 1e-5 of the probability."""

_LARGEST_STEP = (0.05, 0.05, 0.1)  # arcsec, arcsec, ln t
_SETTLED = 0.02
_NEGLECTED = 0.05


@dataclass(frozen=True, eq=False)
class Fit:
    """Nuisance parameters (B, P) at B nodes, log-likelihood (B,) at its top, information (B, P, P)."""

    parameters: Tensor
    value: Tensor
    information: Tensor


@dataclass(frozen=True, eq=False)
class Reply:
    """What is kept of B nodes, on the CPU: log-evidence (B,), nuisance parameters (B, P)."""

    value: Floats
    parameters: Tensor


def joined(preset: Preset, parts: Sequence[Fit]) -> Reply:
    """What is kept of fits, one after the other."""
    whole = Fit(
        torch.cat([part.parameters for part in parts]).cpu(),
        torch.cat([part.value for part in parts]).cpu(),
        torch.cat([part.information for part in parts]).cpu(),
    )
    return Reply(log_evidence(preset, whole), whole.parameters)


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


def scored(
    preset: Preset,
    likelihood: PixelLikelihood,
    plane: Plane,
    parameters: Tensor,
    image: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihood (B,), gradient (B, P) and information (B, P, P) in the nuisance parameters (B, P)."""
    rate, jacobian = observe_with_gradient(preset, *plane, parameters[:, :2])
    if not likelihood.fits_exposure:
        return assemble(likelihood.terms(rate, None, image), jacobian, rate, False)
    tau = parameters[:, 2]
    seconds = tau.exp().to(rate.dtype)[:, None, None]
    u = rate * seconds
    return assemble(likelihood.terms(u, tau, image), jacobian * seconds[:, None], u, True)


def fit(
    preset: Preset,
    likelihood: PixelLikelihood,
    plane: Plane,
    start: Tensor,
    *,
    rounds: int = 6,
    bar: Tensor | None = None,
    image: Tensor | None = None,
) -> Fit:
    """Fisher scoring from `start` (B, P) on planes (B, H, W); a step that loses is halved, tried again.

    Ends once no node promises more than 0.02 of log-likelihood; what is promised is added to the value.
    bar: (B,) or a number. A node whose value with all that it promises stays below is improbable: it is
        left when it promises less than a twentieth of what it lacks.
    image: (B,) int64, which image of the likelihood each node is of.
    """
    parameters = start.clone()
    value, gradient, information = scored(preset, likelihood, plane, parameters, image)
    limit = parameters.new_tensor(_LARGEST_STEP[: parameters.shape[1]])
    share = parameters.new_ones(len(parameters))
    for _ in range(rounds):
        step = torch.linalg.solve(information, gradient)
        promised = 0.5 * (gradient * step).sum(1)
        todo = (promised > _SETTLED + _slack(value, promised, bar)).nonzero().squeeze(1)
        if not len(todo):
            break
        move = torch.minimum(torch.maximum(step[todo], -limit), limit) * share[todo, None]
        tried = parameters[todo] + move
        part = (plane[0][todo], plane[1][todo]) if plane[0].dim() == 3 else plane
        which = image if image is None else image[todo]
        new_value, new_gradient, new_information = scored(preset, likelihood, part, tried, which)
        better = new_value > value[todo]
        won, lost = todo[better], todo[~better]
        parameters[won], value[won] = tried[better], new_value[better]
        gradient[won], information[won] = new_gradient[better], new_information[better]
        share[won] = torch.clamp_max(2 * share[won], 1.0)
        share[lost] *= 0.3
    step = torch.linalg.solve(information, gradient)
    promised = 0.5 * (gradient * step).sum(1)
    most = _SETTLED + _slack(value, promised, bar)
    return Fit(parameters, value + torch.minimum(promised, torch.as_tensor(most)), information)


def _slack(value: Tensor, promised: Tensor, bar: Tensor | None) -> Tensor | float:
    """How much of a promise is not worth a step: a share of what a node lacks to the bar, (B,)."""
    return 0.0 if bar is None else _NEGLECTED * (bar - value - promised).clamp_min(0.0)


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
