"""A second search of (log10 m, angle) where the first one leaves a pixel unexplained.

Where the line of the vortex passes the centre of a pixel within about a thousandth of an arcsecond, the ray
of that pixel is thrown far away, and where to depends on where between two of the point masses it passes.
The likelihood is then a comb of basins 0.001 dex and 0.001 rad wide, tens of thousands of nats deep; the
lattice may find some of them and miss the best.

All other pixels are smooth there. So: the pixels around the unexplained one are left out, the lattice of the
rest says where to look, the few pixels themselves, which cost little, are computed all over that region, on
meshes ever finer, and the nodes that fit best start a lattice of the whole image.
"""

import math
from collections.abc import Generator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from darkarc.evaluation.floor.bank import Bank, blocks, planes, survey
from darkarc.evaluation.floor.lattice import Floats, Lattice, Places, Request
from darkarc.evaluation.floor.likelihood import PartialLikelihood, PixelLikelihood, windowed
from darkarc.evaluation.floor.nuisance import LIKELY, Reply
from darkarc.simulation import observe, pixel_axis_arcsec, source_plane, vortex_half_length_arcsec
from darkarc.simulation.source import convolve, pixel_flux

OUTLIER = 4.5
"""Standard deviations that leave a pixel unexplained: one of 4,096 is beyond by chance in 2.8% of images."""
REACH = 3
"""Pixels on each side of the unexplained one, and of the one opposite, that are left out."""
BAND = 1.0
"""Spacings of the point masses within which a pixel's ray feels each of them."""
STEP = 0.06
"""First mesh there, in spacings of the point masses as they move past the pixel."""
SLACK = (8000.0, 2000.0, 500.0, 125.0, 40.0, LIKELY + 4)
"""Log-likelihood below the best of a mesh that lets a node stay; the next mesh is twice as fine."""
MOST = 5_000
"""Nodes of a mesh that may stay."""
SEEDS = 4_000
"""Nodes of the last mesh that start a lattice."""
SAME = 1.0
"""Tops of two lattices of one mode differ by less, in log-evidence: their nodes stand elsewhere on it."""

_CHILDREN = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)], dtype=np.int64)


def search(bank: Bank, likelihood: PixelLikelihood, guess: Tensor) -> Generator[Request, Reply, Lattice]:
    """Survey and refine; search again around an unexplained pixel; return the refined lattice.

    guess: (P,) nuisance parameters of the image without a vortex.
    """
    lattice = Lattice(bank.preset, survey(bank, likelihood, guess))
    yield from lattice.refine()
    outlier = unexplained(bank, likelihood, lattice)
    if outlier is None:
        return lattice
    window = tuple(_around(n, size) for n, size in zip(outlier, bank.preset.instrument.shape, strict=True))
    kept = torch.ones(bank.preset.instrument.shape, dtype=torch.bool)
    kept[window[0][:, None], window[1]] = False
    others = PartialLikelihood(likelihood, kept.to(bank.device))
    rest = Lattice(bank.preset, survey(bank, others, guess), others)
    yield from rest.refine()
    found = Crossing(bank, likelihood, *window).seeds(rest)
    if found is None:
        return lattice
    places, spacing, start = found
    bar = float(lattice.value.max()) - LIKELY
    second = lattice.of(places, (yield Request(lattice.nodes(places), start, bar)), spacing)
    yield from second.refine()
    return (yield from _both(lattice, second))


def unexplained(bank: Bank, likelihood: PixelLikelihood, lattice: Lattice) -> tuple[int, int] | None:
    """Row and column of the pixel that the best node explains worst, if it is an outlier."""
    score = residual(bank, likelihood, lattice).abs()
    worst = int(score.argmax())
    return divmod(worst, score.shape[1]) if float(score.flatten()[worst]) > OUTLIER else None


def residual(bank: Bank, likelihood: PixelLikelihood, lattice: Lattice) -> Tensor:
    """(H, W): what the best node leaves of the image, in standard deviations of each pixel."""
    best = int(lattice.value.argmax())
    parameters = lattice.parameters[best : best + 1].to(bank.device)
    node = lattice.nodes(lattice.places[best : best + 1]).to(bank.device)
    u = observe(bank.preset, *planes(bank.preset, bank.distances, node), parameters[:, :2])
    return _standardised(likelihood, u, parameters)[0]


