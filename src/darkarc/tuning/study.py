"""Studies as data: `experiments/<study>.yaml` to a frozen, validated `Study`."""

import copy
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from darkarc import config as configuration
from darkarc.config import Config, ConfigError, Section
from darkarc.tuning.metrics import METRICS, direction
from darkarc.tuning.space import (
    Assignment,
    Dimension,
    Value,
    active,
    as_list,
    corners,
    in_order,
    required,
    same,
)

AlgorithmName = Literal["random", "grid", "points", "tpe", "gp", "cmaes", "nsga2"]
SchedulerName = Literal["none", "asha", "hyperband", "median", "pbt", "pb2"]
SEARCHED_SECTIONS = ("model", "train")

NOT_SEARCHED = {
    "train.epochs": "budget.epochs is the length of every trial",
    "train.schedule": "budget.epochs is the length of every trial",
    "train.members": "a trial trains one member; set it in params.yaml for the final training",
    "train.sanity": "no trial checks itself; the final training does",
    "model.recalibration": "it mends a model that is trained, and no trial gets that far",
    "model.smooth_bins": "it mends a model that is trained, and no trial gets that far",
    "model.vortex_fit": "its weight is fitted to a model that is trained, and no trial gets that far",
    "model.novelty": "it is fitted to a model that is trained, and no trial gets that far",
}
"""Keys without effect in a trial, and why."""


class StudyError(ValueError):
    """A study that cannot be run or has failed; the message names the file, the key and the remedy."""


class Budget(Section):
    trials: int = Field(ge=1, description="configurations to try; of pbt and pb2 the population")
    epochs: int = Field(ge=1, description="of a trial that nothing stops")
    trial_seconds: float | None = Field(
        None, gt=0, description="a trial trains as many epochs (at most `epochs`) as take so long by a timing"
    )
    seconds: float | None = Field(None, gt=0, description="the search ends after this; trials then stop")


class Algorithm(Section):
    name: AlgorithmName = "tpe"
    startup_trials: int = Field(
        8, ge=1, description="tpe, gp, cmaes: random trials before the model is trusted"
    )
    population: int = Field(16, ge=2, description="nsga2: trials a generation")


class Scheduler(Section):
    name: SchedulerName = "none"
    grace_epochs: int = Field(1, ge=1, description="asha, median: no trial is stopped before")
    reduction: float = Field(3.0, gt=1, description="asha, hyperband: one in so many goes on at each rung")
    samples: int = Field(3, ge=1, description="median: trials that the median needs")
    interval_epochs: int = Field(1, ge=1, description="pbt, pb2: epochs between exchanges")
    quantile: float = Field(0.25, gt=0, le=0.5, description="pbt, pb2: share replaced by copies of the best")
    resample: float = Field(0.25, ge=0, le=1, description="pbt: chance that a mutation draws anew")


class Resources(Section):
    cpus: float = Field(1, gt=0, description="cores of a trial, and its threads")
    gpus: float = Field(0, ge=0, description="share of a GPU, such as 0.25; 0: trials run on the CPU")

    @field_validator("cpus", "gpus")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError("Ray gives out shares below 1 and whole numbers above; make it one of these")
        return value


