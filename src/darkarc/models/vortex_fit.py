"""The posterior of a fitted vortex beside the network's own, each with the weight that it has earned.

A network's error for a light particle is ten times the width of the exact posterior. But its answer is near
enough for a fit (`models.line_fit`) to start from: the mass is the posterior's median and some places to its
sides, the source's position and the vortex's angle are read linearly from the network's features. The
answer is a mixture,

    p(m) = w_1 Normal(m; m_fit, s sigma_fit) + w_2 Normal(m; m_fit, h s sigma_fit) + w_3 p_network(m),

with the weights, s and h > 1 from a few numbers about fit and network, through a small network of its own
that the calibration split teaches (so heavy particles, whose posteriors are no Gaussians, stay with the
network; and so do lenses whose fit ended in a wrong maximum, as chi-square mostly tells). The wider normal is
for fits that are a few sigma off, which the network's, twenty times wider, would have to stand for else.

It is taught by two proper scores together, the logarithmic one and that of Dawid and Sebastiani (1999,
Annals of Statistics 27, 65): the first sees the peak, where nearly all the probability is, the second mean
and variance, which a few in a hundred lenses far from the peak decide. By the first alone a posterior's
standard deviation came out a fifth too large.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from darkarc.data.auxiliary import AUXILIARY, SOURCE_SCALE_ARCSEC
from darkarc.models.heads import Grid
from darkarc.models.line_fit import LineFit
from darkarc.simulation import NOISES, PRESETS, get_preset

MASS_STARTS = (-0.8, -0.4, 0.0, 0.4, 0.8)
"""In standard deviations of the network's posterior, from its median."""
ANGLE_STARTS_DEG = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
"""From the angle that the features tell."""

_PER_UNIT = 1024
"""Starts are rounded to this part of an arcsec, a rad and a dex. The likelihood jumps wherever a mass of the
vortex passes a ray, so that two runtimes whose starts differ by rounding may climb to different tops."""

N_FACTS = 5
"""Of a fit: log10 m, the natural logarithm of its sigma, chi-square's excess, and the network's median and
the logarithm of its standard deviation. Masses are counted from the prior's middle."""

_N_INPUTS, _HIDDEN, _N_OUTPUTS = 6, 16, 5
_RIDGE = 1e-6
"""Of the linear reading, in units of the features' mean square."""
_STEPS, _LEARNING_RATE, _DECAY = 1000, 0.02, 0.1
_TRIES = 3
"""Beginnings of the gate's training, of which the best is kept: some end in a poor optimum."""
_MOMENTS = 0.5
"""Weight of Dawid's and Sebastiani's score beside the logarithmic one, in nats."""
_FIRST_WEIGHTS = (0.0, -1.0, 1.0)
"""Logarithms, up to a constant, of the weights of fit, halo and network before any training."""
_FIRST_HALO = 1.5
"""Logarithm of how much wider than the fit the halo is before any training."""
_LEAST = 1e-30
_HUGE = 1e6


class VortexFitError(ValueError):
    """A vortex that cannot be fitted to such images; the message says what to change."""


class _Gate(NamedTuple):
    """weights (B, 3) of fit, halo and network, of sum 1; scale (B,), a factor on the fit's sigma; halo (B,),
    how much wider than the fit the halo is, at least 1."""

    weights: Tensor
    scale: Tensor
    halo: Tensor


class _Lenses(NamedTuple):
    """What the gate learns from: facts (N, N_FACTS); truth (N,), from the prior's middle; edges (N, 2) of its
    bin; and of the network the bin's probability, mean and variance (N,)."""

    facts: Tensor
    truth: Tensor
    edges: Tensor
    own: Tensor
    mean: Tensor
    variance: Tensor


class _Taught(NamedTuple):
    first: Tensor
    second: Tensor
    loss: float
    gain: float


