"""Deep ensembles: several trainings of one recipe that answer as one regressor.

The density is the mean of the members' densities, the class probability the mean of theirs
(Lakshminarayanan et al. 2017, arXiv:1612.01474); recalibration acts on the mixture. Its variance is the mean
variance of the members plus the variance of their means: what the images leave open, and what the
trainings disagree about.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from darkarc.config import ModelConfig
from darkarc.models.heads import BinnedHead, Grid
from darkarc.models.regressor import Prediction, Regressor, RegressorError, RegressorSpec

LEAST = 1e-30
"""Least probability of which a logarithm is taken; float32 has it."""


class Ensemble(Regressor):
    """`spec.members` regressors as one; untrained until its members are."""

    def __init__(self, spec: RegressorSpec) -> None:
        nn.Module.__init__(self)
        if spec.members < 2:
            raise RegressorError(f"an ensemble has at least 2 members, found {spec.members}")
        single = member_spec(spec)
        self.members = nn.ModuleList(Regressor(single) for _ in range(spec.members))
        first = cast(Regressor, self.members[0])
        # The mixture's logits are the logarithms of its bins' probabilities, whatever the members' head.
        mixture = ModelConfig.model_validate(spec.model | {"free_bins": 0})
        self._prepare(spec, BinnedHead(mixture), spec.members * first.n_features)

    @classmethod
    def of(cls, regressors: Sequence[Regressor]) -> "Ensemble":
        """The ensemble of trained regressors of one specification, on the device of the first.

        Their own recalibration and novelty are left behind. Raises `RegressorError` if they differ.
        """
        spec = regressors[0].spec
        for other in regressors[1:]:
            if member_spec(other.spec) != member_spec(spec):
                raise RegressorError(
                    "the members of an ensemble share targets, shape, instrument, statistics and the "
                    f"section model; found {other.spec.model} beside {spec.model}"
                )
        made = cls(replace(spec, members=len(regressors)))
        for member, trained in zip(made.members, regressors, strict=True):
            state, own = trained.state_dict(), member.state_dict()
            # A recalibration's shape differs with its method; the members keep their identity.
            kept = {n: own[n] if n.startswith("recalibrations.") else state[n] for n in own}
            member.load_state_dict(kept)
        return made.to(next(regressors[0].parameters()).device).eval()

    def seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) -> (B, M F), the members' features side by side; and the channels they share."""
        parts = [cast(Regressor, member).seen(images) for member in self.members]
        return torch.cat([features for features, _ in parts], dim=1), parts[0][1]

    def answers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M F) -> logarithms of the mixture's bin probabilities (B, T, K) and of its classes' (B, 3)."""
        probability, classes = self._of_members(features)
        return _logarithm(probability.mean(dim=0)), _logarithm(classes.mean(dim=0))

    def forward(self, images: Tensor) -> Prediction:
        features, channels = self.seen(images)
        probability, classes = self._of_members(features)
        logits = self.network_logits(_logarithm(probability.mean(dim=0)))
        logits = self.with_vortex(logits, images, features)
        novelty = self.novelty_of(images, features, channels)
        prediction = self.conclude(logits, _logarithm(classes.mean(dim=0)), novelty)
        return prediction._replace(std_between=self._between(probability, prediction.density))

    def _of_members(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M F) -> the members' bin probabilities (M, B, T, K) and class probabilities (M, B, 3)."""
        probabilities, classes = [], []
        for member, own in zip(self.members, features.chunk(len(self.members), dim=1), strict=True):
            member = cast(Regressor, member)
            outputs, class_logits = member.answers(own)
            bins = [member.head.logits(outputs[:, t], cast(Grid, g)) for t, g in enumerate(member.grids)]
            probabilities.append(torch.stack(bins, dim=1).softmax(dim=2))
            classes.append(class_logits.softmax(dim=1))
        return torch.stack(probabilities), torch.stack(classes)

    def _between(self, probability: Tensor, density: Tensor) -> Tensor:
        """(B, T) the members' share in the answer's standard deviation.

        Recalibration changes the variance as a whole; the share of it that lies between the means stays.
        """
        columns = []
        for t, item in enumerate(self.grids):
            grid = cast(Grid, item)
            mean = probability[:, :, t] @ grid.offsets  # (M, B), from the middle of the prior
            square = probability[:, :, t] @ (grid.offsets.square() + grid.width**2 / 12)
            between = (mean - mean.mean(dim=0)).square().mean(dim=0)
            within = (square - mean.square()).clamp_min(0).mean(dim=0)
            share = between / (between + within).clamp_min(LEAST)
            answer = density[:, t] * grid.width  # (B, K)
            middle = answer @ grid.offsets
            variance = answer @ (grid.offsets.square() + grid.width**2 / 12) - middle.square()
            columns.append((share * variance.clamp_min(0)).sqrt())
        return torch.stack(columns, dim=1)


def member_spec(spec: RegressorSpec) -> RegressorSpec:
    """Of one member: what belongs to the mixture is left out."""
    model = spec.model | {"recalibration": "none", "novelty": "none", "vortex_fit": False}
    return replace(spec, members=1, model=model)


def _logarithm(probability: Tensor) -> Tensor:
    return probability.clamp_min(LEAST).log()