class Study(Section):
    """One search: what varies, what is better, how far it may go, and who decides."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    objectives: dict[str, Literal["min", "max"]] = Field(
        {"val_mae_dex": "min"}, min_length=1, max_length=2, description="metric to direction"
    )
    budget: Budget
    algorithm: Algorithm = Algorithm()
    scheduler: Scheduler = Scheduler()
    space: dict[str, Dimension] = Field(min_length=1, description="dotted keys of params.yaml")
    points: tuple[dict[str, Value], ...] = Field(
        (), description="tried first; a key that is left out has its value of params.yaml ({}: all of them)"
    )
    labels: tuple[str, ...] = Field((), description="what the starting points are called in MLflow")
    keep_points: bool = Field(
        False, description="asha, median: starting points run to their end, so that no winner is worse"
    )
    resources: Resources = Resources()
    concurrent: int = Field(1, ge=1, description="trials at once; more than fit wait for resources")
    seed: int = Field(0, ge=0, lt=2**31)
    train_share: float = Field(1.0, gt=0, le=1, description="share of the train split's groups to train on")
    report_epochs: int = Field(1, ge=1, description="epochs between decisions (and trial checkpoints)")
    max_failures: int = Field(3, ge=0, description="times a trial whose worker died is started again")

    @field_validator("algorithm", "scheduler", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def is_population(self) -> bool:
        return self.scheduler.name in ("pbt", "pb2")

    @property
    def report_interval(self) -> int:
        """Epochs between reports to the scheduler; a population reports where it exchanges."""
        return self.scheduler.interval_epochs if self.is_population else self.report_epochs

    def dump(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


def load_study(path: str | Path, config: Config) -> Study:
    """Read a study and check it against the parameters that it varies.

    Every key must be a parameter of `params.yaml`, every end and choice a valid value of it. Raises
    `StudyError` that names the file, the key, and what to do.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot read the study: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise StudyError(f"{path}: not valid YAML: {error}") from error
    return parse_study(tree, config, str(path))


def parse_study(tree: Any, config: Config, origin: str = "study") -> Study:
    """Validate a nested mapping as `load_study` does; `origin` names it in errors."""
    from darkarc.tuning.combinations import refusals

    if not isinstance(tree, Mapping):
        raise StudyError(f"{origin}: expected keys such as `name:` and `space:`, found {type(tree).__name__}")
    try:
        study = Study.model_validate(tree)
    except ValidationError as error:
        raise StudyError(explain(error, origin, SECTIONS)) from error
    problems = [*_wrong_objectives(study, config), *_wrong_keys(study, config)]
    problems = problems or _wrong_conditions(study) or _wrong_values(study, config)
    problems = problems or [*_wrong_points(study, config), *refusals(study, config)]
    if problems:
        raise StudyError("\n".join(f"{origin}: {problem}" for problem in problems))
    return study


def resolve(config: Config, assignment: Mapping[str, Any]) -> Config:
    """The configuration with dotted keys set. Raises `ConfigError` for a value that is not valid."""
    tree = copy.deepcopy(config.dump())
    for key, value in assignment.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return configuration.parse(tree, "trial")


def starting_point(study: Study, config: Config, number: int) -> Assignment:
    """Starting point `number`, its gaps filled from the configuration."""
    defaults = {**config.flat(), **study.points[number]}
    point = {key: value for key, value in defaults.items() if key in study.space}
    searched = active(study.space, {**defaults, **point})
    return {key: point[key] for key in searched}


def _wrong_objectives(study: Study, config: Config) -> list[str]:
    known = [*METRICS, *(f"val_mae_{name}" for name in list(config.targets)[1:])]
    problems = []
    for name, mode in study.objectives.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            problems.append(f"objectives.{name}: no such metric{hint}")
        elif mode != direction(name):
            problems.append(f"objectives.{name}: {mode} searches for the worst; write {direction(name)}")
    return problems


def _wrong_keys(study: Study, config: Config) -> list[str]:
    keys = [*study.space, *(key for point in study.points for key in point)]
    return [f"space: {problem}" for key in dict.fromkeys(keys) if (problem := wrong_key(key, config))]


def wrong_key(key: str, config: Config) -> str:
    """Why the trials of a study cannot differ in this key of `params.yaml`; "" if they can."""
    flat = config.flat()
    if key not in flat:
        near = difflib.get_close_matches(key, flat, n=1, cutoff=0.6)
        return f"{key}: no such parameter" + (
            f"; did you mean {near[0]}?" if near else "; see docs/parameters.md for every key"
        )
    if key in NOT_SEARCHED:
        return f"{key}: cannot be searched; {NOT_SEARCHED[key]}"
    if key.partition(".")[0] not in SEARCHED_SECTIONS:
        return (
            f"{key}: a search trains on one prepared store, so only {' and '.join(SEARCHED_SECTIONS)} can "
            "vary; change this key in params.yaml and run the stages before `tune` again"
        )
    return ""


