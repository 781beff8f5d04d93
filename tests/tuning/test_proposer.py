"""Samplers without state: a search goes on after a kill with the suggestions it would have made."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from darkarc.config import Config
from darkarc.tuning import Study, parse_study
from darkarc.tuning.book import FAILED, FINISHED, PRUNED, TrialRecord
from darkarc.tuning.proposer import Proposer
from darkarc.tuning.space import active, in_order

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


def test_a_search_hears_how_each_trial_ended(study_tree: Tree) -> None:
    """What is finished by its last epoch, however good an earlier one was; of what failed nothing."""
    rows = {epoch: {"val_class_accuracy": value} for epoch, value in ((1, 0.9), (2, 0.6))}
    ends = [
        (FINISHED, rows, "COMPLETE", 0.6),
        (FINISHED, {2: {"val_class_accuracy": 0.7}}, "COMPLETE", 0.7),
        (PRUNED, {1: {"val_class_accuracy": 0.8}}, "PRUNED", 0.8),
        (FAILED, rows, "FAIL", None),
        (PRUNED, {}, "FAIL", None),
    ]
    study = parse_study(study_tree(objectives={"val_class_accuracy": "max"}), Config())
    proposer = Proposer(study, Config())
    for number, (state, seen, _, _) in enumerate(ends):
        assignment, hints = proposer.suggest(number)
        proposer.tell(TrialRecord(number, assignment, hints, rows=seen, state=state))
    told = [(trial.state.name, trial.value) for trial in proposer.optuna.trials]
    assert told == [(name, value) for _, _, name, value in ends]
    assert proposer.optuna.best_trial.number == 1, "the highest"
    assert proposer.optuna.trials[0].intermediate_values == {1: 0.9, 2: 0.6}


def test_with_two_objectives_a_pruned_trial_teaches_nothing(study_tree: Tree) -> None:
    study = make(study_tree, "nsga2")
    proposer = Proposer(study, Config())
    seen = {1: {"val_mae_dex": 0.1, "million_parameters": 2.0}}
    for number, state in enumerate((FINISHED, PRUNED)):
        proposer.tell(TrialRecord(number, *proposer.suggest(number), rows=seen, state=state))
    assert [(trial.state.name, trial.values) for trial in proposer.optuna.trials] == [
        ("COMPLETE", [0.1, 2.0]),
        ("FAIL", None),
    ]


def test_numbers_are_drawn_as_the_space_is(study_tree: Tree) -> None:
    """Half of them below the middle, which is a geometric one where the space is logarithmic."""
    space = {
        "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "train.batch_size": {"log_integer": [4, 256]},
        "model.dropout": {"uniform": [0.0, 0.5]},
    }
    study = parse_study(study_tree(space=space, budget={"trials": 200, "epochs": 2}), Config())
    proposer = Proposer(study, Config())
    drawn = [proposer.suggest(number)[0] for number in range(200)]
    for key, middle in (("train.learning_rate", 1e-3), ("train.batch_size", 32), ("model.dropout", 0.25)):
        assert np.mean([float(values[key]) < middle for values in drawn]) == pytest.approx(0.5, abs=0.1)
        assert all(study.space[key].contains(values[key]) for values in drawn)


def test_starting_points_come_first_and_seeds_differ(study_tree: Tree) -> None:
    study = make(study_tree, "tpe")
    first = Proposer(study, Config()).suggest(0)[0]
    assert first == {"train.learning_rate": Config().train.learning_rate, "model.dropout": 0.4}
    other = study.model_copy(update={"seed": 99})
    records = run(study, Proposer(study, Config()), 0, 3)
    assert records[1].assignment != run(other, Proposer(other, Config()), 0, 3)[1].assignment


CONDITIONAL = {
    "train.policy": {"choice": ["one_cycle", "plateau", "cosine"]},
    "train.warmup": {"choice": [0.1, 0.25, 0.3], "when": {"train.policy": ["one_cycle", "cosine"]}},
    "train.plateau_patience": {"choice": [1, 2, 3], "when": {"train.policy": "plateau"}},
    "train.plateau_factor": {"choice": [0.3, 0.5], "when": {"train.plateau_patience": 2}},
}


@pytest.mark.parametrize("name", ["random", "grid", "points", "tpe", "gp", "nsga2"])
def test_a_conditional_parameter_is_suggested_only_where_it_counts(name: str, study_tree: Tree) -> None:
    """Through every algorithm that takes conditions, also where the search goes on after a kill."""
    space = dict(CONDITIONAL)
    if name != "grid":
        space["train.learning_rate"] = {"log_uniform": [1e-4, 1e-2], "when": {"train.policy": "one_cycle"}}
    points = [{"train.policy": policy} for policy in ("plateau", "one_cycle")]
    changes: dict[str, Any] = {"space": space, "budget": {"trials": 16, "epochs": 2}, "concurrent": 1}
    changes["algorithm"] = {"name": name, "startup_trials": 5, "population": 5}
    if name == "nsga2":
        changes["objectives"] = {"val_mae_dex": "min", "million_parameters": "min"}
    if name == "grid":
        changes["budget"] = {"trials": 3 + 3 + 2 + 2, "epochs": 2}
    else:
        changes["points"] = points
    if name == "points":
        changes["budget"] = {"trials": 2, "epochs": 2}
    study = parse_study(study_tree(**changes), Config())
    n = study.budget.trials

    def on(proposer: Proposer, first: int) -> list[TrialRecord]:
        records = []
        for number in range(first, n):
            assignment, hints = proposer.suggest(number)
            assert list(assignment) == [key for key in in_order(study.space) if key in assignment]
            assert set(assignment) == set(active(study.space, assignment))
            better = 0.1 * len(assignment) + float(assignment.get("train.warmup", 0.0))
            row = {"epoch": 2, "val_mae_dex": better, "million_parameters": 1 / better}
            record = TrialRecord(number, assignment, hints, rows={2: row}, state=FINISHED)
            proposer.tell(record)
            records.append(record)
        return records

    whole = on(Proposer(study, Config()), 0)
    assert {record.assignment["train.policy"] for record in whole} >= {"one_cycle", "plateau"}
    again = Proposer(study, Config())
    for record in whole[: n // 2]:
        again.recall(record)
        again.tell(record)
    assert [record.assignment for record in on(again, n // 2)] == [r.assignment for r in whole[n // 2 :]]


def test_a_gaussian_process_learns_behind_a_condition(study_tree: Tree) -> None:
    """The lowest point lies in one branch: the search finds the branch, and the place in it."""
    space = {
        "train.policy": {"choice": ["one_cycle", "plateau"]},
        "train.warmup": {"uniform": [0.0, 0.5], "when": {"train.policy": "one_cycle"}},
    }
    algorithm = {"name": "gp", "startup_trials": 6}
    tree = study_tree(space=space, algorithm=algorithm, budget={"trials": 20, "epochs": 2}, concurrent=1)
    study = parse_study(tree, Config())
    proposer, values = Proposer(study, Config()), []
    for number in range(20):
        assignment, hints = proposer.suggest(number)
        values.append((float(assignment.get("train.warmup", 0.9)) - 0.2) ** 2)
        row = {"epoch": 2, "val_mae_dex": values[-1]}
        proposer.tell(TrialRecord(number, assignment, hints, rows={2: row}, state=FINISHED))
    assert min(values[6:]) < 1e-4 and np.median(values[10:]) < 0.01
