"""All sections together: what must fit between them, to and from plain dictionaries."""

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from darkarc.config._answers import EvaluateConfig, ExportConfig, RegisterConfig, ServeConfig, TrackingConfig
from darkarc.config._data import DataConfig, IngestConfig, PrepareConfig, SimulateConfig
from darkarc.config._model import ModelConfig
from darkarc.config._section import DEFAULT_TARGET, SEEDS, TARGET_CLASS, ConfigError, Section
from darkarc.config._train import OBJECTIVE_HEADS, SCHEDULABLE, TrainConfig, TuneConfig


class Config(Section):
    """All of `params.yaml`."""

    seed: int = Field(0, ge=0, lt=SEEDS)
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    data: DataConfig = DataConfig()
    simulate: SimulateConfig = SimulateConfig()
    ingest: IngestConfig = IngestConfig()
    prepare: PrepareConfig = PrepareConfig()
    targets: dict[str, tuple[float, float]] = Field(
        {DEFAULT_TARGET: (-24.0, -22.0)}, min_length=1, description="columns to regress, each on its prior"
    )
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    register_: RegisterConfig = Field(RegisterConfig(), alias="register")
    export: ExportConfig = ExportConfig()
    tracking: TrackingConfig = TrackingConfig()
    serve: ServeConfig = ServeConfig()

    @model_validator(mode="after")
    def _targets_exist(self) -> "Config":
        for name, (low, high) in self.targets.items():
            if name not in TARGET_CLASS:
                raise ValueError(f"targets.{name}: no such target; known are {', '.join(TARGET_CLASS)}")
            if not low < high:
                raise ValueError(f"targets.{name}: the prior range [{low:g}, {high:g}] is empty")
        return self

    @model_validator(mode="after")
    def _objective_fits_the_head(self) -> "Config":
        objective, head = self.train.objective, self.model.head
        heads = OBJECTIVE_HEADS[objective]
        if head not in heads:
            others = [name for name, fits in OBJECTIVE_HEADS.items() if head in fits]
            raise ValueError(
                f"train.objective: {objective} does not train model.head: {head}; set model.head to "
                f"{' or '.join(heads)}, or train.objective to {' or '.join(others)}"
            )
        if self.train.label_smoothing and objective != "nll":
            raise ValueError(
                f"train.label_smoothing is {self.train.label_smoothing:g}, but {objective} has no label to "
                "smooth: set it to 0, or train.objective to nll"
            )
        return self

    @model_validator(mode="after")
    def _weighted_targets_exist(self) -> "Config":
        for name, weight in self.train.target_weight.items():
            if name not in self.targets:
                raise ValueError(
                    f"train.target_weight.{name}: no such target here; targets has {', '.join(self.targets)}"
                )
            if not 0 <= weight < float("inf"):
                raise ValueError(f"train.target_weight.{name}: {weight:g} is no weight: set it to 0 or more")
        return self

    @model_validator(mode="after")
    def _schedule_can_be_followed(self) -> "Config":
        before = 0
        for step in self.train.schedule:
            if not before < step.epoch < self.train.epochs:
                raise ValueError(
                    f"train.schedule: epoch {step.epoch} must come after {before} and before train.epochs "
                    f"({self.train.epochs})"
                )
            for key in step.values:
                if key not in SCHEDULABLE:
                    raise ValueError(
                        f"train.schedule: {key} cannot change between epochs; {', '.join(SCHEDULABLE)} can"
                    )
            before = step.epoch
            try:
                without_schedule(self, step.epoch)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self

    def dump(self) -> dict[str, Any]:
        """The plain nested dictionary that `params.yaml` would hold."""
        return self.model_dump(mode="json", by_alias=True)

    def flat(self) -> dict[str, Any]:
        """Dotted key to value, as in `train.epochs`."""
        return flatten(self.dump())


def without_schedule(config: Config, epochs_done: int) -> Config:
    """The configuration as `train.schedule` leaves it after so many epochs, with nothing more to come."""
    tree = config.dump()
    steps = tree["train"].pop("schedule")
    for step in steps:
        if step["epoch"] <= epochs_done:
            for key, value in step["values"].items():
                section, _, leaf = key.partition(".")
                tree[section][leaf] = value
    return parse(tree, "train.schedule")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def parse(tree: Mapping[str, Any], origin: str = "parameters") -> Config:
    """Validate a nested mapping; `origin` names it in errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, origin)) from error


def _explain(error: ValidationError, origin: str) -> str:
    known = Config().flat()
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, [*known, *Config().dump()], n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else "; see docs/parameters.md for every key"
            lines.append(f"{origin}: {key}: unknown key{hint}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            found = "" if isinstance(item["input"], dict) else f", found {item['input']!r}"
            lines.append(f"{origin}: {key}: {message}{found}")
    return "\n".join(lines)