def _wrong_conditions(study: Study) -> list[str]:
    problems = []
    for key, dimension in study.space.items():
        for other, wanted in dimension.when.items():
            parent = study.space.get(other)
            if parent is None or parent.choice is None:
                problems.append(f"space: {key}: when: {other} must be a `choice` of this space")
            else:
                problems += [
                    f"space: {key}: when: {other} never is {value!r}; its choices are {list(parent.choice)}"
                    for value in as_list(wanted)
                    if not any(same(value, choice) for choice in parent.choice)
                ]
    try:
        in_order(study.space)
    except ValueError as error:
        return [*problems, str(error)]
    for key in study.space:
        never = [other for other, values in required(study.space, key).items() if not values]
        if never:
            problems.append(
                f"space: {key}: when: never searched, because its conditions and those of the keys that it "
                f"names want different values of {never[0]}"
            )
    return problems


def _wrong_values(study: Study, config: Config) -> list[str]:
    problems: dict[str, None] = {}
    for assignment in corners(study.space):
        try:
            resolved = resolve(config, assignment)
        except ConfigError as error:
            for line in str(error).splitlines():
                problems[f"space: {line.removeprefix('trial: ')}"] = None
            continue
        for key, problem in unknown_names(resolved).items():
            problems[f"space: {key}: {problem}"] = None
    return list(problems)


def unknown_names(config: Config) -> dict[str, str]:
    """Names that a registry lacks, and options that the backbone cannot honour: key to problem."""
    from darkarc.models import BACKBONES, HEADS

    problems = {}
    for key, name, known in (
        ("model.backbone", config.model.backbone, BACKBONES),
        ("model.head", config.model.head, HEADS),
    ):
        if name not in known:
            problems[key] = f"no such {key.partition('.')[2]} {name!r}; known are {', '.join(known)}"
    if "model.backbone" not in problems:
        problem = BACKBONES[config.model.backbone].problem(config.model)
        if problem is not None:
            key, _, text = problem.partition(": ")
            problems[key] = text
    return problems


def _wrong_points(study: Study, config: Config) -> list[str]:
    problems = []
    for number, point in enumerate(study.points):
        unknown = [key for key in point if key not in study.space]
        problems += [f"points[{number}]: {key} is not in the space" for key in unknown]
        whole = starting_point(study, config, number)
        problems += [
            f"points[{number}]: {key} counts only where {study.space[key].shown_condition}; leave it away, "
            "or set that too"
            for key in point
            if key in study.space and key not in whole
        ]
        for key, value in whole.items():
            if not study.space[key].contains(value):
                whence = "" if key in point else " (its value in params.yaml)"
                shown = study.space[key].model_dump(exclude_none=True, exclude={"when"}, mode="json")
                problems.append(f"points[{number}]: {key}: {value!r}{whence} is outside of the space {shown}")
    return problems


def explain(error: ValidationError, origin: str, sections: tuple[type[Section], ...]) -> str:
    """One line a mistake in a file that these sections describe."""
    known = [name for section in sections for name in section.model_fields]
    lines = []
    for item in error.errors():
        # Union branches are pydantic's, not the reader's.
        parts = [
            str(part) for part in item["loc"] if not re.fullmatch(r"bool|int|float|str|list\[.*\]", str(part))
        ]
        key = ".".join(parts) or "(whole file)"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.6)
            lines.append(f"{origin}: {key}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))
        elif item["type"] == "missing":
            lines.append(f"{origin}: {key}: is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            found = "" if isinstance(item["input"], dict) else f", found {item['input']!r}"
            lines.append(f"{origin}: {key}: {message}{found}")
    return "\n".join(dict.fromkeys(lines))


SECTIONS = (Study, Budget, Algorithm, Scheduler, Resources, Dimension)
