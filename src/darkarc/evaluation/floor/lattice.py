"""The posterior of (log10 m, angle) of one image on a lattice that refines itself around what is likely.

The vortex is a chain of point masses: wherever it crosses the centre of a bright pixel, that pixel jumps. At
low masses the likelihood is therefore rugged, full of narrow local maxima, and neither a fixed grid nor a
descent finds its top. So: from the bank's coarse lattice on, the best nodes get their neighbours, spacings
are halved where too few nodes resolve the likely region, and that region is filled until its border is
improbable everywhere.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from darkarc.evaluation.floor.bank import BANK_ANGLES, BANK_MASSES, Bank, blocks, planes
from darkarc.evaluation.floor.likelihood import PixelLikelihood
from darkarc.evaluation.floor.nuisance import Fit, fit, log_evidence

Floats = NDArray[np.float64]

DEPTH = 14
"""Halvings of the bank's spacing that a lattice can hold; it needs 10 at most."""
LIKELY = 12.0
"""Nodes whose log-evidence is this much below the best are left out: a part of 1e-5 of the probability."""
BEAM = 128
"""So many of the best nodes get their neighbours at every spacing, however unlikely they are there."""
ROWS, COLUMNS = 9, 6
"""Likely nodes that have to span the posterior along the mass and, on average, along the angle."""
CURVATURE = 0.8
"""Largest mean curvature -d² ln p of a step, (spacing / sigma)² of a Gaussian, that counts as resolved."""
STEEPEST = 4.0
"""The most that one node adds to that mean, so that a cliff is resolved by enough nodes on top of it."""
LARGEST = 20_000
"""Nodes after which the lattice is refined no further."""


class Lattice:
    """Evaluated nodes: places (N, 2) int64 in the finest spacing, log-evidence (N,), parameters (N, P)."""

    def __init__(self, bank: Bank, likelihood: PixelLikelihood, surveyed: Fit) -> None:
        self.bank, self.likelihood = bank, likelihood
        self.low, high = bank.preset.lens.log10_axion_mass_ev
        self.last = (BANK_MASSES - 1) << DEPTH
        self.round = BANK_ANGLES << DEPTH
        self.unit = ((high - self.low) / self.last, math.pi / self.round)
        self.spacing = [1 << DEPTH, 1 << DEPTH]
        rows, columns = np.divmod(np.arange(BANK_MASSES * BANK_ANGLES), BANK_ANGLES)
        self.places = np.stack([rows, columns], axis=1).astype(np.int64) << DEPTH
        self.value = log_evidence(bank.preset, surveyed)
        self.parameters = surveyed.parameters
        self.known = {self._key(i, j): n for n, (i, j) in enumerate(self.places.tolist())}

    def _key(self, i: int, j: int) -> int:
        return i * self.round + j

    def neighbours(self, members: Iterable[int]) -> tuple[list[tuple[int, int]], list[int]]:
        """Unknown nodes a step of the present spacing beside the members, and whose neighbour each is."""
        step_i, step_j = self.spacing
        found: dict[int, tuple[int, int]] = {}
        parents = []
        for member in members:
            i, j = self.places[member].tolist()
            for di in (-step_i, 0, step_i):
                if not 0 <= i + di <= self.last:
                    continue
                for dj in (-step_j, 0, step_j):
                    place = (i + di, (j + dj) % self.round)
                    key = self._key(*place)
                    if key not in self.known and key not in found:
                        found[key] = place
                        parents.append(member)
        return list(found.values()), parents

    def evaluate(self, places: list[tuple[int, int]], parents: list[int]) -> None:
        """Fit the nuisance parameters at new nodes, starting from those of their neighbours."""
        grid = torch.tensor(places, dtype=torch.float64)
        nodes = grid * torch.tensor(self.unit, dtype=torch.float64)
        nodes[:, 0] += self.low
        start = self.parameters[parents]
        preset = self.bank.preset
        values, parameters = [], []
        for rows in blocks(preset, len(nodes), share=5):
            plane = planes(preset, self.bank.distances, nodes[rows])
            found = fit(preset, self.likelihood, plane, start[rows])
            values.append(log_evidence(preset, found))
            parameters.append(found.parameters)
        for n, place in enumerate(places, start=len(self.value)):
            self.known[self._key(*place)] = n
        self.places = np.concatenate([self.places, np.array(places, dtype=np.int64)])
        self.value = np.concatenate([self.value, *values])
        self.parameters = torch.cat([self.parameters, *parameters])

    def on_present(self) -> NDArray[np.bool_]:
        """(N,) is the node on the lattice of the present spacing?"""
        here: NDArray[np.bool_] = (self.places % np.array(self.spacing) == 0).all(axis=1)
        return here

    def fill(self) -> None:
        """Evaluate until every likely node, and every node of the beam, has all its neighbours."""
        while len(self.value) < LARGEST:
            here = np.flatnonzero(self.on_present())
            value = self.value[here]
            order = np.argsort(-value, kind="stable")
            likely = int(np.sum(value > value.max() - LIKELY))
            places, parents = self.neighbours(here[order[: max(likely, BEAM)]].tolist())
            if not places:
                return
            self.evaluate(places, parents)

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
        likely = np.flatnonzero(self.on_present() & (self.value > self.value.max() - LIKELY))
        along_angle = _mean_curvature(self.value[likely], self._bend_along_angle(likely))
        _, row, count = np.unique(self.places[likely, 0], return_inverse=True, return_counts=True)
        weight = np.exp(self.value[likely] - self.value.max())
        columns = float(np.sum(weight * count[row]) / weight.sum())
        return (
            len(curve.value) < ROWS or along_mass > CURVATURE,
            columns < COLUMNS or along_angle > CURVATURE,
        )

    def _bend_along_angle(self, members: NDArray[np.intp]) -> Floats:
        step = self.spacing[1]
        bend = np.empty(len(members))
        for n, member in enumerate(members):
            i, j = self.places[member].tolist()
            sides = [self.known.get(self._key(i, (j + d) % self.round), member) for d in (-step, step)]
            bend[n] = 2 * self.value[member] - self.value[sides].sum()
        return bend

    def refine(self) -> None:
        """Fill and halve spacings until the likely region is resolved."""
        self.fill()
        while len(self.value) < LARGEST:
            coarse = self.too_coarse()
            if not any(coarse) or min(self.spacing) == 1:
                return
            self.spacing = [s // 2 if halve else s for s, halve in zip(self.spacing, coarse, strict=True)]
            self.fill()


def _mean_curvature(value: Floats, bend: Floats) -> float:
    weight = np.exp(value - value.max())
    return float(np.sum(weight * np.clip(bend, 0.0, STEEPEST)) / weight.sum())


@dataclass(frozen=True, eq=False)
class MassCurve:
    """Log-evidence (R,), up to a constant, of lattice rows: log10 masses (R,), rising, their spacing."""

    log10_mass_ev: Floats
    value: Floats
    spacing: float
    rows: NDArray[np.int64]


def mass_curve(lattice: Lattice) -> MassCurve:
    """The angle summed over (trapezoidal rule, periodic lattice); rows without likely nodes are absent."""
    likely = lattice.on_present() & (lattice.value > lattice.value.max() - LIKELY)
    places, value = lattice.places[likely], lattice.value[likely]
    rows, row = np.unique(places[:, 0], return_inverse=True)
    total = np.zeros(len(rows))
    np.add.at(total, row, np.exp(value - value.max()))
    unit = lattice.unit[0]
    return MassCurve(lattice.low + unit * rows, np.log(total), unit * lattice.spacing[0], rows)
