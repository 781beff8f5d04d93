"""Exchanges of a population, decided by Ray without a worker: who copies whom, the same after a kill."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from darkarc.config import Config
from darkarc.tuning import Study, parse_study
from darkarc.tuning.book import FAILED, StudyBook
from darkarc.tuning.population import last_generation, position_of, trial_id, values_at
from darkarc.tuning.schedulers import build_scheduler
from darkarc.tuning.space import Assignment

Tree = Callable[..., dict[str, Any]]
N_TRIALS, N_EPOCHS, INTERVAL = 6, 10, 2


class Member:
    """What PBT and PB2 ask of a trial of Ray that waits."""

    status, experiment_tag, checkpoint = "PAUSED", "", "a checkpoint"
    temporary_state = SimpleNamespace(saving_to=None)

    def __init__(self, number: int, position: dict[str, Any]) -> None:
        self.trial_id = trial_id(number)
        self.evaluated_params: dict[str, Any] = {}
        self.config = {"number": number, **position}
        settings = SimpleNamespace(num_to_keep=None)
        self.run_metadata = SimpleNamespace(checkpoint_manager=SimpleNamespace(checkpoint_config=settings))

    def __str__(self) -> str:
        return self.trial_id

    def is_finished(self) -> bool:
        return self.status == "ERROR"

    def set_experiment_tag(self, tag: str) -> None:
        pass

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


class Controller:
    """Of Ray, with a whole population."""

    search_alg = None

    def __init__(self, members: list[Member]) -> None:
        self.members = members

    def get_trials(self) -> list[Member]:
        return self.members

    def get_live_trials(self) -> list[Member]:
        return [member for member in self.members if not member.is_finished()]


def population(study_tree: Tree, name: str, mode: str) -> Study:
    """Its space in an order of its own, for tables go by position."""
    space = {
        "train.weight_decay": {"uniform": [0.0, 0.1]},
        "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "model.dropout": {"uniform": [0.0, 0.5]},
    }
    metric = "val_mae_dex" if mode == "min" else "val_class_accuracy"
    scheduler = {"name": name, "interval_epochs": INTERVAL, "quantile": 0.3}
    budget = {"trials": N_TRIALS, "epochs": N_EPOCHS}
    tree = study_tree(space=space, objectives={metric: mode}, scheduler=scheduler, budget=budget)
    return parse_study(tree, Config())


def error(study: Study, number: int, position: dict[str, Any], epoch: int) -> float:
    """Smallest at a learning rate of 1e-3 without dropout, and for early numbers."""
    values = values_at(study, position)
    rate = study.space["train.learning_rate"].coordinate(float(values["train.learning_rate"]))
    return (0.1 * (rate - 0.5) ** 2 + 0.2 * float(values["model.dropout"]) + 0.3 + 0.01 * number) / epoch


def go_on(study: Study, book: StudyBook, n_reports: int = -1, *, order: int = 1, fails: int = -1) -> None:
    """Generation after generation, as Ray Tune runs them, until so many reports are in the book. Members
    arrive in the order of their numbers or, with -1, from the last. `fails`: which does in the second."""
    ((metric, mode),) = study.objectives.items()
    sign = 1 if mode == "min" else -1
    for number in range(len(book.trials), study.budget.trials):
        share = (number * 0.37 + 0.2) % 1
        values = {key: dimension.value_at(share) for key, dimension in study.space.items()}
        book.suggest(number, values, {})
    done = last_generation(study, book)
    scheduler = build_scheduler(study, book)
    members = [
        Member(record.number, record.positions[done] if done else position_of(study, record.assignment))
        for record in book.trials.values()
    ]
    controller = Controller(members)
    for member in members:
        scheduler.on_trial_add(controller, member)
    for epoch in range(done or INTERVAL, N_EPOCHS + 1, INTERVAL):
        for member in controller.get_live_trials()[::order]:
            if n_reports == 0:
                return
            n_reports -= 1
            number = int(member.config["number"])
            if number == fails and epoch == 2 * INTERVAL:
                book.end(number, FAILED, "diverged")
                scheduler.on_trial_error(controller, member)
                member.status = "ERROR"
                continue
            position = {key: member.config[key] for key in study.space}
            rows = [
                {"epoch": e, metric: sign * error(study, number, position, e)}
                for e in range(epoch - INTERVAL + 1, epoch + 1)
            ]
            # Ray asks the scheduler first: a kill may come between an exchange and its last report.
            scheduler.on_trial_result(controller, member, rows[-1])
            schedule = [{"epoch": 0, "values": values_at(study, position)}]
            book.report(number, rows, checkpoint="there", position=position, schedule=schedule)


def best_so_far(
    seen: np.ndarray,
    gain: np.ndarray,
    current: np.ndarray | None,
    newpoint: np.ndarray,
    *anything: Any,
    **more: Any,
) -> np.ndarray:
    """In place of PB2's Gaussian process, which takes a second a fit: near where most was gained, and another
    place for every other table or order of its rows."""
    weights = np.exp(30 * (gain - gain.max()))
    mean = weights @ seen / weights.sum()
    taken = 0 if current is None else len(current)
    place = mean[2:] + 0.02 * np.sin(seen[-1].sum() + newpoint.astype(float).sum()) + 0.01 * taken
    return np.clip(place, 0, 1)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_exchanges_do_not_depend_on_a_kill(
    name: str, mode: str, study_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.tune.schedulers import pb2

    monkeypatch.setattr(pb2, "_select_config", best_so_far)
    study = population(study_tree, name, mode)
    with StudyBook(tmp_path / "undisturbed.jsonl", {}) as book:
        go_on(study, book)
        undisturbed = book.exchanges
        measured = {number: record.rows for number, record in book.trials.items()}
    assert [event["epoch"] for event in undisturbed] == [2, 2, 4, 4, 6, 6, 8, 8]
    metric = next(iter(study.objectives))
    for event in undisturbed:
        errors = {number: abs(rows[event["epoch"]][metric]) for number, rows in measured.items()}
        ranked = sorted(errors, key=errors.__getitem__)
        assert event["number"] in ranked[-2:] and event["donor"] in ranked[:2], "the worst copy the best"
        assert all(
            study.space[key].contains(value) for key, value in values_at(study, event["position"]).items()
        )
    for killed_after in range(1, N_TRIALS * 4, 5):
        path = tmp_path / f"{killed_after}.jsonl"
        with StudyBook(path, {}) as book:
            go_on(study, book, killed_after, order=-1)
        random.seed(killed_after)
        np.random.seed(killed_after)
        with StudyBook(path, {}) as book:
            go_on(study, book)
            assert book.exchanges == undisturbed, f"killed after report {killed_after}"
        streams = random.random(), np.random.random_sample()
        fresh = random.Random(killed_after), np.random.RandomState(killed_after)
        assert streams == (fresh[0].random(), fresh[1].random_sample()), "global streams are as they were"


@pytest.mark.parametrize("order", [1, -1])
def test_an_exchange_does_not_wait_for_a_member_that_failed(
    order: int, study_tree: Tree, tmp_path: Path
) -> None:
    """Whether the others come after it, or all wait for it when it fails."""
    study = population(study_tree, "pbt", "min")
    with StudyBook(tmp_path / "book.jsonl", {}) as book:
        go_on(study, book, N_TRIALS)
        best = min(book.trials.values(), key=lambda trial: trial.last["val_mae_dex"]).number
    with StudyBook(tmp_path / "another.jsonl", {}) as book:
        go_on(study, book, order=order, fails=best)
        assert [event["epoch"] for event in book.exchanges] == [2, 2, 4, 4, 6, 6, 8, 8]
        assert all(best not in (event["number"], event["donor"]) for event in book.exchanges[2:])
        epochs = {trial.number: trial.epochs for trial in book.trials.values()}
        assert epochs == {number: INTERVAL if number == best else N_EPOCHS for number in range(N_TRIALS)}


def test_what_pbt_draws_anew_is_spread_as_the_space_is(study_tree: Tree, tmp_path: Path) -> None:
    study = population(study_tree, "pbt", "min")
    scheduler = study.scheduler.model_copy(update={"resample": 1.0, "quantile": 0.5})
    budget = study.budget.model_copy(update={"trials": 50})
    study = study.model_copy(update={"scheduler": scheduler, "budget": budget})
    with StudyBook(tmp_path / "book.jsonl", {}) as book:
        go_on(study, book)
        drawn = [event["position"] for event in book.exchanges]
    assert len(drawn) == len({str(position) for position in drawn}) == 25 * 4, "each generation has its own"
    for key, dimension in study.space.items():
        places = [dimension.coordinate(position[key]) for position in drawn]
        assert np.quantile(places, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.12)


def test_what_lies_outside_of_the_space_is_put_on_its_edge(study_tree: Tree) -> None:
    """PBT multiplies by 1.2 or 0.8, at an edge too."""
    space = {
        "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "model.dropout": {"uniform": [0.1, 0.5]},
    }
    study = parse_study(study_tree(space=space, scheduler="pbt"), Config())
    given = {"train.learning_rate": 1.2e-2, "model.dropout": 0.08}
    assert values_at(study, given) == {"train.learning_rate": 1e-2, "model.dropout": 0.1}


def test_a_generation_is_over_when_its_last_member_is(study_tree: Tree, tmp_path: Path) -> None:
    """One that failed is not waited for, and after the last epoch there is no exchange."""
    study = population(study_tree, "pbt", "min")
    values: Assignment = {"train.weight_decay": 0.0, "train.learning_rate": 1e-3, "model.dropout": 0.1}

    def report(book: StudyBook, number: int, epoch: int) -> None:
        rows = [{"epoch": epoch, "val_mae_dex": 0.1}]
        schedule = [{"epoch": 0, "values": values}]
        book.report(number, rows, checkpoint="there", position=values, schedule=schedule)

    with StudyBook(tmp_path / "book.jsonl", {}) as book:
        for number in range(N_TRIALS):
            assert last_generation(study, book) == 0, "some have not begun"
            book.suggest(number, values, {})
            report(book, number, 2)
        assert last_generation(study, book) == 2
        for number in range(1, N_TRIALS):
            report(book, number, 4)
        assert last_generation(study, book) == 2, "member 0 still trains"
        book.end(0, FAILED, "diverged")
        assert last_generation(study, book) == 4
        for number in range(1, N_TRIALS):
            report(book, number, N_EPOCHS)
        assert last_generation(study, book) == N_EPOCHS - INTERVAL
