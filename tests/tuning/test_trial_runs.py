"""Trials in MLflow: every epoch of every curve once, however often the study is killed in between."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from darkarc.config import Config
from darkarc.tracking import start_run
from darkarc.tuning import parse_study
from darkarc.tuning.book import FINISHED, StudyBook, TrialRecord
from darkarc.tuning.population import position_of
from darkarc.tuning.runs import TrialRuns

Tree = Callable[..., dict[str, Any]]
OWN = {"train.learning_rate": 1e-3, "model.dropout": 0.1}
DONOR = {"train.learning_rate": 2e-2, "model.dropout": 0.4}
COPIED = {"train.learning_rate": 1e-2, "model.dropout": 0.3}


def rows(*epochs: int) -> list[dict[str, float]]:
    return [{"epoch": epoch, "val_mae_dex": 1 / epoch, "train_seconds": float(epoch)} for epoch in epochs]


def test_a_member_s_curves_tell_once_what_it_was_trained_with(
    study_tree: Tree, tmp_path: Path, tracked: str
) -> None:
    """A member that takes its donor's weights takes its schedule too; its earlier epochs keep their own
    parameters, whether they were sent before or after, and where the next session sends them again."""
    from mlflow import MlflowClient

    reports = [
        (rows(1, 2), OWN, [{"epoch": 0, "values": OWN}]),
        (rows(3, 4), COPIED, [{"epoch": 0, "values": DONOR}, {"epoch": 2, "values": COPIED}]),
    ]
    config = Config()
    for scheduler, killed_after, sent in (
        ("pbt", 1, 1),
        ("pb2", 0, 0),
        ("pb2", 1, 1),
        ("pb2", 2, 0),
        ("pb2", 2, 1),
        ("pb2", 2, 2),
    ):
        case = f"{scheduler}-{killed_after}-{sent}"
        budget = {"trials": 4, "epochs": 4}
        tree = study_tree(name=case, scheduler={"name": scheduler, "interval_epochs": 2}, budget=budget)
        study = parse_study(tree, config)
        journal, path = tmp_path / f"{case}-parent.jsonl", tmp_path / f"{case}.jsonl"
        with StudyBook(path, {}) as book, start_run(config, name=case, journal=journal) as parent:
            runs = TrialRuns(config, study, book, parent)
            book.suggest(0, OWN, {})
            runs.start(0)
            for number, (epochs, values, schedule) in enumerate(reports[:killed_after], start=1):
                at = position_of(study, values)
                book.report(0, epochs, checkpoint="", position=at, schedule=schedule)
                runs.reported(0)
                if number == sent:
                    runs._send_all()
            # A kill: nothing else is sent, and nobody ends the run.
        with StudyBook(path, {}) as book, start_run(config, name=case, journal=journal) as parent:
            runs = TrialRuns(config, study, book, parent)
            for epochs, values, schedule in reports:  # those that are there are trained again
                at = position_of(study, values)
                book.report(0, epochs, checkpoint="", position=at, schedule=schedule)
            book.end(0, FINISHED, "all epochs")
            runs.finish(60.0)
        client = MlflowClient(tracked)
        (run,) = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
        assert run.info.status == "FINISHED"
        assert {"val_mae_dex", "cfg.train.learning_rate", "cfg.model.dropout"} <= run.data.metrics.keys()
        for key in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, key)
            steps = Counter(point.step for point in history)
            assert steps == dict.fromkeys(range(1, 5), 1), (case, key)
            if key.startswith("cfg."):
                name = key.removeprefix("cfg.")
                told = [point.value for point in sorted(history, key=lambda point: point.step)]
                assert told == pytest.approx([OWN[name]] * 2 + [COPIED[name]] * 2), case


class Store:
    """A tracking store that counts what it is asked."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*anything: Any, **more: Any) -> Any:
            self.calls[name] += 1
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run-{self.calls[name]}", status="RUNNING"))

        return call


def test_a_result_costs_the_same_after_a_thousand_trials(
    study_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush looks at the trials that have reported since the last one, not at all that there are."""
    n, config, store = 1000, Config(), Store()
    study = parse_study(study_tree(budget={"trials": n, "epochs": 2}), config)
    monkeypatch.setattr("darkarc.tuning.runs.FLUSH_EVERY_S", 0.0)
    monkeypatch.setattr(TrialRuns, "_log_costs", lambda self: None)
    looked: list[int] = []
    waiting = TrialRuns._waiting

    def counted(self: TrialRuns, record: TrialRecord) -> list[dict[str, float]]:
        looked.append(record.number)
        return waiting(self, record)

    monkeypatch.setattr(TrialRuns, "_waiting", counted)
    with StudyBook(tmp_path / "book.jsonl", {}) as book:
        runs = TrialRuns(config, study, book, SimpleNamespace(run_id="parent"))  # type: ignore[arg-type]  # enough
        runs._client, runs._experiment = store, "1"  # type: ignore[assignment]  # it stands in
        for number in range(n):
            book.suggest(number, OWN, {})
            runs.start(number)
            for epoch in (1, 2):
                book.report(number, rows(epoch), checkpoint="", end=(FINISHED, "all") if epoch == 2 else None)
                runs.reported(number)
                runs.flush()
            runs.end(number)
        assert Counter(looked) == dict.fromkeys(range(n), 3)
        runs.finish(1.0)
    assert store.calls["create_run"] == store.calls["set_terminated"] == n
    assert not runs._sent, "of a run that is closed nothing is remembered"
