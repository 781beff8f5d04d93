"""Recalibration: what a regressor learns about its own widths from images it was not trained on.

`temperature` divides the logits by one number a target (Guo et al. 2017, arXiv:1706.04599); the others
begin with it. `isotonic` then maps the cumulative distribution through the distribution of the
probability integral transform (Kuleshov et al. 2018, arXiv:1807.00263). `conformal` does so for central
intervals alone, with the finite-sample correction of split conformal prediction (Vovk et al. 2005; Romano
et al. 2019, arXiv:1905.03222), so that intervals cover at least as often as they say. `local` does as
`conformal`, with a temperature and a map that vary with the posterior's mean, so that neither end of the
prior pays for the other (as Mondrian conformal prediction does with classes, Vovk et al. 2005, section
4.5; here neighbours are interpolated). Its temperature varies with the image's novelty, too: what training
saw little of is answered worse than the posterior says, and more the stranger it is. All of it is in the
exported model.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

MAPS = ("isotonic", "conformal", "local")
KNOTS = 64
TAIL = 1e-4
"""The knots lie evenly in log((u + TAIL) / (1 - u + TAIL)): dense in the tails, where 95% is decided."""
PRIOR_SHARE = 1e-6
"""Of a mapped posterior: what is mapped to nothing in float32 stays possible."""
PLACES, MANY_PLACES = 9, 17
"""Means, evenly over the prior, where `local` has a temperature of its own: with few and with many images."""
MAP_PLACES, MANY_MAP_PLACES = 5, 9
"""Means where `local` has a map of its own: fewer, for a map takes more images than a temperature."""
MANY = 4_500
"""Images, from which on a place of the finer ones has some hundreds to itself."""
NOVELTIES, MANY_NOVELTIES = (0.0, 1.0, 2.0), (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Scores (`darkarc.models.novelty`) where the temperature of `local` has a factor of its own. From the last
one on, where few calibration images tell, the width of a posterior grows as the score does."""
ROUNDS = 3
"""`local` fits the temperatures along the prior and those along the novelty in turns, so many times."""
SETTLED = 1e-6
"""Relative change of an inverse temperature after which Newton's method stops; it converges quadratically."""
SHRINKAGE = 4.0
"""`local`: so many images' worth of belief at each place that its temperature is the common one."""
LEAST_WEIGHT = 20.0
"""With the weight of fewer images a map is mixed with the identity."""
FLOOR = 1e-3
"""Least slope of a map: no density becomes zero because the calibration split was small."""


