"""`Regressor`: raw images in, densities and class probabilities out, all preprocessing inside."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from darkarc.config import CLASSES, DEFAULT_TARGET, TARGET_CLASS, ModelConfig
from darkarc.models.backbones import BACKBONES, BackboneError
from darkarc.models.heads import HEADS, Grid, Head
from darkarc.models.lens_residual import LENSES
from darkarc.models.novelty import Novelty
from darkarc.models.population_errors import KEY
from darkarc.models.posterior import Posterior
from darkarc.models.preprocessing import Standardise
from darkarc.models.recalibration import Recalibration
from darkarc.models.sealed import read_sealed, write_sealed
from darkarc.models.vortex_fit import VortexFit, VortexFitError

SCHEMA_VERSION = 1
FACT_FEATURES = 64
"""Features that the facts of a fitted lens become, beside the backbone's."""
QUANTILE_LEVELS = (0.05, 0.16, 0.84, 0.95)
"""Levels of `Prediction.quantiles`, those of the prediction table."""

MODEL_BEFORE = {"novelty": "none", "lens_residual": "none", "lens_fit": "source", "vortex_fit": False}
"""What a model has that was made before these keys of the section `model` were there."""

WEIGHTS_FILE = "regressor.safetensors"
SPEC_FILE = "regressor.json"


class RegressorError(ValueError):
    """A regressor that cannot be built or loaded, or images that it cannot take."""


class Prediction(NamedTuple):
    """What `Regressor.forward` gives for B images, T targets, K bins.

    density (B, T, K) per unit of the target; median (B, T); quantiles (B, T, 4) at
    `QUANTILE_LEVELS`; class_probability (B, 3) in the order of `CLASSES`. novelty (B,): how unlike the
    training images, see `darkarc.models.novelty`; None if `model.novelty` is none. std_between (B, T): the
    members' disagreement, a part of the density's standard deviation; None if there is but one.
    """

    density: Tensor
    median: Tensor
    quantiles: Tensor
    class_probability: Tensor
    novelty: Tensor | None = None
    std_between: Tensor | None = None

    def cpu(self) -> "Prediction":
        return Prediction(
            self.density.cpu(),
            self.median.cpu(),
            self.quantiles.cpu(),
            self.class_probability.cpu(),
            None if self.novelty is None else self.novelty.cpu(),
            None if self.std_between is None else self.std_between.cpu(),
        )


@dataclass(frozen=True)
class RegressorSpec:
    """All that is needed to rebuild a regressor around its weights.

    targets: name -> prior range; shape: (H, W) in pixels; model: the `model` section as a plain dict;
    statistics: content of the prepared store's `statistics.json` (train split, stored pixel units);
    form: preset, noise and distances of the images, None where they are not known;
    members: how many regressors answer as one, see `darkarc.models.ensemble`.
    """

    targets: dict[str, tuple[float, float]]
    shape: tuple[int, int]
    model: dict[str, Any]
    statistics: dict[str, Any]
    instrument: str
    form: dict[str, str] | None = None
    classes: tuple[str, ...] = CLASSES
    schema_version: int = SCHEMA_VERSION
    members: int = 1

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise RegressorError(
                f"this regressor has schema version {self.schema_version}, this darkarc reads "
                f"{SCHEMA_VERSION}: use the version of darkarc that wrote it"
            )
        if tuple(self.classes) != CLASSES:
            raise RegressorError(f"expected the classes {CLASSES}, found {self.classes}")
        unknown = [name for name in self.targets if name not in TARGET_CLASS]
        if unknown or not self.targets:
            raise RegressorError(
                f"expected targets among {', '.join(TARGET_CLASS)}, found {list(self.targets)}"
            )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "RegressorSpec":
        """Raises `RegressorError` if the text is no specification."""
        try:
            tree: Mapping[str, Any] = json.loads(text)
            return cls(
                targets={name: (float(low), float(high)) for name, (low, high) in tree["targets"].items()},
                shape=(int(tree["shape"][0]), int(tree["shape"][1])),
                model=MODEL_BEFORE | dict(tree["model"]),
                statistics=dict(tree["statistics"]),
                instrument=str(tree["instrument"]),
                form=None if tree.get("form") is None else {k: str(v) for k, v in tree["form"].items()},
                classes=tuple(tree["classes"]),
                schema_version=int(tree["schema_version"]),
                members=int(tree.get("members", 1)),
            )
        except RegressorError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise RegressorError(f"not a regressor's specification: {error!r}") from error


