"""The search algorithm that Ray Tune asks for trials: book first, then Optuna; one for all algorithms."""

import time
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.search import SearchAlgorithm

from darkarc.tuning.book import FAILED, FINISHED, PRUNED, StudyBook, TrialRecord
from darkarc.tuning.population import last_generation, number_of, position_of, trial_id
from darkarc.tuning.proposer import Proposer
from darkarc.tuning.study import Study


class StudySearch(SearchAlgorithm):
    """Hands out the trials of a study: those that a kill interrupted, then new ones.

    Not a `ray.tune.search.Searcher`: trials keep their identity over sessions, and PBT accepts it.
    """

    def __init__(self, study: Study, proposer: Proposer, book: StudyBook) -> None:
        self._study = study
        self._proposer = proposer
        self._book = book
        self._live: dict[int, Trial] = {}
        self.ends_at = float("inf")
        for record in sorted(book.trials.values(), key=lambda record: record.number):
            proposer.recall(record)
            if record.state and not study.is_population:
                proposer.tell(record)
        again = book.unfinished
        if study.is_population and again:
            # A generation is trained together, or not at all.
            again = [record for record in book.trials.values() if record.state != FAILED]
        self._again = sorted(again, key=lambda record: record.number)

    @property
    def total_samples(self) -> int:
        return self._study.budget.trials

    def add_configurations(self, experiments: Any) -> None:
        (self._experiment,) = experiments
        self._parser = _make_parser()

    def next_trial(self) -> Trial | None:
        if self.is_finished() or len(self._live) >= self._at_once():
            return None
        if self._again:
            record = self._again.pop(0)
        else:
            number = len(self._book.trials)
            record = self._book.suggest(number, *self._proposer.suggest(number))
        spec = {**self._experiment.spec, "config": self._config(record)}
        identifier = trial_id(record.number, self._book.losses[record.number])
        trial = _create_trial_from_spec(spec, self._parser, trial_id=identifier)
        self._live[record.number] = trial
        return trial

    def is_finished(self) -> bool:
        """Whether every trial has been handed out."""
        handed_out = not self._again and len(self._book.trials) >= self._study.budget.trials
        return bool(self._finished) or handed_out or time.monotonic() >= self.ends_at

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        record = self._book.trials[number_of(trial_id)]
        trial = self._live.pop(record.number, None)
        if trial is None:
            return
        if error and not record.state and self._book.will_return(trial, self._study.max_failures):
            self._book.losses[record.number] += 1
            self._again.insert(0, record)
            return
        self._book.end(record.number, *self._how_it_ended(record, error))
        if not self._study.is_population:
            self._proposer.tell(record)

    @property
    def dropped(self) -> list[int]:
        """Numbers of trials that Ray has given up without telling: the worker that was to take one over did
        not get rid of the one before in time. HyperBand would wait for them for ever."""
        return [number for number, trial in self._live.items() if trial.status == Trial.ERROR]

    def _at_once(self) -> int:
        # HyperBand and populations hold trials back until the others have come as far: all must be there,
        # and resources limit how many run.
        waits = self._study.is_population or self._study.scheduler.name == "hyperband"
        return self._study.budget.trials if waits else self._study.concurrent

    def _config(self, record: TrialRecord) -> dict[str, Any]:
        config: dict[str, Any] = {"number": record.number, "announce": False}
        if not self._study.is_population:
            start = record.checkpoints.get(max(record.checkpoints, default=0), "")
            return {**config, "start": start, "assignment": record.assignment}
        if self._book.losses[record.number]:
            return {**config, **self._where_it_stood(record)}
        done = last_generation(self._study, self._book)
        position = record.positions[done] if done else position_of(self._study, record.assignment)
        return {
            **config,
            **position,
            "start": record.checkpoints.get(done, ""),
            "announce": done > 0,
        }

    def _where_it_stood(self, record: TrialRecord) -> dict[str, Any]:
        """Of a population: a member lost within a session goes on from its last report or exchange."""
        epoch = max(record.positions, default=0)
        moves = [
            e for e in self._book.exchanges if e["number"] == record.number and e["epoch"] >= max(epoch, 1)
        ]
        if moves:
            donor = self._book.trials[moves[-1]["donor"]]
            return {**moves[-1]["position"], "start": donor.checkpoints[moves[-1]["epoch"]]}
        position = record.positions[epoch] if epoch else position_of(self._study, record.assignment)
        return {**position, "start": record.checkpoints.get(epoch, "")}

    def _how_it_ended(self, record: TrialRecord, error: bool) -> tuple[str, str]:
        if error:
            return FAILED, "its worker failed too often"
        if record.epochs >= self._study.budget.epochs:
            return FINISHED, "all epochs"
        if time.monotonic() >= self.ends_at:
            return PRUNED, "the time is over"
        return PRUNED, f"{self._study.scheduler.name} after epoch {record.epochs}"
