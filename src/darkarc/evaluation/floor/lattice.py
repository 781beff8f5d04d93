"""The posterior of (log10 m, angle) of one image on a lattice that refines itself around what is likely.

The vortex is a chain of point masses: wherever it crosses the centre of a bright pixel, that pixel jumps. At
low masses the likelihood is therefore rugged, full of narrow local maxima, and neither a fixed grid nor a
descent finds its top. So: from the bank's coarse lattice on, the best nodes get their neighbours, spacings
are halved where too few nodes resolve the likely region, and that region is filled until its border is
improbable everywhere.

A lattice asks for nodes and is told what they are worth; who answers may do so for many lattices at once.
"""

import math
from collections.abc import Generator, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from darkarc.evaluation.floor.bank import BANK_ANGLES, BANK_MASSES
from darkarc.evaluation.floor.curve import MassCurve, quantiles
from darkarc.evaluation.floor.likelihood import PixelLikelihood
from darkarc.evaluation.floor.nuisance import LIKELY, Reply
from darkarc.simulation import Preset

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

DEPTH = 14
"""Halvings of the bank's spacing that a lattice can hold; it needs 10 at most."""
BEAM = 128
"""So many of the best nodes get their neighbours at every spacing, however unlikely they are there."""
ROWS, COLUMNS = 9, 6
"""Likely nodes that have to span the posterior along the mass and, on average, along the angle."""
CURVATURE = 0.8
"""Largest mean curvature -d² ln p of a step, (spacing / sigma)² of a Gaussian, that counts as resolved."""
STEEPEST = 4.0
"""The most that one node adds to that mean, so that a cliff is resolved by enough nodes on top of it."""
SETTLED = 0.05
"""Of the width of a 68% interval: by so much its ends and its median may differ with half of the nodes ..."""
SETTLED_DEX = 0.005
"""... and by no more than this: where a posterior is wide, nodes are few and cost little."""
LARGEST = 20_000
"""Nodes after which the lattice is refined no further."""

_AROUND = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Request:
    """Nodes (B, 2) of log10 m and angle, float64, to be evaluated from nuisance parameters `start` (B, P).

    bar: a log-likelihood below which a node is improbable.
    likelihood: the one to ask, if it is not that of the whole image.
    """

    nodes: Tensor
    start: Tensor
    bar: float
    likelihood: PixelLikelihood | None = None