class Regressor(nn.Module):
    """Raw images (B, 1, H, W) of the training instrument, any real dtype -> `Prediction`."""

    levels: Tensor

    def __init__(self, spec: RegressorSpec) -> None:
        super().__init__()
        model = ModelConfig.model_validate(spec.model)
        if model.backbone not in BACKBONES:
            raise RegressorError(
                f"model.backbone: expected one of {', '.join(BACKBONES)}, found {model.backbone!r}"
            )
        self.standardise = Standardise(model, spec.statistics, spec.shape, spec.form)
        try:
            self.backbone = BACKBONES[model.backbone](model, self.standardise.seen, self.standardise.channels)
        except BackboneError as error:
            raise RegressorError(str(error)) from error
        self.dropout = nn.Dropout(model.dropout)
        n_features = self.backbone.n_features
        self.facts_layer: nn.Module | None = None
        if self.standardise.n_facts:
            n_facts, n_features = self.standardise.n_facts, n_features + FACT_FEATURES
            hidden = nn.Linear(n_facts, FACT_FEATURES), nn.SiLU(), nn.Linear(FACT_FEATURES, FACT_FEATURES)
            self.facts_layer = nn.Sequential(*hidden, nn.SiLU())
        self._prepare(spec, HEADS[model.head](model), n_features)
        self.target_layer = nn.Linear(self.n_features, len(spec.targets) * self.n_outputs)
        self.class_layer = nn.Linear(self.n_features, len(spec.classes))
        for layer in (self.target_layer, self.class_layer):
            # Untrained, the answer is the prior.
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def _prepare(self, spec: RegressorSpec, head: Head, n_features: int) -> None:
        """What stands between the heads' numbers and the answer."""
        model = ModelConfig.model_validate(spec.model)
        self.spec, self.head, self.n_features = spec, head, n_features
        self.n_outputs = head.n_outputs
        self.grids = nn.ModuleList(Grid(low, high, model.bins) for low, high in spec.targets.values())
        self.recalibrations = nn.ModuleList(Recalibration(model.recalibration) for _ in spec.targets)
        self.vortex_fit = self._vortex_fit(spec, model) if model.vortex_fit else None
        self.novelty: Novelty | None = None
        if model.novelty != "none":
            fitted = model.novelty == "full" and spec.form is not None and bool(LENSES[model.lens_residual])
            pixel_std = float(spec.statistics["std"])
            self.novelty = Novelty(n_features, spec.shape, pixel_std, fitted_lens=fitted)
        levels = torch.tensor([0.5, *QUANTILE_LEVELS])
        self.register_buffer("levels", levels, persistent=False)
        self.auxiliary_layer: nn.Linear | None = None

    def _vortex_fit(self, spec: RegressorSpec, model: ModelConfig) -> VortexFit:
        if DEFAULT_TARGET not in spec.targets:
            raise RegressorError(
                f"model.vortex_fit: it tells {DEFAULT_TARGET}, which is not among the targets "
                f"({', '.join(spec.targets)}): set it to false"
            )
        try:
            grid = cast(Grid, self.grids[list(spec.targets).index(DEFAULT_TARGET)])
            return VortexFit(self.n_features, spec.form, spec.shape, grid)
        except VortexFitError as error:
            raise RegressorError(str(error)) from error

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.spec.targets)

    @property
    def shape(self) -> tuple[int, int]:
        return self.spec.shape

    def edges(self, target: str | None = None) -> NDArray[np.float64]:
        """(K+1,) bin edges of a target's grid (default: the first target)."""
        grid = cast(Grid, self.grids[self._target_index(target)])
        return grid.edges.cpu().numpy()

    def attach_auxiliary(self, n_auxiliary: int) -> None:
        """For a training: a linear layer from the features to auxiliary numbers, 0 until trained.

        It is no part of the answers: `save_regressor` leaves it out, `drop_auxiliary` takes it away.
        """
        layer = nn.Linear(self.n_features, n_auxiliary)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        self.auxiliary_layer = layer

    def drop_auxiliary(self) -> None:
        """As before `attach_auxiliary`."""
        self.auxiliary_layer = None

    def head_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) -> the heads' numbers (B, T, n_outputs) and class logits (B, 3), for the losses."""
        return self.answers(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, F), what all heads see."""
        return self.seen(images)[0]

    def seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) -> the features and the channels (B, C, H', W') that they are made of."""
        channels, facts = self.standardise.look(images)
        features = self.backbone(channels).float()
        if self.facts_layer is not None and facts is not None:
            with torch.autocast(images.device.type, enabled=False):
                features = torch.cat([features, self.facts_layer(facts)], dim=1)
        return cast(Tensor, self.dropout(features)), channels

    def answers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F) -> as `head_outputs`."""
        # Outside of autocast: a density needs more than the two digits of bfloat16.
        with torch.autocast(features.device.type, enabled=False):
            outputs = self.target_layer(features).unflatten(1, (len(self.grids), self.n_outputs))
            return outputs, self.class_layer(features)

    def forward(self, images: Tensor) -> Prediction:
        features, channels = self.seen(images)
        outputs, class_logits = self.answers(features)
        logits = self.with_vortex(self.network_logits(outputs), images, features)
        return self.conclude(logits, class_logits, self.novelty_of(images, features, channels))

    def of_ordinary(self, images: Tensor) -> Prediction:
        """As `forward`, of images (B, 1, H, W) taken for ordinary: without novelty and what it widens."""
        features = self.features(images)
        outputs, class_logits = self.answers(features)
        return self.conclude(self.with_vortex(self.network_logits(outputs), images, features), class_logits)

    def network_logits(self, outputs: Tensor) -> list[Tensor]:
        """The heads' numbers (B, T, n_outputs) -> logits (B, K) of each target."""
        return [self.head.logits(outputs[:, t], cast(Grid, grid)) for t, grid in enumerate(self.grids)]

    def with_vortex(self, logits: list[Tensor], images: Tensor, features: Tensor) -> list[Tensor]:
        """Each target's logits, the fitted vortex's in the axion mass's if there is a `model.vortex_fit`."""
        if self.vortex_fit is None:
            return logits
        t = self.targets.index(DEFAULT_TARGET)
        return [*logits[:t], self.vortex_fit(images, features, logits[t]), *logits[t + 1 :]]

    def novelty_of(self, images: Tensor, features: Tensor, channels: Tensor) -> Tensor | None:
        """(B,) of images and what `seen` gave of them; None if the regressor gives none."""
        return None if self.novelty is None else self.novelty(images, features, channels)

    def summarise(self, outputs: Tensor, class_logits: Tensor) -> Prediction:
        """What `head_outputs` gave -> `Prediction`, without a fitted vortex and without novelty."""
        return self.conclude(self.network_logits(outputs), class_logits)

    def conclude(
        self, logits: list[Tensor], class_logits: Tensor, novelty: Tensor | None = None
    ) -> Prediction:
        """Logits (B, K) of each target, the classes' and the novelty -> `Prediction`, recalibrated."""
        densities, quantiles = [], []
        for t, grid in enumerate(self.grids):
            assert isinstance(grid, Grid)
            probability = self.recalibrations[t](logits[t], novelty)  # (B, K)
            densities.append(probability / grid.width)
            quantiles.append(self._quantiles(probability, grid))
        all_quantiles = torch.stack(quantiles, dim=1)  # (B, T, 5)
        return Prediction(
            density=torch.stack(densities, dim=1),
            median=all_quantiles[:, :, 0],
            quantiles=all_quantiles[:, :, 1:],
            class_probability=class_logits.softmax(dim=1),
            novelty=novelty,
        )

    def _quantiles(self, probability: Tensor, grid: Grid) -> Tensor:
        """(B, K) -> (B, 5) at `levels`: `Posterior.quantile` in operations that ONNX has."""
        cumulative = probability.cumsum(dim=1)
        cumulative = cumulative / cumulative[:, -1:]
        below = cumulative[:, None, :] < self.levels[None, :, None]  # (B, 5, K)
        k = below.to(torch.int64).sum(dim=2).clamp(max=grid.bins - 1)  # (B, 5)
        high = cumulative.gather(1, k)
        step = (cumulative - nn.functional.pad(cumulative[:, :-1], (1, 0))).gather(1, k)
        share = 1 - (high - self.levels) / step.clamp_min(torch.finfo(torch.float32).tiny)
        return grid.low + grid.width * (k + share.clamp(0, 1))

    def _target_index(self, target: str | None) -> int:
        if target is None:
            return 0
        if target not in self.spec.targets:
            raise RegressorError(f"this regressor knows {', '.join(self.targets)}, not {target!r}")
        return self.targets.index(target)

    @torch.inference_mode()
    def predict(
        self, images: NDArray[Any] | Tensor, *, target: str | None = None, batch_size: int = 256
    ) -> Posterior:
        """Posterior of one target (default: the first) for images (N, H, W), (N, 1, H, W) or (H, W).

        Raises `RegressorError` for images of another shape.
        """
        index = self._target_index(target)
        batch = as_image_batch(images, self.shape)
        device = next(self.parameters()).device
        training = self.training
        self.eval()
        try:
            parts = [self(chunk.to(device)).cpu() for chunk in batch.split(batch_size)]
        finally:
            self.train(training)
        population = self.spec.statistics.get(KEY)
        return to_posterior(parts, index, self.edges(target), self.targets[index], population)


