"""Trials as nested MLflow runs: batched, never in the way of the search, the same runs after a kill.

What is logged comes from the book, with the book's timestamps: sending an epoch twice writes one point.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from darkarc.config import Config
from darkarc.tracking import RunTracker, open_client
from darkarc.tuning.book import FAILED, StudyBook, TrialRecord
from darkarc.tuning.population import values_at
from darkarc.tuning.study import Study, resolve
from darkarc.tuning.winner import best_trial

if TYPE_CHECKING:
    from mlflow import MlflowClient

_logger = logging.getLogger(__name__)

FLUSH_EVERY_S = 5.0
RETRY_AFTER_S = 30.0
MAX_METRICS = 1000
TRIAL_TAG = "darkarc.trial"
PARENT_TAG = "mlflow.parentRunId"
HIDDEN = ("epoch", "time_ms")


class TrialRuns:
    """The nested runs of one study. No method raises because the store is out of reach."""

    def __init__(self, config: Config, study: Study, book: StudyBook, parent: RunTracker) -> None:
        self._config = config
        self._study = study
        self._book = book
        self._parent = parent
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._statuses: dict[int, str] = {}
        # Only trials of which something may wait are looked at: there may be thousands of others.
        self._fresh = set(book.trials)
        self._sent: dict[int, dict[int, float]] = {}
        self._flushed = self._retry_at = 0.0
        self._told = False

    def start(self, number: int) -> None:
        """Open the trial's run, or set it to RUNNING again."""
        self._attempt(lambda: self._open(number))

    def reported(self, number: int) -> None:
        """The book has new epochs of this trial: they are sent with the next flush."""
        self._fresh.add(number)

    def end(self, number: int) -> None:
        """Close the run with its reason of stopping."""
        self._attempt(lambda: self._close(number))

    def flush(self) -> None:
        """Send what waits, and what the study has cost so far, at most every few seconds."""
        if time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            self._attempt(self._send_all)
            self._log_costs()

    def finish(self, patience_s: float) -> None:
        """Send everything and leave no run RUNNING: a trial that is not over is KILLED until it goes on."""
        self._log_costs()
        give_up_at = time.monotonic() + patience_s
        self._retry_at = 0.0
        while not self._attempt(self._close_all):
            if time.monotonic() >= give_up_at:
                _logger.warning(
                    "the trials' runs are incomplete; the same study with --resume sends the rest"
                )
                return
            time.sleep(min(1.0, patience_s))
            self._retry_at = 0.0

    def costs(self) -> dict[str, float]:
        """Cost and success of the study so far: metrics of its parent run."""
        trials = self._book.trials.values()
        spent = {
            "study_epochs": float(sum(trial.epochs for trial in trials)),
            "study_seconds": sum(trial.seconds for trial in trials),
        }
        best = best_trial(self._study, self._book)
        return spent | ({f"best_{name}": best.last[name] for name in self._study.objectives} if best else {})

    def _log_costs(self) -> None:
        ended = sum(1 for trial in self._book.trials.values() if trial.state)
        self._parent.log_metrics(self.costs(), step=ended)

    def _attempt(self, action: Callable[[], object]) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        try:
            action()
        except Exception as error:
            self._retry_at = time.monotonic() + RETRY_AFTER_S
            if not self._told:
                self._told = True
                _logger.warning("trials are not tracked for now (%s); the study goes on", error)
            return False
        return True

    # What talks to the store

    def _connect(self) -> "MlflowClient":
        """The client; on first use also finds the runs that an earlier session has left."""
        if self._client is not None:
            return self._client
        parent, experiment = self._parent.run_id, self._parent.experiment_id
        if parent is None or experiment is None:
            raise ConnectionError("the study's own run could not be created yet")
        client = open_client(self._parent.tracking_uri)
        token = None
        while True:
            page = client.search_runs(
                [experiment], f"tags.`{PARENT_TAG}` = '{parent}'", max_results=1000, page_token=token
            )
            for run in page:
                number = int(run.data.tags.get(TRIAL_TAG, -1))
                if number in self._book.trials:
                    self._statuses[number] = run.info.status
                    if self._book.trials[number].state and run.info.status in ("FINISHED", "FAILED"):
                        self._fresh.discard(number)  # a run is closed when all its epochs are there
                    if self._book.trials[number].run_id != run.info.run_id:
                        self._book.name_run(number, run.info.run_id)
            token = page.token
            if not token:
                break
        self._client, self._experiment = client, experiment
        return client

    def _open(self, number: int) -> str:
        client = self._connect()
        record = self._book.trials[number]
        if number not in self._statuses:
            run = client.create_run(
                self._experiment,
                run_name=self._name(number),
                tags={
                    PARENT_TAG: str(self._parent.run_id),
                    TRIAL_TAG: str(number),
                    "darkarc.study": self._study.name,
                },
            )
            self._book.name_run(number, run.info.run_id)
            self._statuses[number] = "RUNNING"
            _log_params(client, run.info.run_id, self._params(record))
        elif self._statuses[number] != "RUNNING":
            client.update_run(record.run_id, status="RUNNING")
            self._statuses[number] = "RUNNING"
        return record.run_id

    def _name(self, number: int) -> str:
        labels = self._study.labels
        return labels[number] if number < len(labels) else f"{self._study.name}-{number:04d}"

    def _params(self, record: TrialRecord) -> dict[str, Any]:
        """Configuration of the trial; what a population mutates is a metric instead, and so are epochs that a
        timing decides."""
        flat = resolve(self._config, {**record.assignment, "train.epochs": self._study.budget.epochs}).flat()
        unknown = set(self._study.space) if self._study.is_population else set()
        if self._study.budget.trial_seconds is not None:
            unknown.add("train.epochs")
        return {
            f"cfg.{key}": value
            for key, value in flat.items()
            if (key == "seed" or key.startswith(("model.", "train."))) and key not in unknown
        }

    def _send_all(self) -> None:
        self._flushed = time.monotonic()
        for number in sorted(self._fresh):
            self._send(self._book.trials[number])

    def _waiting(self, record: TrialRecord) -> list[dict[str, float]]:
        if record.number not in self._fresh:
            return []
        sent = self._sent.get(record.number, {})
        return [row for epoch, row in sorted(record.rows.items()) if sent.get(epoch) != row["time_ms"]]

    def _send(self, record: TrialRecord) -> None:
        from mlflow.entities import Metric

        rows = self._waiting(record)
        if not rows:
            self._fresh.discard(record.number)
            return
        run_id = self._open(record.number) if record.number not in self._statuses else record.run_id
        client = self._connect()
        points = [
            Metric(key, float(value), int(row["time_ms"]), int(row["epoch"]))
            for row in rows
            for key, value in {**row, **self._mutated(record, int(row["epoch"]))}.items()
            if key not in HIDDEN and math.isfinite(value)
        ]
        for first in range(0, len(points), MAX_METRICS):
            client.log_batch(run_id, metrics=points[first : first + MAX_METRICS])
        self._sent.setdefault(record.number, {}).update({int(row["epoch"]): row["time_ms"] for row in rows})
        self._fresh.discard(record.number)

    def _mutated(self, record: TrialRecord, epoch: int) -> dict[str, float]:
        """Of a population: the parameters that an epoch was trained with, a choice by its place.

        By the report that brought the epoch. The schedule of a later one may be its donor's, and an epoch
        that is sent again after a kill would get a second point.
        """
        reported = min((at for at in record.positions if at >= epoch), default=None)
        if reported is None:
            return {}
        values = values_at(self._study, record.positions[reported])
        return {
            f"cfg.{key}": float(choice.index(value) if (choice := self._study.space[key].choice) else value)
            for key, value in values.items()
        }

    def _close(self, number: int) -> None:
        from mlflow.entities import RunTag

        client = self._connect()
        record = self._book.trials[number]
        self._send(record)
        run_id = self._open(number) if number not in self._statuses else record.run_id
        status = {"": "KILLED", FAILED: "FAILED"}.get(record.state, "FINISHED")
        if self._statuses[number] == status:
            return
        reason = record.reason or "the study was interrupted"
        tags = {"darkarc.state": record.state or "interrupted", "darkarc.reason": reason[:5000]}
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        client.set_terminated(run_id, status=status)
        self._statuses[number] = status
        if record.state:
            self._sent.pop(number, None)

    def _close_all(self) -> None:
        for number in self._book.trials:
            self._close(number)


def _log_params(client: "MlflowClient", run_id: str, params: dict[str, Any]) -> None:
    from mlflow.entities import Param

    entities = [Param(key, str(value)[:6000]) for key, value in params.items()]
    for first in range(0, len(entities), 100):
        client.log_batch(run_id, params=entities[first : first + 100])