def _standardised(likelihood: PixelLikelihood, rate: Tensor, parameters: Tensor) -> Tensor:
    """Scores of pixels (B, H, W), each over its standard deviation: residuals of any noise form."""
    u, tau = _exposed(likelihood, rate, parameters)
    terms = likelihood.terms(u, tau)
    return terms.by_u / terms.info_uu.sqrt()


def _exposed(likelihood: PixelLikelihood, rate: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor | None]:
    if not likelihood.fits_exposure:
        return rate, None
    tau = parameters[:, 2]
    return rate * tau.exp().to(rate.dtype)[:, None, None], tau


def _around(n: int, size: int) -> Tensor:
    """Rows (or columns) within reach of the n-th and of the opposite one: the vortex throws both alike."""
    index = torch.arange(size)
    return index[((index - n).abs() <= REACH) | ((index - (size - 1 - n)).abs() <= REACH)]


class Crossing:
    """The pixels in rows (R,) and columns (C,), int64, of an image, computed without the others."""

    def __init__(self, bank: Bank, likelihood: PixelLikelihood, rows: Tensor, columns: Tensor) -> None:
        self.bank = bank
        self.likelihood = windowed(likelihood, rows.to(bank.device), columns.to(bank.device))
        axis = pixel_axis_arcsec(bank.preset)
        y, x = np.meshgrid(axis[rows].numpy(), axis[columns].numpy(), indexing="ij")
        upper = (y > 0) | ((y == 0) & (x >= 0))  # a line through a pixel passes the opposite one as well
        self.radius_arcsec = np.hypot(x, y)[upper]
        self.azimuth_rad = np.arctan2(y, x)[upper]
        self.rays, self.blur = zip(*(_blur(bank, part) for part in (rows, columns)), strict=True)

    def seeds(self, rest: Lattice) -> tuple[Places, list[int], Tensor] | None:
        """Places (M, 2) where the pixels and the lattice of the others agree best, the finest spacing among
        them and nuisance parameters (M, P) there; None where no likely line comes near one of the pixels."""
        mesh = self._first_mesh(rest)
        if not self._too_coarse(rest, mesh, 0.0).any():
            return None
        for number, slack in enumerate(SLACK):
            if number:
                mesh = _split(rest, mesh, self._too_coarse(rest, mesh, STEP / 2**number))
            mesh, value, start = self._value(rest, mesh)
            order = np.argsort(-value, kind="stable")[: MOST if number < len(SLACK) - 1 else SEEDS]
            order = order[value[order] > value.max() - slack]
            mesh = mesh[order]
        places, once = np.unique(mesh[:, :2], axis=0, return_index=True)
        return places, mesh[:, 2:].min(axis=0).tolist(), start[torch.from_numpy(order[once])]

    def _first_mesh(self, rest: Lattice) -> Places:
        """Places and steps (M, 4) over the likely region of the others, fine where a line crosses a pixel."""
        corners = rest.places[rest.likely()]
        mesh = np.concatenate([corners, np.broadcast_to(np.array(rest.spacing), corners.shape)], axis=1)
        done = []
        while len(mesh):
            coarse = self._too_coarse(rest, mesh, STEP)
            todo = coarse.any(axis=1)
            done.append(mesh[~todo])
            mesh = _split(rest, mesh[todo], coarse[todo])
        return np.concatenate(done)

    def _too_coarse(self, rest: Lattice, mesh: Places, most: float) -> NDArray[np.bool_]:
        """(M, 2) do point masses move by more than `most` of their spacing past a pixel within a step?"""
        lens, nodes = self.bank.preset.lens, rest.nodes(mesh[:, :2])
        half = vortex_half_length_arcsec(self.bank.preset, nodes[:, 0]).numpy()
        masses = self.radius_arcsec * ((lens.vortex_points - 1) / 2 / half)[:, None]
        turned = nodes[:, 1].numpy()[:, None] - self.azimuth_rad
        moves = masses[..., None] * mesh[:, None, 2:] * (math.log(10.0) * rest.unit[0], rest.unit[1])
        beside = np.abs(masses * np.sin(turned)) < BAND + 0.5 * moves[..., 1]
        within = masses < 0.5 * lens.vortex_points + BAND + 0.5 * moves[..., 0]
        coarse = (beside & within)[..., None] & (moves > most) & (mesh[:, None, 2:] > 1)
        found: NDArray[np.bool_] = coarse.any(axis=1)
        return found

    def _value(self, rest: Lattice, mesh: Places) -> tuple[Places, Floats, Tensor]:
        """The part of a mesh where the lattice of the others is known, the log-evidence there (M,) and
        nuisance parameters (M, P)."""
        corners, weight = rest.around(mesh[:, :2])
        known = ((corners >= 0) | (weight == 0)).all(axis=1)
        mesh, corners, weight = mesh[known], corners[known], weight[known]
        value: Floats = (rest.value[corners] * weight).sum(axis=1)
        start = (rest.parameters[torch.from_numpy(corners)] * torch.from_numpy(weight)[..., None]).sum(1)
        nodes, device = rest.nodes(mesh[:, :2]), self.bank.device
        for part in _slices(self.bank, len(mesh), len(self.rays[0]) * len(self.rays[1])):
            own = self._pixels(nodes[part].to(device), start[part].to(device))
            value[part] += own.cpu().numpy()
        return mesh, value, start

    def _pixels(self, nodes: Tensor, parameters: Tensor) -> Tensor:
        """(B,) log-likelihood of the pixels at nodes (B, 2) with nuisance parameters (B, P)."""
        preset = self.bank.preset
        x, y = source_plane(
            preset,
            log10_mass_ev=nodes[:, 0],
            angle_rad=nodes[:, 1],
            distances=self.bank.distances,
            dtype=torch.float32,
            device=nodes.device,
            window=(self.rays[0], self.rays[1]),
        )
        flux = pixel_flux(preset, x, y, parameters[:, :2].to(x.dtype))
        rate = self.blur[0] @ flux @ self.blur[1].T
        terms = self.likelihood.terms(*_exposed(self.likelihood, rate, parameters))
        return terms.value.flatten(1).sum(1, dtype=torch.float64)


