"""The vortex fitted to an image: its length and angle and the source's position, by Levenberg and Marquardt.

Where a particle is light, its vortex reaches across the arcs and the likelihood of its mass is a peak
far narrower than any error of a network's. From a start inside of that peak's basin a few steps of Gauss
and Newton find the top, and the normal equations there tell the width: together the exact posterior, as
Laplace would approximate it. Two starts are climbed from, and their tops count by their evidence. Whether
the right one is among them, chi-square mostly tells. All of it is in operations that ONNX has.

The likelihood jumps wherever a mass of the vortex passes a ray, so rounding can lead to another top. The
geometry (`simulation.line_slopes`) and the objective's sum are therefore kept from losing digits, and between
tops of one height nothing is chosen.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from darkarc.simulation import (
    Preset,
    line_slopes,
    observe,
    observe_with_gradient,
    pixel_axis_arcsec,
    psf_matrix,
    source_plane,
    vortex_half_length_arcsec,
    vortex_point_arcsec2,
)

N_PARAMETERS = 4
"""Source x and y in arcsec, the vortex's angle in rad, log10 of the particle's mass from the prior's middle:
of the whole of it float32 would know a light particle's only to a tenth of its error."""

SCAN_STEPS = 1
"""Steps of Gauss and Newton for the source alone, from each start."""
STEPS = 12
"""Steps for all parameters together, from each start that is kept."""
KEPT = 2
"""Starts that are kept."""

_LONGEST = (0.05, 0.05, 0.15, 0.15)
_SOURCE_MARGIN_ARCSEC = 0.05
_MASS_MARGIN_DEX = 0.1
_FIRST_DAMPING, _EASED, _DAMPED = 1e-3, 0.2, 8.0
_ROUNDING = 0.01
"""So much worse a step may be: more than float32 does to the objective, a hundredth of what counts."""
_STEEPEST_ARCSEC = 1.5
"""Change of a deflection with the logarithm of the length, or with the angle in rad, from which on its slope
is taken for less. Next to a mass of the vortex the least of changes throws a ray far: the slope there holds
within those alone, and one such pixel would promise a width ten times too small and a step to nowhere."""
_LEAST = 1e-30
_AT_ONCE = 32
"""Images worked on together: on a CPU their temporaries stay in its cache, which is twice as fast."""


Carry = list[Tensor]
Step = Callable[[Carry, Tensor], tuple[Carry, Carry]]


class FittedLine(NamedTuple):
    """parameters (B, 4); sigma (B,), of log10 m, all others free; excess (B,): how far chi-square lies above
    the number of pixels, in its own standard deviations."""

    parameters: Tensor
    sigma: Tensor
    excess: Tensor