class Lattice:
    """Evaluated nodes: places (N, 2) int64 in the finest spacing, log-evidence (N,), parameters (N, P).

    surveyed: the nodes of the bank. likelihood: the one to ask, if it is not that of the whole image.
    """

    def __init__(self, preset: Preset, surveyed: Reply, likelihood: PixelLikelihood | None = None) -> None:
        self.likelihood = likelihood
        self.low, high = preset.lens.log10_axion_mass_ev
        self.last = (BANK_MASSES - 1) << DEPTH
        self.round = BANK_ANGLES << DEPTH
        self.unit = ((high - self.low) / self.last, math.pi / self.round)
        self.spacing = [1 << DEPTH, 1 << DEPTH]
        rows, columns = np.divmod(np.arange(BANK_MASSES * BANK_ANGLES), BANK_ANGLES)
        self.places: Places = np.stack([rows, columns], axis=1).astype(np.int64) << DEPTH
        self.value = surveyed.value
        self.parameters = surveyed.parameters
        self._index()

    def of(self, places: Places, reply: Reply, spacing: Sequence[int]) -> "Lattice":
        """A lattice of the whole image with these nodes alone."""
        fresh = copy(self)
        fresh.likelihood, fresh.spacing = None, list(spacing)
        fresh.places, fresh.value, fresh.parameters = places, reply.value, reply.parameters
        fresh._index()
        return fresh

    def _index(self) -> None:
        keys = self._key(self.places)
        self._order = np.argsort(keys)
        self._sorted = keys[self._order]

    def _key(self, places: Places) -> Places:
        keys: Places = places[..., 0] * self.round + places[..., 1]
        return keys

    def find(self, places: Places) -> NDArray[np.intp]:
        """Positions of nodes at places (..., 2) on the ring of angles; -1 where there is none."""
        keys = self._key(places)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        found: NDArray[np.intp] = np.where(self._sorted[at] == keys, self._order[at], -1)
        return found

    def neighbours(self, members: NDArray[np.intp]) -> tuple[Places, NDArray[np.intp]]:
        """Unknown nodes (M, 2) a step of the present spacing beside the members, and whose each is.

        A neighbour of several members belongs to the first of them.
        """
        places = self.places[members][:, None] + _AROUND * np.array(self.spacing)
        owners = np.repeat(members, len(_AROUND))
        places = places.reshape(-1, 2)
        inside = (places[:, 0] >= 0) & (places[:, 0] <= self.last)
        places, owners = places[inside], owners[inside]
        places[:, 1] %= self.round
        unknown = self.find(places) < 0
        places, owners = places[unknown], owners[unknown]
        _, first = np.unique(self._key(places), return_index=True)
        first.sort()
        return places[first], owners[first]

    def ask(self, places: Places, owners: NDArray[np.intp]) -> Request:
        """For new nodes, from their owners' parameters: averaged with those across, where known."""
        across = 2 * places - self.places[owners]
        across[:, 1] %= self.round
        other = self.find(across)
        other = np.where(other < 0, owners, other)
        start = 0.5 * (self.parameters[owners] + self.parameters[other])
        return Request(self.nodes(places), start, float(self.value.max()) - LIKELY, self.likelihood)

    def nodes(self, places: Places) -> Tensor:
        """(M, 2) log10 m and angle, float64, at places."""
        return torch.from_numpy(places * np.array(self.unit) + np.array([self.low, 0.0]))

    def around(self, places: Places) -> tuple[NDArray[np.intp], Floats]:
        """Positions (M, 4) of the corners of the present cell that each place is in, -1 for an unknown one,
        and their weights (M, 4) in bilinear interpolation."""
        spacing = np.array(self.spacing)
        cell, share = np.divmod(places, spacing)
        share = share / spacing
        corners = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
        at = (cell[:, None] + corners) * spacing
        at[..., 1] %= self.round
        weight: Floats = np.where(corners == 1, share[:, None], 1 - share[:, None]).prod(axis=2)
        return self.find(at), weight

    def learn(self, places: Places, reply: Reply) -> None:
        """Take new nodes in."""
        self.places = np.concatenate([self.places, places])
        self.value = np.concatenate([self.value, reply.value])
        self.parameters = torch.cat([self.parameters, reply.parameters])
        self._index()

    def on_present(self) -> NDArray[np.bool_]:
        """(N,) is the node on the lattice of the present spacing?"""
        here: NDArray[np.bool_] = (self.places % np.array(self.spacing) == 0).all(axis=1)
        return here

    def likely(self) -> NDArray[np.intp]:
        """Positions of the likely nodes on the lattice of the present spacing."""
        return np.flatnonzero(self.on_present() & (self.value > self.value.max() - LIKELY))

    def fill(self) -> Generator[Request, Reply, None]:
        """Ask until every likely node, and every node of the beam, has all its neighbours."""
        while len(self.value) < LARGEST:
            here = np.flatnonzero(self.on_present())
            value = self.value[here]
            order = np.argsort(-value, kind="stable")
            likely = int(np.sum(value > value.max() - LIKELY))
            places, owners = self.neighbours(here[order[: max(likely, BEAM)]])
            if not len(places):
                return
            self.learn(places, (yield self.ask(places, owners)))

    def too_coarse(self) -> tuple[bool, bool]:
        """Is the likely region resolved too coarsely along the mass, along the angle?"""
        curve = mass_curve(self)
        gap = np.diff(curve.log10_mass_ev) > 1.5 * curve.spacing
        # Where the next row is absent it is improbable; beyond an end of the prior nothing is known to bend.
        left = np.concatenate([[-LIKELY], np.where(gap, -LIKELY, curve.value[:-1])])
        right = np.concatenate([np.where(gap, -LIKELY, curve.value[1:]), [-LIKELY]])
        bend = 2 * curve.value - left - right
        at_end = (curve.rows == 0) | (curve.rows == self.last)
        along_mass = _mean_curvature(curve.value, np.where(at_end, 0.0, bend))
        likely = self.likely()
        along_angle = _mean_curvature(self.value[likely], self._bend_along_angle(likely))
        _, row, count = np.unique(self.places[likely, 0], return_inverse=True, return_counts=True)
        weight = np.exp(self.value[likely] - self.value.max())
        columns = float(np.sum(weight * count[row]) / weight.sum())
        return (
            len(curve.value) < ROWS or along_mass > CURVATURE,
            columns < COLUMNS or along_angle > CURVATURE,
        )

    def unsettled(self) -> tuple[bool, bool]:
        """Do every other row, and every other node of each row, say something else than all?

        Where the likelihood is rugged, its mean curvature may pass although the sum over nodes depends on
        where they happen to lie.
        """
        found = quantiles(mass_curve(self))
        most = min(SETTLED * (found[2] - found[0]), SETTLED_DEX)
        moved = []
        for axis in (0, 1):
            half = copy(self)
            half.spacing = [spacing << (axis == along) for along, spacing in enumerate(self.spacing)]
            moved.append(bool(np.abs(quantiles(mass_curve(half)) - found).max() > most))
        return moved[0], moved[1]

    def _bend_along_angle(self, members: NDArray[np.intp]) -> Floats:
        bend = 2 * self.value[members]
        for step in (-self.spacing[1], self.spacing[1]):
            places = self.places[members] + np.array([0, step])
            places[:, 1] %= self.round
            side = self.find(places)
            bend = bend - self.value[np.where(side < 0, members, side)]
        return bend

    def refine(self) -> Generator[Request, Reply, None]:
        """Fill and halve spacings until the likely region is resolved."""
        yield from self.fill()
        while len(self.value) < LARGEST:
            coarse = self.too_coarse()
            if min(self.spacing) == 1:
                return
            if not any(coarse):
                coarse = self.unsettled()
            if not any(coarse):
                return
            self.spacing = [s // 2 if halve else s for s, halve in zip(self.spacing, coarse, strict=True)]
            yield from self.fill()


def _mean_curvature(value: Floats, bend: Floats) -> float:
    weight = np.exp(value - value.max())
    return float(np.sum(weight * np.clip(bend, 0.0, STEEPEST)) / weight.sum())


def mass_curve(lattice: Lattice) -> MassCurve:
    """The angle summed over (trapezoidal rule, periodic lattice); rows without likely nodes are absent."""
    likely = lattice.likely()
    places, value = lattice.places[likely], lattice.value[likely]
    rows, row = np.unique(places[:, 0], return_inverse=True)
    total = np.zeros(len(rows))
    np.add.at(total, row, np.exp(value - value.max()))
    unit = lattice.unit[0]
    masses: Floats = lattice.low + unit * rows.astype(np.float64)
    return MassCurve(masses, np.log(total), unit * lattice.spacing[0], rows)