def _blur(bank: Bank, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that shine into the wanted ones through the PSF, (S,), and how much, (wanted, S) float32."""
    size = bank.preset.instrument.pixels
    single = torch.eye(size)[:, :, None].expand(-1, -1, size)
    matrix = convolve(bank.preset.instrument, single)[:, :, 0].T[wanted]
    rays = (matrix > 0).any(0).nonzero().squeeze(1)
    return rays.to(bank.device), matrix[:, rays].to(bank.device)


def _slices(bank: Bank, number: int, rays: int) -> Generator[slice]:
    """Slices of nodes whose few rays fill a block as whole images do."""
    height, width = bank.preset.instrument.shape
    share = max(1, height * width // rays)
    for part in blocks(bank.preset, -(-number // share), bank.device):
        yield slice(part.start * share, min(part.stop * share, number))


def _split(rest: Lattice, mesh: Places, along: NDArray[np.bool_]) -> Places:
    """Places and steps (M, 4), steps halved along those axes of (N, 2), each once and within the prior."""
    step = np.where(along, np.maximum(mesh[:, 2:] // 2, 1), mesh[:, 2:])
    places = mesh[:, None, :2] + np.where(along, step, 0)[:, None] * _CHILDREN
    finer = np.concatenate([places, np.broadcast_to(step[:, None], places.shape)], axis=2).reshape(-1, 4)
    finer = finer[(finer[:, 0] >= 0) & (finer[:, 0] <= rest.last)]
    finer[:, 1] %= rest.round
    return np.unique(finer, axis=0)


def _both(first: Lattice, second: Lattice) -> Generator[Request, Reply, Lattice]:
    """The lattice of both where both are likely and the second one has more to tell; else the better one."""
    difference = float(second.value.max() - first.value.max())
    if difference > LIKELY:
        return second
    likely = second.places[second.value > max(second.value.max(), first.value.max()) - LIKELY]
    corners, _ = first.around(likely)
    covered = np.isin(corners, first.likely()).any(axis=1)
    if covered.all() and difference < SAME:
        return first
    spacing = [min(pair) for pair in zip(first.spacing, second.spacing, strict=True)]
    own = first.likely()
    places = np.concatenate([second.places, first.places[own]])
    _, once = np.unique(places, axis=0, return_index=True)
    reply = Reply(
        np.concatenate([second.value, first.value[own]])[once],
        torch.cat([second.parameters, first.parameters[own]])[torch.from_numpy(once)],
    )
    union = first.of(places[once], reply, spacing)
    yield from union.refine()
    return union