def to_posterior(
    parts: Sequence[Prediction],
    index: int,
    edges: NDArray[np.float64],
    target: str,
    population: Mapping[str, Any] | None = None,
) -> Posterior:
    """The `Posterior` of one target, number `index` of the regressor's, from the answers to its batches."""
    joined = [
        None if parts[0][k] is None else torch.cat([cast(Tensor, part[k]) for part in parts]).double().numpy()
        for k in range(len(Prediction._fields))
    ]
    found = dict(zip(Prediction._fields, joined, strict=True))
    assert found["density"] is not None and found["class_probability"] is not None
    between = found["std_between"]
    return Posterior(
        edges,
        found["density"][:, index],
        found["class_probability"],
        target,
        novelty=found["novelty"],
        std_between=None if between is None else between[:, index],
        population=population,
    )


def as_image_batch(images: NDArray[Any] | Tensor, shape: tuple[int, int]) -> Tensor:
    """Images (N, H, W), (N, 1, H, W) or (H, W) of any real dtype -> (N, 1, H, W).

    Raises `RegressorError` unless they have the (H, W) that the regressor was trained on.
    """
    if not isinstance(images, Tensor):
        array = np.asarray(images)
        if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
            raise RegressorError(f"expected images of real numbers, found dtype {array.dtype}")
        if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8) or not array.dtype.isnative:
            array = array.astype(np.float32 if array.dtype.itemsize <= 2 else np.float64)
        images = torch.from_numpy(np.array(array) if not array.flags.writeable else array)
    if images.ndim == 2:
        images = images[None]
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] != 1 or tuple(images.shape[2:]) != shape:
        height, width = shape
        raise RegressorError(
            f"this regressor takes images of {height} x {width} pixels, as (N, {height}, {width}), "
            f"(N, 1, {height}, {width}) or ({height}, {width}); found {tuple(images.shape)}"
        )
    return images


