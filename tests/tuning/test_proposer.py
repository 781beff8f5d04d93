"""Samplers without state: a search goes on after a kill with the suggestions it would have made."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from darkarc.config import Config
from darkarc.tuning import Study, parse_study
from darkarc.tuning.book import FINISHED, PRUNED, TrialRecord
from darkarc.tuning.proposer import Proposer

Tree = Callable[..., dict[str, Any]]
N_TRIALS = 26


def error(assignment: dict[str, Any]) -> float:
    """A bowl with its lowest point at a learning rate of 3e-3 and a dropout of 0.1."""
    return float(
        (np.log10(assignment["train.learning_rate"] / 3e-3)) ** 2 + (assignment["model.dropout"] - 0.1) ** 2
    )


def run(study: Study, proposer: Proposer, first: int, last: int) -> list[TrialRecord]:
    records = []
    for number in range(first, last):
        assignment, hints = proposer.suggest(number)
        value = error(assignment)
        row = {"val_mae_dex": value, "million_parameters": assignment["model.dropout"] + 0.1}
        pruned = number % 4 == 3 and len(study.objectives) == 1 and study.algorithm.name == "tpe"
        epochs = 1 if pruned else 2
        rows = {epoch: {"epoch": epoch, **row} for epoch in range(1, epochs + 1)}
        record = TrialRecord(number, assignment, hints, rows=rows, state=PRUNED if pruned else FINISHED)
        proposer.tell(record)
        records.append(record)
    return records


def make(study_tree: Tree, name: str) -> Study:
    changes: dict[str, Any] = {
        "algorithm": {"name": name, "startup_trials": 5, "population": 6},
        "concurrent": 1,
    }
    if name == "nsga2":
        changes["objectives"] = {"val_mae_dex": "min", "million_parameters": "min"}
    if name == "grid":
        space = {
            "train.learning_rate": {"choice": [1e-4, 1e-3, 1e-2]},
            "model.dropout": {"choice": [0.0, 0.1, 0.3]},
        }
        changes |= {"space": space, "budget": {"trials": 9, "epochs": 2}}
    else:
        changes |= {"points": [{"model.dropout": 0.4}], "budget": {"trials": N_TRIALS, "epochs": 2}}
    return parse_study(study_tree(**changes), Config())


@pytest.mark.parametrize("name", ["random", "grid", "tpe", "gp", "cmaes", "nsga2"])
def test_a_search_goes_on_as_if_nothing_had_happened(name: str, study_tree: Tree) -> None:
    study = make(study_tree, name)
    n = study.budget.trials
    whole = run(study, Proposer(study, Config()), 0, n)
    half = n // 2 + 1
    again = Proposer(study, Config())
    for record in whole[:half]:
        again.recall(record)
        again.tell(record)
    rest = run(study, again, half, n)
    assert [r.assignment for r in rest] == [r.assignment for r in whole[half:]]
    # An evolution may breed a twin of a parent; all others never repeat themselves.
    assert len({str(r.assignment) for r in whole}) >= (n * 2 // 3 if name == "nsga2" else n)


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes"])
def test_learning_algorithms_close_in_on_the_lowest_point(name: str, study_tree: Tree) -> None:
    """Over a few seeds, the last ten suggestions are better than random ones."""
    last, random = [], []
    for seed in range(3):
        study = make(study_tree, name).model_copy(update={"seed": seed})
        last += [error(r.assignment) for r in run(study, Proposer(study, Config()), 0, N_TRIALS)[-10:]]
        study = make(study_tree, "random").model_copy(update={"seed": seed})
        random += [error(r.assignment) for r in run(study, Proposer(study, Config()), 0, N_TRIALS)]
    assert np.median(last) < 0.5 * np.median(random)


def test_starting_points_come_first_and_seeds_differ(study_tree: Tree) -> None:
    study = make(study_tree, "tpe")
    first = Proposer(study, Config()).suggest(0)[0]
    assert first == {"train.learning_rate": Config().train.learning_rate, "model.dropout": 0.4}
    other = study.model_copy(update={"seed": 99})
    records = run(study, Proposer(study, Config()), 0, 3)
    assert records[1].assignment != run(other, Proposer(other, Config()), 0, 3)[1].assignment


def test_a_conditional_parameter_is_suggested_only_where_it_counts(study_tree: Tree) -> None:
    space = {
        "train.policy": {"choice": ["one_cycle", "plateau"]},
        "train.warmup": {"uniform": [0.0, 0.5], "when": {"train.policy": "one_cycle"}},
    }
    study = parse_study(study_tree(space=space, algorithm="tpe"), Config())
    proposer = Proposer(study, Config())
    found = []
    for number in range(12):
        assignment, hints = proposer.suggest(number)
        row = {"epoch": 1, "val_mae_dex": float(number)}
        proposer.tell(TrialRecord(number, assignment, hints, rows={1: row}, state=FINISHED))
        assert ("train.warmup" in assignment) == (assignment["train.policy"] == "one_cycle")
        found.append(assignment["train.policy"])
    assert set(found) == {"one_cycle", "plateau"}