class LineFit(nn.Module):
    """Images (B, H, W) in counts a second, with noise, and starts (B, S, 4) -> `FittedLine`.

    Only for presets whose images are counts a second with the instrument's own noise: `VortexFit` sees to
    it. prior: range of log10 m.
    """

    axis: Tensor
    plane: Tensor
    longest: Tensor
    psf: Tensor

    def __init__(self, preset: Preset, distances: str, prior: tuple[float, float]) -> None:
        super().__init__()
        self.preset = preset
        self.point = vortex_point_arcsec2(preset, distances)
        self.register_buffer("axis", pixel_axis_arcsec(preset).float(), persistent=False)
        plane = torch.stack(source_plane(preset, distances=distances))
        self.register_buffer("plane", plane.float(), persistent=False)
        self.register_buffer("longest", torch.tensor(_LONGEST), persistent=False)
        self.register_buffer("psf", psf_matrix(preset.instrument, plane.shape[1]).float(), persistent=False)
        low, high = preset.source.position_arcsec
        self.source = low - _SOURCE_MARGIN_ARCSEC, high + _SOURCE_MARGIN_ARCSEC
        reach = (prior[1] - prior[0]) / 2 + _MASS_MARGIN_DEX
        self.mass = -reach, reach
        middle = torch.tensor((prior[0] + prior[1]) / 2, dtype=torch.float64)
        self.unit = float(vortex_half_length_arcsec(preset, middle))
        instrument = preset.instrument
        self.seconds = instrument.exposures * 10 ** instrument.log10_exposure_s[0]
        self.background = float(instrument.background_sigma(self.seconds)) ** 2

    def forward(self, images: Tensor, starts: Tensor) -> FittedLine:
        if torch.compiler.is_exporting() or images.is_cuda or images.shape[0] <= _AT_ONCE:
            return self._fitted(images, starts)
        parts = [
            self._fitted(*part) for part in zip(images.split(_AT_ONCE), starts.split(_AT_ONCE), strict=True)
        ]
        return FittedLine(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _fitted(self, images: Tensor, starts: Tensor) -> FittedLine:
        starts, chi_square = self._scan(images, starts)
        best = chi_square.topk(KEPT, dim=1, largest=False).indices  # (B, KEPT)
        kept = starts.gather(1, best[:, :, None].expand(-1, -1, N_PARAMETERS)).flatten(0, 1)
        data = images.repeat_interleave(KEPT, dim=0)
        parameters, normal, objective, excess = self._climb(data, kept)
        climbed = parameters, normal, objective, excess
        averaged = _averaged(*(column.double().unflatten(0, (-1, KEPT)) for column in climbed))
        return FittedLine(*(column.to(images) for column in averaged))

    def _scan(self, images: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Starts (B, S, 4) with their sources fitted, and what to compare them by, (B, S)."""

        def fit_source(state: Carry, given: Tensor) -> tuple[Carry, Carry]:
            source, angle, mass = given[:, :2], given[:, 2], given[:, 3]
            ax, ay = self._line(mass, angle)[0]
            x, y = self.plane[0] - ax, self.plane[1] - ay
            for _ in range(SCAN_STEPS):
                model, slopes = observe_with_gradient(self.preset, x, y, source, psf=self._psf())
                normal, right = self._normal(images, model, slopes)
                step = solve(normal, right, torch.zeros_like(mass))
                source = self._within_source(source + step.clamp(-_LONGEST[0], _LONGEST[0]))
            model = observe(self.preset, x, y, source, psf=self._psf())
            moved = torch.cat([source, given[:, 2:]], dim=1)
            return [x.clone() for x in state], [moved, self._objective(images, model)]

        _, (moved, objectives) = repeat(fit_source, [starts[:, 0, 0] * 0], starts.transpose(0, 1))
        return moved.transpose(0, 1), objectives.T

    def _climb(self, data: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From (N, 4): the best parameters met, their normal equations (N, 4, 4), objective, excess (N,)."""

        def step(state: Carry, _: Tensor) -> tuple[Carry, Carry]:
            at, normal, right, objective, excess, damping = state
            change = solve(normal, right, damping)
            proposed = at + torch.minimum(torch.maximum(change, -self.longest), self.longest)
            source, angle, mass = self._within_source(proposed[:, :2]), proposed[:, 2:3], proposed[:, 3:]
            proposed = torch.cat([source, angle, mass.clamp(*self.mass)], dim=1)
            found = [proposed, *self._judged(data, proposed)]
            better = found[3] < objective + _ROUNDING
            kept = [
                torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in zip(found, (at, normal, right, objective, excess), strict=True)
            ]
            return [*kept, damping * torch.where(better, _EASED, _DAMPED)], [damping.clone()]

        damping = torch.full_like(at[:, 0], _FIRST_DAMPING)
        counter = torch.zeros(STEPS, 1, device=at.device)
        state, _ = repeat(step, [at, *self._judged(data, at), damping], counter)
        at, normal, _, objective, excess, _ = state
        return at, normal, objective, excess

    def _judged(self, data: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normal equations (N, 4, 4) and (N, 4), objective and excess (N,) at parameters (N, 4)."""
        model, slopes = self._model(parameters)
        return (
            *self._normal(data, model, slopes),
            self._objective(data, model),
            self._excess(data, model),
        )

    def _within_source(self, position: Tensor) -> Tensor:
        return position.clamp(*self.source)

    def _line(self, mass: Tensor, angle: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return line_slopes(
            self.axis,
            self.axis,
            self.unit * torch.exp(-math.log(10) * mass.double()),
            angle,
            points=self.preset.lens.vortex_points,
            einstein_radius2_arcsec2=self.point,
        )

    def _model(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, H, W) and their slopes (N, 4, H, W)."""
        (ax, ay), (dx, dy) = self._line(parameters[:, 3], parameters[:, 2])
        tame = 1 / (1 + (dx * dx + dy * dy) / _STEEPEST_ARCSEC**2)
        dx, dy = dx * tame, dy * tame
        by_angle, by_mass = torch.stack([-dy, dx], dim=1), math.log(10) * torch.stack([dx, dy], dim=1)
        x, y = self.plane[0] - ax, self.plane[1] - ay
        fields = torch.stack([by_angle, by_mass])
        return observe_with_gradient(self.preset, x, y, parameters[:, :2], fields, psf=self._psf())

    def _psf(self) -> Tensor | None:
        return self.psf if torch.compiler.is_exporting() else None

    def _variance(self, model: Tensor) -> Tensor:
        return self.background + model / self.seconds

    def _normal(self, data: Tensor, model: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Gauss's normal equations (N, P, P), (N, P)."""
        weight = 1 / self._variance(model)
        weighted = (slopes * weight[:, None]).flatten(2)
        flat = slopes.flatten(2)
        return weighted @ flat.transpose(1, 2), (weighted @ (data - model).flatten(1)[:, :, None]).squeeze(2)

    def _objective(self, data: Tensor, model: Tensor) -> Tensor:
        """(N,) minus twice the log likelihood, less a constant that all models of an image share; float64."""
        variance = self._variance(model)
        difference = (data - model).square() / variance + torch.log(variance / self.background)
        return difference.double().sum(dim=(1, 2))

    def _excess(self, data: Tensor, model: Tensor) -> Tensor:
        pixels = data[0].numel()
        chi_square = ((data - model).square() / self._variance(model)).sum(dim=(1, 2))
        return (chi_square - pixels) / math.sqrt(2 * pixels)


def repeat(step: Step, state: Carry, given: Tensor) -> tuple[Carry, Carry]:
    """`step` for each row of `given`, from state to state: the last state, and what each gave, stacked.

    In an exported graph a loop that stands there once: unrolled it would have some ten thousand nodes, which
    the exporter does not finish in ten minutes. (Elsewhere torch would compile a scan first, for a minute.)
    """
    if torch.compiler.is_exporting():
        from torch._higher_order_ops.scan import scan

        last, stacked = scan(step, state, given)
        return list(last), list(stacked)
    results = []
    for row in given.unbind(0):
        state, result = step(state, row)
        results.append(result)
    return state, [torch.stack(column) for column in zip(*results, strict=True)]


def solve(normal: Tensor, right: Tensor, damping: Tensor) -> Tensor:
    """Solve (N + damping diag N) x = right for (B, P, P), (B, P), (B,), after Cholesky."""
    lower, scale = _cholesky(normal, damping)
    size = len(lower)
    half: list[Tensor] = []
    for i in range(size):
        rest = right[:, i] * scale[i]
        for k in range(i):
            rest = rest - lower[i][k] * half[k]
        half.append(rest / lower[i][i])
    found: list[Tensor] = [torch.empty(0)] * size
    for i in reversed(range(size)):
        rest = half[i]
        for k in range(i + 1, size):
            rest = rest - lower[k][i] * found[k]
        found[i] = rest / lower[i][i]
    return torch.stack([x * s for x, s in zip(found, scale, strict=True)], dim=1)


def _averaged(parameters: Tensor, normal: Tensor, objective: Tensor, excess: Tensor) -> FittedLine:
    """Of the tops (B, K, ...) that were climbed, each by its evidence: exp(-objective / 2) times the volume
    of its normal distribution, as Laplace has it.

    Starts that all end on one top give that top. Two tops of about one height, of which rounding would choose
    one, give what lies between them, and a sigma that has room for both.
    """
    weights = torch.softmax(_log_volume(normal.flatten(0, 1)).view_as(objective) - objective / 2, dim=1)
    mean = (weights[:, :, None] * parameters).sum(dim=1)
    spread = _last_sigma(normal.flatten(0, 1)).view_as(objective).square()
    spread = spread + (parameters[:, :, -1] - mean[:, None, -1]).square()
    return FittedLine(mean, (weights * spread).sum(dim=1).sqrt(), (weights * excess).sum(dim=1))


def _last_sigma(normal: Tensor) -> Tensor:
    """(B,) standard deviation of the last parameter, all others free: 1 / root of its Schur complement."""
    lower, scale = _cholesky(normal, torch.zeros_like(normal[:, 0, 0]))
    return scale[-1] / lower[-1][-1]


def _log_volume(normal: Tensor) -> Tensor:
    """(B,) half of the logarithm of the covariance's determinant."""
    lower, scale = _cholesky(normal, torch.zeros_like(normal[:, 0, 0]))
    return sum(
        (torch.log(s / row[-1]) for s, row in zip(scale, lower, strict=True)), torch.zeros(()).to(normal)
    )


def _cholesky(normal: Tensor, damping: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Factors of the matrix scaled to a unit diagonal and then damped, and what it was scaled by."""
    size = normal.shape[1]
    scale = [normal[:, i, i].clamp_min(_LEAST).rsqrt() for i in range(size)]
    lower: list[list[Tensor]] = []
    for i in range(size):
        row: list[Tensor] = []
        for j in range(i + 1):
            value = 1 + damping if i == j else normal[:, i, j] * scale[i] * scale[j]
            for k in range(j):
                value = value - row[k] * (row[k] if i == j else lower[j][k])
            row.append(value.clamp_min(1e-6).sqrt() if i == j else value / lower[j][j])
        lower.append(row)
    return lower, scale
