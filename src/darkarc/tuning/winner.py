"""The winner of a study: which trial it is, the file that `train` reads, and how it is applied."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from darkarc.config import Config, ConfigError
from darkarc.durable import write_file
from darkarc.tracking.lineage import STUDY_TAG, TRIAL_TAG
from darkarc.tuning.book import FINISHED, StudyBook, TrialRecord
from darkarc.tuning.study import Study, StudyError, resolve

HEADER = """\
# Written by `darkarc tune`; `darkarc train` reads it. The keys under `searched` take their values from
# `parameters`, all others from params.yaml.
"""


def best_trial(study: Study, book: StudyBook) -> TrialRecord | None:
    """The winner among the trials that ran to their end, else among those that came farthest.

    One objective: its best last value, the earlier trial in a tie. Two: of the Pareto front, the trial
    nearest to the best of both, each objective scaled to the front's range.
    """
    candidates = _candidates(study, book)
    if not candidates:
        return None
    if len(study.objectives) == 1:
        ((name, mode),) = study.objectives.items()
        sign = 1.0 if mode == "min" else -1.0
        return min(candidates, key=lambda trial: (sign * trial.last[name], trial.number))
    front = pareto_front(study, book)
    costs = {trial.number: _costs(study, trial) for trial in front}
    lows, highs = (tuple(f(c[k] for c in costs.values()) for k in range(2)) for f in (min, max))

    def distance(trial: TrialRecord) -> float:
        cost = costs[trial.number]
        return sum(((cost[k] - lows[k]) / ((highs[k] - lows[k]) or 1.0)) ** 2 for k in range(2))

    return min(front, key=lambda trial: (distance(trial), trial.number))


def pareto_front(study: Study, book: StudyBook) -> list[TrialRecord]:
    """Trials that no other one beats in every objective, by number."""
    candidates = _candidates(study, book)
    costs = {trial.number: _costs(study, trial) for trial in candidates}

    def beaten(own: tuple[float, ...]) -> bool:
        return any(c != own and all(a <= b for a, b in zip(c, own, strict=True)) for c in costs.values())

    return [trial for trial in candidates if not beaten(costs[trial.number])]


def winner_document(config: Config, study: Study, book: StudyBook) -> dict[str, Any]:
    """What the winner's file says. Raises `StudyError` if no trial has a result."""
    winner = best_trial(study, book)
    if winner is None:
        reasons = [f"trial {t.number}: {t.reason}" for t in book.trials.values() if t.reason]
        raise StudyError(
            f"study {study.name}: no trial has a result; " + ("; ".join(reasons[:3]) or "none ran")
        )
    parameters: dict[str, Any] = dict(winner.assignment)
    searched = list(parameters)
    if study.is_population:
        # Of interest is what happens while it trains, and it is exact only over the same number of epochs.
        first, *changes = winner.schedule
        parameters = {**first["values"], "train.epochs": study.budget.epochs, "train.schedule": changes}
        searched = list(parameters)
    tree = resolve(config, parameters).dump()
    document: dict[str, Any] = {
        "study": study.name,
        "trial": winner.number,
        "epochs": winner.epochs,
        "objectives": {name: winner.last[name] for name in study.objectives},
        "searched": searched,
        "parameters": {"model": tree["model"], "train": tree["train"]},
    }
    if len(study.objectives) > 1:
        document["front"] = [
            {"trial": t.number, **{n: t.last[n] for n in study.objectives}, "parameters": t.assignment}
            for t in pareto_front(study, book)
        ]
    return document


def no_search(config: Config) -> dict[str, Any]:
    """The document where `tune.search` is false: nothing was searched."""
    tree = config.dump()
    return {"study": None, "searched": [], "parameters": {"model": tree["model"], "train": tree["train"]}}


def write_winner(document: Mapping[str, Any], path: str | Path) -> None:
    """Write the winner's file: complete or absent."""
    write_file(path, HEADER + yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True))


def winner_tags(path: str | Path) -> dict[str, str]:
    """Tags of a run that takes its parameters from a winner's file: the study and its best trial.

    None where nothing was searched. Raises `StudyError` as `apply_winner` does.
    """
    document = _read(Path(path))
    if document.get("study") is None:
        return {}
    return {STUDY_TAG: str(document["study"]), TRIAL_TAG: str(document.get("trial", ""))}


def apply_winner(config: Config, path: str | Path) -> Config:
    """The configuration with what a study found: its searched keys override `params.yaml`.

    Raises `StudyError` that names the file if it is missing, damaged, or does not fit.
    """
    path = Path(path)
    document = _read(path)
    try:
        searched, parameters = list(document["searched"]), document["parameters"]
        found = {key: _at(parameters, key) for key in searched}
    except (KeyError, TypeError) as error:
        raise StudyError(f"{path}: not the file of a winner ({error}); run `darkarc tune` again") from error
    unknown = [key for key in found if key not in config.flat()]
    if unknown:
        raise StudyError(f"{path}: {unknown[0]}: no such parameter; run `darkarc tune` again")
    try:
        return resolve(config, found)
    except ConfigError as error:
        raise StudyError(f"{path}: {str(error).removeprefix('trial: ')}; run `darkarc tune` again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyError(f"{path}: there is no winner yet; run `darkarc tune`") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"{path}: cannot read the winner: {error}; run `darkarc tune` again") from error
    if not isinstance(document, dict):
        raise StudyError(
            f"{path}: not the file of a winner (a {type(document).__name__}); run `darkarc tune` again"
        )
    return document


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def _candidates(study: Study, book: StudyBook) -> list[TrialRecord]:
    known = [
        trial
        for trial in sorted(book.trials.values(), key=lambda trial: trial.number)
        if trial.state != "failed" and trial.rows and all(name in trial.last for name in study.objectives)
    ]
    finished = [trial for trial in known if trial.state == FINISHED]
    farthest = max((trial.epochs for trial in known), default=0)
    return finished or [trial for trial in known if trial.epochs == farthest]


def _costs(study: Study, trial: TrialRecord) -> tuple[float, ...]:
    """Objectives, each so that less is better."""
    return tuple(trial.last[n] * (1.0 if mode == "min" else -1.0) for n, mode in study.objectives.items())
