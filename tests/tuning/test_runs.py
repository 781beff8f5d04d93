"""Trials in MLflow: every epoch of every curve once, however often the study is killed in between."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darkarc.config import Config
from darkarc.tracking import start_run
from darkarc.tuning import parse_study
from darkarc.tuning.book import FINISHED, StudyBook
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