class Recalibration(nn.Module):
    """Logits (B, K) of one target -> recalibrated bin probabilities (B, K); the identity until fitted.

    novelty: (B,) the images' scores, of which `local` makes use; without them all are ordinary alike.
    """

    temperature: Tensor
    coldness: Tensor
    by_novelty: Tensor
    levels: Tensor
    knots: Tensor

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method
        self.register_buffer("temperature", torch.ones(()))
        if method == "local":
            self.register_buffer("coldness", torch.ones(PLACES))  # 1 / temperature at each place
            # Scores, and by what factor a posterior of such an image is colder.
            self.register_buffer("by_novelty", _all_alike())
        maps = _knots().float()
        self.register_buffer("levels", maps.repeat(MAP_PLACES, 1) if method == "local" else maps)
        self.register_buffer("knots", _knots().float(), persistent=False)

    def forward(self, logits: Tensor, novelty: Tensor | None = None) -> Tensor:
        probability = self.tempered(logits, novelty).softmax(dim=1)
        if self.method not in MAPS:
            return probability
        if self.method == "local":
            return self._mapped(
                probability, _place_weights(logits, len(self.levels)) @ self.levels.to(logits.dtype)
            )
        return self._mapped(probability, self.levels[None])

    def tempered(self, logits: Tensor, novelty: Tensor | None = None) -> Tensor:
        """Logits (B, K) over the temperature, without the map."""
        if self.method != "local":
            return logits / self.temperature
        weights = _place_weights(logits, len(self.coldness))
        coldness = weights @ self.coldness.to(logits.dtype)
        if novelty is not None:
            scores, factors = self.by_novelty.to(logits.dtype).unbind()
            coldness = coldness * (_novelty_weights(novelty.to(logits.dtype), scores) @ factors)
        return logits * coldness[:, None]

    def _mapped(self, probability: Tensor, levels: Tensor) -> Tensor:
        """Through the map (1 or B, KNOTS + 1) of the cumulative distribution."""
        cumulative = probability.cumsum(dim=1)
        u = (cumulative / cumulative[:, -1:]).clamp(0, 1)
        reach = math.log((1 + TAIL) / TAIL)
        place = (torch.log((u + TAIL) / (1 - u + TAIL)) / reach + 1) * (KNOTS / 2)
        k = place.to(torch.int64).clamp(0, KNOTS - 1)  # in this order a nan stays in its own image
        share = (u - self.knots[k]) / (self.knots[k + 1] - self.knots[k])
        levels = levels.expand(k.shape[0], -1)
        low, high = levels.gather(1, k), levels.gather(1, k + 1)
        mapped = low + (high - low) * share
        share = nn.functional.pad(mapped, (1, 0)).diff(dim=1).clamp_min(0)
        # (1 - p) share + p / K over p / K: ONNX's optimiser takes a factor of 1 - 1e-6 for 1 and a term of
        # 1e-9 for 0, and drops both.
        ratio = (1 - PRIOR_SHARE) / PRIOR_SHARE * probability.shape[1]
        return (ratio * share + 1) / (ratio + probability.shape[1])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """`local` has as many places as the one that was fitted; any other shape is refused as ever."""
        if self.method == "local":
            # Of a regressor that was made before novelty had a say.
            state_dict.setdefault(prefix + "by_novelty", _all_alike())
        for name, along in (("coldness", 0), ("by_novelty", 1), ("levels", 0)):
            given, own = state_dict.get(prefix + name), getattr(self, name, None)
            if self.method != "local" or given is None or own is None or given.ndim != own.ndim:
                continue
            if all(n == m for d, (n, m) in enumerate(zip(given.shape, own.shape, strict=True)) if d != along):
                setattr(self, name, torch.empty(given.shape, dtype=own.dtype, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def fit(self, logits: Tensor, place: Tensor, novelty: Tensor | None = None) -> None:
        """Learn from N images: logits (N, K) and where each truth lies, (N,) in bins from the lower edge.

        novelty: (N,) their scores.
        """
        if self.method == "none":
            return
        logits, place = logits.double(), place.double().clamp(0, logits.shape[1])
        bins = place.to(torch.int64).clamp(max=logits.shape[1] - 1)[:, None]
        temperature = _best_temperature(logits, bins)
        self.temperature.fill_(temperature)
        if self.method == "local":
            many = len(logits) >= MANY
            n_places, n_maps = (MANY_PLACES, MANY_MAP_PLACES) if many else (PLACES, MAP_PLACES)
            self._fit_coldness(logits, bins, novelty, 1 / temperature, n_places)
            self.levels = self.knots.repeat(n_maps, 1)
        probability = self.tempered(logits, novelty).softmax(dim=1)
        above = probability.gather(1, bins) * (1 - (place[:, None] - bins))
        pit = (probability.cumsum(dim=1).gather(1, bins) - above).squeeze(1).clamp(0, 1)
        if self.method == "isotonic":
            self.levels.copy_(_pit_map(pit))
        elif self.method == "conformal":
            self.levels.copy_(_conformal_map(pit, torch.ones_like(pit)))
        elif self.method == "local":
            for row, weights in enumerate(_place_weights(logits, len(self.levels)).T):
                self.levels[row] = _conformal_map(pit, weights)

    def _fit_coldness(
        self, logits: Tensor, bins: Tensor, novelty: Tensor | None, common: float, n_places: int
    ) -> None:
        """The inverse temperature at each place and, with novelties (N,), its factor at each score."""
        along = _place_weights(logits, n_places)
        self.by_novelty = _all_alike().to(self.by_novelty)
        coldness = _best_coldness(logits, bins, along, common, common * torch.ones(n_places).to(logits))
        if novelty is not None:
            scores = torch.tensor(MANY_NOVELTIES if len(logits) >= MANY else NOVELTIES).to(logits)
            factors = torch.ones_like(scores)
            strange = _novelty_weights(novelty.to(logits), scores)
            for _ in range(ROUNDS):
                tempered = logits * (along @ coldness)[:, None]
                factors = _falling_coldness(tempered, bins, strange, factors)
                tempered = logits * (strange @ factors)[:, None]
                coldness = _best_coldness(tempered, bins, along, common, coldness)
            self.by_novelty = torch.stack([scores, factors]).to(self.by_novelty)
        self.coldness = coldness.to(self.coldness)


def _all_alike() -> Tensor:
    """(2, P): no novelty changes anything, for the last score is never passed."""
    return torch.tensor([[0.0, 1.0, torch.finfo(torch.float32).max], [1.0, 1.0, 1.0]])


def _knots() -> Tensor:
    """(KNOTS + 1,) float64 from 0 to 1, symmetric."""
    reach = math.log((1 + TAIL) / TAIL)
    odds = torch.exp(torch.linspace(-reach, reach, KNOTS + 1, dtype=torch.float64))
    knots = (odds * (1 + TAIL) - TAIL) / (1 + odds)
    return ((knots + 1 - knots.flip(0)) / 2).clamp(0, 1)


def _best_temperature(logits: Tensor, bins: Tensor) -> float:
    """The temperature of least negative log-likelihood; it is a convex problem in 1 / temperature."""
    low, high = (torch.tensor(value, dtype=torch.float64, device=logits.device) for value in (0.1, 10.0))
    for _ in range(60):
        inverse = torch.sqrt(low * high)
        scaled = logits * inverse
        own = logits.gather(1, bins).squeeze(1)
        slope = ((scaled.softmax(dim=1) * logits).sum(dim=1) - own).mean()
        low, high = (low, inverse) if slope > 0 else (inverse, high)
    return float(1 / torch.sqrt(low * high))


def _place_weights(logits: Tensor, places: int) -> Tensor:
    """(B, K) -> (B, places), the shares of a linear interpolation at the mean of softmax(logits)."""
    bins = logits.shape[1]
    centres = (torch.arange(bins, device=logits.device, dtype=logits.dtype) + 0.5) / bins
    mean = (logits.softmax(dim=1) * centres).sum(dim=1, keepdim=True) * (places - 1)
    nodes = torch.arange(places, device=logits.device, dtype=logits.dtype)
    return (1 - (mean - nodes).abs()).clamp_min(0)


def _novelty_weights(novelty: Tensor, scores: Tensor) -> Tensor:
    """(B,) -> (B, P), the shares of a linear interpolation between scores (P,).

    From the last score s on that one's share falls as (s / novelty)^2: logits that are those of a normal
    distribution then widen as the novelty grows.
    """
    last = scores[-1]
    novelty = novelty.clamp(max=torch.finfo(torch.float32).max)
    passed = ((novelty[:, None] - scores[:-1]) / (scores[1:] - scores[:-1])).clamp(0, 1)  # (B, P - 1)
    shares = nn.functional.pad(passed, (1, 0), value=1.0) - nn.functional.pad(passed, (0, 1))
    return shares * (last / torch.maximum(novelty, last)).square()[:, None]


def _best_coldness(logits: Tensor, bins: Tensor, weights: Tensor, common: float, coldness: Tensor) -> Tensor:
    """(P,) inverse temperatures of least negative log-likelihood, drawn towards the common one.

    weights (N, P): the share of each in an image's; coldness (P,): where to begin. The likelihood is convex
    in them; Newton's method, with steps that keep them within a factor of two.
    """
    places = weights.shape[1]
    own = logits.gather(1, bins).squeeze(1)
    for _ in range(40):
        share = (logits * (weights @ coldness)[:, None]).softmax(dim=1)
        mean = (share * logits).sum(dim=1)
        variance = (share * logits.square()).sum(dim=1) - mean.square()
        # Scale-free: belief counts as so many images whose log-odds have the average variance.
        belief = (SHRINKAGE * variance.mean()).clamp_min(torch.finfo(variance.dtype).tiny)
        slope = weights.T @ (mean - own) + belief * (coldness - common)
        curvature = (weights * variance[:, None]).T @ weights + belief * torch.eye(places).to(logits)
        step = torch.linalg.solve(curvature, slope)
        moved = torch.clamp(coldness - step, coldness / 2, coldness * 2)
        settled = bool(((moved - coldness).abs() <= SETTLED * coldness).all())
        coldness = moved
        if settled:
            break
    return coldness


def _falling_coldness(logits: Tensor, bins: Tensor, weights: Tensor, coldness: Tensor) -> Tensor:
    """As `_best_coldness`, drawn towards 1, with none above the one before it.

    What is stranger is never answered more surely: the last of them know a few images each. Neighbours in
    the wrong order are fitted as one, as isotonic regression pools them (Barlow et al. 1972).
    """
    pools = [[p] for p in range(weights.shape[1])]
    while True:
        shares = torch.stack([weights[:, pool].sum(dim=1) for pool in pools], dim=1)
        start = torch.stack([coldness[pool].mean() for pool in pools])
        found = _best_coldness(logits, bins, shares, 1.0, start)
        rises = (found[1:] > found[:-1]).nonzero()
        if not len(rises):
            return torch.cat([value.repeat(len(pool)) for value, pool in zip(found, pools, strict=True)])
        k = int(rises[0])
        pools[k : k + 2] = [pools[k] + pools[k + 1]]


def _pit_map(pit: Tensor) -> Tensor:
    """(KNOTS + 1,) share of truths whose PIT is at most each level: monotone, from 0 to 1."""
    levels = _knots().to(pit)
    share = (pit[None, :] <= levels[:, None]).double().mean(dim=1)
    share[0], share[-1] = 0.0, 1.0
    return (1 - FLOOR) * share + FLOOR * levels


def _conformal_map(pit: Tensor, weights: Tensor) -> Tensor:
    """(KNOTS + 1,) symmetric map: the central interval that held c of the truths becomes the one called c.

    `weights` (N,) say how much each image counts; where few do, the map stays near the identity.
    """
    levels = _knots().to(pit)
    half_widths = (2 * levels - 1).abs()
    score = (2 * pit - 1).abs()
    total = weights.sum()
    held = (score[None, :] <= half_widths[:, None]).double() @ weights / (total + 1)
    # Wider than the widest interval that a truth was outside of, the posterior's own tail is all there is to
    # go by: the one more image that may lie outside would put 1 / (n + 1) at the prior's far ends.
    never_outside = held * (total + 1) > total - 0.5
    held = torch.where(never_outside, torch.maximum(held, half_widths), held)
    trust = (total / LEAST_WEIGHT).clamp(max=1)
    held = held * trust + half_widths * (1 - trust)
    held[0] = held[-1] = 1.0
    coverage = (1 - FLOOR) * held + FLOOR * half_widths
    return 0.5 + 0.5 * torch.sign(2 * levels - 1) * coverage