class VortexFit(nn.Module):
    """Images (B, 1, H, W), features (B, F) and the network's logits (B, K) -> logits of the mixture (B, K).

    Until `fit` the network's own. Raises `VortexFitError` unless the images are of a known preset and noise
    form in which a vortex can be fitted.
    """

    reading: Tensor
    centre: Tensor
    spread: Tensor
    first: Tensor
    second: Tensor
    fitted: Tensor
    starts: Tensor
    offsets: Tensor
    edges: Tensor
    first_weights: Tensor

    def __init__(
        self, n_features: int, form: Mapping[str, str] | None, shape: tuple[int, int], grid: Grid
    ) -> None:
        super().__init__()
        known = form is not None and form["preset"] in PRESETS and form["noise"] in NOISES
        preset = get_preset(form["preset"]) if known and form is not None else None
        if preset is None or form is None or preset.instrument.shape != tuple(shape):
            raise VortexFitError(
                "model.vortex_fit: expected images of a known preset, noise form and shape "
                f"({', '.join(PRESETS)}), found {form}: set it to false"
            )
        if preset.counts or form["noise"] != "physical":
            raise VortexFitError(
                "model.vortex_fit: only images in counts a second with noise: physical have the noise that "
                f"the fit weighs by (model_ii, model_iii), found {form['preset']}, {form['noise']}: set it "
                "to false"
            )
        self.line = LineFit(preset, form["distances"], (grid.low, grid.high))
        self.width, self.half_span = grid.width, grid.span / 2
        # Buffers, for no step of a training moves them.
        self.register_buffer("reading", torch.zeros(len(AUXILIARY), n_features + 1))
        self.register_buffer("centre", torch.zeros(_N_INPUTS))
        self.register_buffer("spread", torch.ones(_N_INPUTS))
        self.register_buffer("first", torch.zeros(_HIDDEN, _N_INPUTS + 1))
        self.register_buffer("second", torch.zeros(_N_OUTPUTS, _HIDDEN + 1))
        self.register_buffer("fitted", torch.zeros(()))
        self.register_buffer("offsets", grid.offsets, persistent=False)
        edges = torch.arange(grid.bins + 1, dtype=torch.float64) * grid.width - grid.span / 2
        self.register_buffer("edges", edges.float(), persistent=False)  # from the middle of the prior
        starts = torch.cartesian_prod(
            torch.tensor(ANGLE_STARTS_DEG) * math.pi / 180, torch.tensor(MASS_STARTS)
        )
        self.register_buffer("starts", starts, persistent=False)  # (S, 2)
        self.register_buffer("first_weights", torch.tensor(_FIRST_WEIGHTS), persistent=False)

    def forward(self, images: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.mixed(logits, self.measure(images, features, logits))

    def measure(self, images: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """The fit and where it started from: (B, N_FACTS) finite numbers."""
        median, sigma = self._of_network(logits)
        read = features @ self.reading[:, :-1].T + self.reading[:, -1]
        source, twice = read[:, :2] * SOURCE_SCALE_ARCSEC, read[:, 2:]
        angle = torch.atan2(twice[:, 1], twice[:, 0]) / 2
        n_starts = len(self.starts)
        starts = torch.cat(
            [
                source.clamp(*self.line.source)[:, None].expand(-1, n_starts, -1),
                (angle[:, None] + self.starts[:, 0])[:, :, None],
                (median[:, None] + sigma[:, None] * self.starts[:, 1]).clamp(-self.half_span, self.half_span)[
                    :, :, None
                ],
            ],
            dim=2,
        )
        starts = torch.round(starts * _PER_UNIT) / _PER_UNIT
        found = self.line(images.float().flatten(0, 1) + 0.0, starts)
        facts = [
            found.parameters[:, 3].clamp(-self.half_span, self.half_span),
            found.sigma.clamp(1 / _HUGE, 10.0).log(),
            found.excess.clamp(-_HUGE, _HUGE),
            median,
            sigma.log(),
        ]
        return torch.stack(facts, dim=1)

    def mixed(self, logits: Tensor, facts: Tensor) -> Tensor:
        """The network's logits (B, K) and `measure`'s facts -> logits of the mixture (B, K)."""
        gate = self._gate(facts, self.first, self.second)
        own = logits.softmax(dim=1)
        line = self._normal(facts, gate.scale), self._normal(facts, gate.scale * gate.halo)
        weights = gate.weights[:, :, None]
        fit = weights[:, 0] * line[0] + weights[:, 1] * line[1]
        mixture = torch.where(torch.isfinite(fit).all(dim=1, keepdim=True), fit + weights[:, 2] * own, own)
        # The logarithm would lose the depths of a network that stands alone.
        return torch.where(self.fitted > 0, mixture.clamp_min(_LEAST).log(), logits)

    def _of_network(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Median, from the prior's middle, and standard deviation (B,) of the network's posterior."""
        probability = logits.softmax(dim=1)
        cumulative = probability.cumsum(dim=1)
        k = (cumulative < 0.5).sum(dim=1, keepdim=True).clamp(max=logits.shape[1] - 1)
        own = probability.gather(1, k).clamp_min(_LEAST)
        share = (1 - (cumulative.gather(1, k) - 0.5) / own).clamp(0, 1)
        median = (self.width * (k + share) - self.half_span).squeeze(1)
        return median, self._moments(probability)[1].sqrt()

    def _moments(self, probability: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, from the prior's middle, and variance (B,) of bin probabilities (B, K)."""
        mean = probability @ self.offsets
        square = probability @ self.offsets.square()
        return mean, (square - mean.square()).clamp_min(0) + self.width**2 / 12

    def _gate(self, facts: Tensor, first: Tensor, second: Tensor) -> _Gate:
        x = (self._inputs(facts) - self.centre) / self.spread
        hidden = torch.tanh(x @ first[:, :-1].T + first[:, -1])
        told = hidden @ second[:, :-1].T + second[:, -1]
        weights = torch.softmax(told[:, :3] + self.first_weights, dim=1)
        halo = _FIRST_HALO + told[:, 4].clamp(-_FIRST_HALO, 3.0)
        return _Gate(weights, torch.exp(told[:, 3].clamp(-2.0, 3.0)), torch.exp(halo))

    @staticmethod
    def _inputs(facts: Tensor) -> Tensor:
        mass, log_sigma, excess, median, log_own = facts.unbind(1)
        away = torch.asinh((mass - median) * torch.exp(-log_own))
        columns = [log_sigma, log_own, away.abs(), torch.asinh(excess), mass, log_sigma - log_own]
        return torch.stack(columns, dim=1)

    def _normal(self, facts: Tensor, scale: Tensor) -> Tensor:
        """(B, K) bin probabilities of the fit's normal distribution, cut to the prior."""
        sigma = (facts[:, 1].exp() * scale)[:, None]
        z = (self.edges - facts[:, :1]) / (sigma * math.sqrt(2))
        cumulative = torch.erf(z)
        total = (cumulative[:, -1:] - cumulative[:, :1]).clamp_min(_LEAST)
        return (cumulative[:, 1:] - cumulative[:, :-1]) / total

    @torch.no_grad()
    def fit_reading(self, features: Tensor, auxiliary: Tensor) -> None:
        """Learn to read `AUXILIARY` (N, 4) from features (N, F): least squares with a ridge."""
        ones = torch.ones_like(features[:, :1])
        design, truth = torch.cat([features, ones], dim=1).double(), auxiliary.double()
        normal = design.T @ design
        ridge = _RIDGE * normal.diagonal().mean() * torch.eye(len(normal)).to(normal)
        ridge[-1, -1] = 0
        self.reading.copy_(torch.linalg.solve(normal + ridge, design.T @ truth).T)

    def fit_weight(self, logits: Tensor, facts: Tensor, place: Tensor) -> float:
        """Learn the mixture from N lenses: logits (N, K), facts, and where each truth lies, (N,) in bins.

        Returns by how many nats it betters a lens's log-likelihood on average.
        """
        inputs = self._inputs(facts)
        self.centre.copy_(inputs.mean(dim=0))
        self.spread.copy_(inputs.std(dim=0).clamp_min(1e-3))
        lenses = self._lenses(logits, facts, place)
        tries = [self._taught(lenses, seed) for seed in range(_TRIES)]
        best = min(tries, key=lambda one: one.loss)
        self.first.copy_(best.first)
        self.second.copy_(best.second)
        self.fitted.fill_(1.0)
        return best.gain

    @torch.no_grad()
    def _lenses(self, logits: Tensor, facts: Tensor, place: Tensor) -> _Lenses:
        bins = place.to(torch.int64).clamp(0, logits.shape[1] - 1)[:, None]
        own = logits.double().softmax(dim=1)
        mean, variance = self._moments(own.to(self.offsets))
        truth = (place * self.width - self.half_span).to(mean)
        at_truth = own.gather(1, bins).squeeze(1).clamp_min(_LEAST)
        return _Lenses(facts, truth, self.edges[torch.cat([bins, bins + 1], dim=1)], at_truth, mean, variance)

    def _taught(self, lenses: _Lenses, seed: int) -> _Taught:
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(self.first.shape, generator=generator).to(self.first) / math.sqrt(_N_INPUTS)
        second = torch.zeros_like(self.second)
        weights = [first.requires_grad_(), second.requires_grad_()]
        optimiser = torch.optim.AdamW(weights, lr=_LEARNING_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
        with torch.enable_grad():
            for _ in range(_STEPS):
                gate = self._gate(lenses.facts, first, second)
                gain = self._gain(lenses, gate).mean()
                loss = _MOMENTS * self._dawid_sebastiani(lenses, gate).mean() - gain
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        return _Taught(first.detach(), second.detach(), float(loss.detach()), float(gain.detach()))

    def _gain(self, lenses: _Lenses, gate: _Gate) -> Tensor:
        """(N,) logarithm of the mixture's probability at the truth, less that of the network's."""
        ends = self.edges[:: len(self.edges) - 1]

        def line(scale: Tensor) -> Tensor:
            sigma = (lenses.facts[:, 1].exp() * scale)[:, None] * math.sqrt(2)
            inside, whole = (
                torch.erf((edges - lenses.facts[:, :1]) / sigma).diff(dim=1) for edges in (lenses.edges, ends)
            )
            return (inside / whole.clamp_min(_LEAST)).squeeze(1) / lenses.own

        weights = gate.weights
        fit = weights[:, 0] * line(gate.scale) + weights[:, 1] * line(gate.scale * gate.halo)
        return torch.log(fit + weights[:, 2])

    def _dawid_sebastiani(self, lenses: _Lenses, gate: _Gate) -> Tensor:
        """(N,) half of log variance + (truth - mean)^2 / variance, of the mixture as if no prior cut it."""
        mass, sigma = lenses.facts[:, 0], lenses.facts[:, 1].exp() * gate.scale
        to_fit, to_halo, to_network = gate.weights.unbind(1)
        apart = lenses.mean - mass
        mean = mass + to_network * apart
        # A bin takes the normal's probability within it and spreads it evenly: twice a bin's own variance.
        spread = (to_fit + to_halo * gate.halo.square()) * sigma.square()
        binned = (to_fit + to_halo) * self.width**2 / 6
        among = to_network * (lenses.variance + (1 - to_network) * apart.square())
        variance = spread + binned + among
        return 0.5 * (variance.log() + (lenses.truth - mean).square() / variance)
