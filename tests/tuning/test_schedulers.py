"""Schedulers that go on after a kill decide as if there had been none."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darkarc.config import Config
from darkarc.tuning import Study, parse_study
from darkarc.tuning.book import FINISHED, PRUNED, StudyBook
from darkarc.tuning.population import trial_id
from darkarc.tuning.schedulers import build_scheduler

Tree = Callable[..., dict[str, Any]]
N_TRIALS, N_EPOCHS = 12, 9


@dataclass(frozen=True, eq=False)
class RayTrial:
    """What a scheduler asks of a trial of Ray."""

    trial_id: str
    config: dict[str, Any]


class Alone:
    """A controller of Ray with one trial at a time."""

    def get_live_trials(self) -> list[RayTrial]:
        return []


def value(number: int, epoch: int) -> float:
    """A curve that falls, at a level of the trial's own."""
    return float(np.random.default_rng(number).uniform(0.1, 0.5) + 0.3 / epoch)


def go_on(study: Study, book: StudyBook, n_reports: int) -> None:
    """One trial after the other, as Ray Tune would run them, until so many reports are in the book."""
    scheduler = build_scheduler(study, book)
    for number in range(study.budget.trials):
        if number not in book.trials:
            book.suggest(number, {}, {})
        record = book.trials[number]
        if record.state:
            continue
        trial = RayTrial(trial_id(number), {"number": number})
        scheduler.on_trial_add(Alone(), trial)
        while not record.state:
            if n_reports == 0:
                return
            n_reports -= 1
            last = record.epochs
            epoch = min(last + study.report_interval, study.budget.epochs)
            rows = [{"epoch": e, "val_mae_dex": value(number, e)} for e in range(last + 1, epoch + 1)]
            decision = scheduler.on_trial_result(Alone(), trial, rows[-1])
            end = None
            if epoch == study.budget.epochs:
                end = FINISHED, "all epochs"
            elif decision == "STOP":
                end = PRUNED, f"{study.scheduler.name} after epoch {epoch}"
            book.report(number, rows, checkpoint="", end=end)
            if end:
                scheduler.on_trial_complete(Alone(), trial, rows[-1])


@pytest.mark.parametrize(
    ("scheduler", "report_epochs"),
    [
        ({"name": "asha", "reduction": 2}, 1),
        ({"name": "asha", "grace_epochs": 2, "reduction": 2}, 2),
        ({"name": "median", "grace_epochs": 2, "samples": 2}, 1),
    ],
)
def test_what_is_stopped_does_not_depend_on_a_kill(
    scheduler: dict[str, Any], report_epochs: int, study_tree: Tree, tmp_path: Path
) -> None:
    """Killed after any report, the study stops the same trials after the same epochs."""
    budget = {"trials": N_TRIALS, "epochs": N_EPOCHS}
    tree = study_tree(budget=budget, scheduler=scheduler, report_epochs=report_epochs, concurrent=1)
    study = parse_study(tree, Config())

    def ends(name: str, killed_after: int | None) -> dict[int, str]:
        path = tmp_path / f"{name}.jsonl"
        if killed_after is not None:
            with StudyBook(path, {}) as book:
                go_on(study, book, killed_after)
        with StudyBook(path, {}) as book:
            go_on(study, book, -1)
            return {record.number: record.reason for record in book.trials.values()}

    undisturbed = ends("undisturbed", None)
    assert len(set(undisturbed.values())) > 2, "some run to their end, some are stopped early, some later"
    n_reports = (tmp_path / "undisturbed.jsonl").read_text().count('"kind":"report"')
    for n in range(1, n_reports):
        assert ends(f"killed-{n}", n) == undisturbed, f"killed after report {n}"


@pytest.mark.parametrize("keep", [True, False])
def test_starting_points_run_to_their_end_where_they_are_kept(
    keep: bool, study_tree: Tree, tmp_path: Path
) -> None:
    """Six of them, some of which would be stopped; the trials after them are judged as always."""
    points = [{"model.dropout": 0.05 * (n + 1)} for n in range(6)]
    budget = {"trials": N_TRIALS, "epochs": N_EPOCHS}
    scheduler = {"name": "asha", "reduction": 2}
    tree = study_tree(budget=budget, scheduler=scheduler, points=points, keep_points=keep, concurrent=1)
    with StudyBook(tmp_path / "book.jsonl", {}) as book:
        go_on(parse_study(tree, Config()), book, -1)
        stopped = {number for number, record in book.trials.items() if record.state == PRUNED}
    assert any(number >= 6 for number in stopped)
    assert any(number < 6 for number in stopped) != keep