def save_regressor(regressor: Regressor, folder: str | Path) -> Path:
    """Write the weights, the specification and a manifest with SHA-256 into `folder`, atomically."""
    from safetensors.torch import save

    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in regressor.state_dict().items()
        if not name.startswith("auxiliary_layer.")
    }
    spec = regressor.spec.to_json() + "\n"
    return write_sealed(folder, {WEIGHTS_FILE: save(state), SPEC_FILE: spec.encode()})


def build_regressor(spec: RegressorSpec) -> Regressor:
    """An untrained regressor, or an ensemble of them, as the specification says."""
    if spec.members == 1:
        return Regressor(spec)
    from darkarc.models.ensemble import Ensemble

    return Ensemble(spec)


def load_regressor(folder: str | Path, device: str | torch.device = "cpu") -> Regressor:
    """Read what `save_regressor` wrote, check it, and give the regressor in evaluation mode.

    Raises `RegressorError` that names the file and what is wrong with it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        files = read_sealed(folder)
        regressor = build_regressor(RegressorSpec.from_json(files[SPEC_FILE]))
        regressor.load_state_dict(load(files[WEIGHTS_FILE]))
    except KeyError as error:
        raise RegressorError(f"{folder}: not a regressor's folder: its manifest lists no {error}") from error
    except (SafetensorError, RuntimeError) as error:
        raise RegressorError(f"{folder}: the weights do not fit the specification: {error}") from error
    except ValueError as error:
        raise RegressorError(f"{folder}: cannot load a regressor: {error}") from error
    return regressor.to(device).eval()
