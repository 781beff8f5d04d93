"""Benchmarks as data: what is compared, at which budget, with which seeds; and the study that runs it."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from darkarc.config import SEEDS, Config, ConfigError, Section
from darkarc.tuning.study import Resources, Study, explain, resolve, unknown_names, wrong_key

Setting = bool | int | float | str
Settings = dict[str, Setting]
"""Dotted key of `params.yaml` to value."""

MOST_EPOCHS = 100_000
"""Of a run whose budget is seconds."""


class BenchmarkError(ValueError):
    """A benchmark that cannot be run; the message names the file, the key and the remedy."""


class RunBudget(Section):
    """What each run may use: exactly one of both."""

    epochs: int | None = Field(None, ge=1, description="equal epochs")
    seconds: float | None = Field(None, gt=0, description="equal training time on the run's own cores or GPU")

    @model_validator(mode="after")
    def _one_of_both(self) -> "RunBudget":
        if (self.epochs is None) == (self.seconds is None):
            raise ValueError("expected either epochs or seconds, each run's budget")
        return self

    def __str__(self) -> str:
        return f"{self.epochs} epochs" if self.epochs is not None else f"{self.seconds:g} s"


class Benchmark(Section):
    """Variants made of one choice on each axis, each trained with every seed."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    budget: RunBudget
    axes: dict[str, dict[str, Settings]] = Field(
        min_length=1, description="axis to choice to the keys of params.yaml that it sets"
    )
    combine: Literal["all", "one_at_a_time"] = Field(
        "all", description="every combination, or the first of every axis and what differs from it in one"
    )
    common: Settings = Field({}, description="keys of params.yaml that hold for every run")
    seeds: tuple[Annotated[int, Field(ge=0, lt=SEEDS)], ...] = Field((0, 1, 2), min_length=1)
    cost: Literal["million_parameters", "epoch_seconds", "train_seconds"] = Field(
        "million_parameters", description="what the figure sets the error against"
    )
    train_share: float = Field(1.0, gt=0, le=1, description="share of the train split's groups to train on")
    resources: Resources = Resources()
    concurrent: int = Field(1, ge=1, description="runs at once; more than fit wait for resources")
    max_failures: int = Field(3, ge=0, description="times a run whose worker died is started again")

    @model_validator(mode="after")
    def _something_to_compare(self) -> "Benchmark":
        for axis, choices in self.axes.items():
            if not choices:
                raise ValueError(f"axes.{axis}: has no choice")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: one is listed twice: {list(self.seeds)}")
        if len(self.variants()) < 2:
            raise ValueError("axes: a comparison needs at least two variants")
        return self

    def variants(self) -> list[dict[str, str]]:
        """Axis to choice, in the order of the file."""
        axes = [[(axis, choice) for choice in choices] for axis, choices in self.axes.items()]
        combinations = [dict(places) for places in itertools.product(*axes)]
        if self.combine == "all":
            return combinations
        first = combinations[0]
        return [v for v in combinations if sum(v[axis] != first[axis] for axis in first) <= 1]

    def settings(self, variant: Mapping[str, str]) -> Settings:
        """Keys that a variant sets; a later axis counts before an earlier one."""
        settings = dict(self.common)
        for axis, choice in variant.items():
            settings |= self.axes[axis][choice]
        return settings


@dataclass(frozen=True)
class Plan:
    """config: what all runs share; study: its starting point i is run i; runs: (variant, seed) of each."""

    config: Config
    study: Study
    runs: list[tuple[dict[str, str], int]]


def load_benchmark(path: str | Path, config: Config) -> Benchmark:
    """Read a benchmark and check it against the parameters. Raises `BenchmarkError`."""
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path}: cannot read the benchmark: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise BenchmarkError(f"{path}: not valid YAML: {error}") from error
    return parse_benchmark(tree, config, str(path))


def parse_benchmark(tree: Any, config: Config, origin: str = "benchmark") -> Benchmark:
    """Validate a nested mapping as `load_benchmark` does; `origin` names it in errors."""
    if not isinstance(tree, Mapping):
        raise BenchmarkError(
            f"{origin}: expected keys such as `name:` and `axes:`, found {type(tree).__name__}"
        )
    try:
        benchmark = Benchmark.model_validate(tree)
    except ValidationError as error:
        raise BenchmarkError(explain(error, origin, (Benchmark, RunBudget, Resources))) from error
    problems = _wrong_settings(benchmark, config)
    if problems:
        raise BenchmarkError("\n".join(f"{origin}: {problem}" for problem in problems))
    return benchmark


def make_plan(benchmark: Benchmark, config: Config) -> Plan:
    """The runs as a study that tries its starting points and nothing else."""
    runs = [(variant, seed) for seed in benchmark.seeds for variant in benchmark.variants()]
    points: list[Settings] = [{"seed": seed, **benchmark.settings(variant)} for variant, seed in runs]
    flat = config.flat()
    keys = list(dict.fromkeys(key for point in points for key in point))
    points = [{key: point.get(key, flat[key]) for key in keys} for point in points]
    values = {key: list({repr(point[key]): point[key] for point in points}.values()) for key in keys}
    shared = {key: found[0] for key, found in values.items() if len(found) == 1}
    varied = {key: {"choice": found} for key, found in values.items() if len(found) > 1}
    budget: dict[str, float] = {"trials": len(runs), "epochs": benchmark.budget.epochs or MOST_EPOCHS}
    if benchmark.budget.seconds is not None:
        budget["trial_seconds"] = benchmark.budget.seconds
    study = Study.model_validate(
        {
            "name": benchmark.name,
            "budget": budget,
            "algorithm": "points",
            "space": varied,
            "points": [{key: point[key] for key in varied} for point in points],
            "labels": [" · ".join([*variant.values(), f"seed {seed}"]) for variant, seed in runs],
            **benchmark.model_dump(include={"train_share", "resources", "concurrent", "max_failures"}),
        }
    )
    return Plan(resolve(config, shared), study, runs)


def _wrong_settings(benchmark: Benchmark, config: Config) -> list[str]:
    """Keys that are none, or cannot differ between runs; values that are not valid together."""
    problems = [f"common: {wrong}" for key in benchmark.common if (wrong := wrong_key(key, config))]
    for axis, choices in benchmark.axes.items():
        for choice, settings in choices.items():
            where = f"axes.{axis}.{choice}"
            problems += [f"{where}: {wrong}" for key in settings if (wrong := wrong_key(key, config))]
    if problems:
        return problems
    for variant in benchmark.variants():
        where = ", ".join(variant.values())
        try:
            found = unknown_names(resolve(config, benchmark.settings(variant)))
        except ConfigError as error:
            problems += [f"{where}: {line.removeprefix('trial: ')}" for line in str(error).splitlines()]
            continue
        problems += [f"{where}: {key}: {problem}" for key, problem in found.items()]
    if benchmark.budget.seconds is not None and config.train.schedule:
        problems.append(
            "budget.seconds: train.schedule in params.yaml belongs to one number of epochs; empty it"
        )
    return list(dict.fromkeys(problems))
