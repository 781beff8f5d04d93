"""The book of a study: every suggestion, every epoch and every end, durable before anybody hears of it.

All that a study can go on from after a kill is here, in lines of JSON with checksums
(`tracking.Journal`): nothing has to be unpickled, and one driver at a time holds it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from darkarc.tracking import Journal
from darkarc.tuning.space import Assignment
from darkarc.tuning.study import StudyError

FINISHED, PRUNED, FAILED = "finished", "pruned", "failed"


@dataclass
class TrialRecord:
    """What is known of one trial.

    rows: epoch (from 1, in order) to metrics, which hold `time_ms` too; checkpoints: epoch to where the
    trial can go on; positions: epoch to the place in a population's space; schedule: of a population, the
    parameters and since when; state: "" while it is not over.
    """

    number: int
    assignment: Assignment
    hints: dict[str, Any]
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    checkpoints: dict[int, str] = field(default_factory=dict)
    positions: dict[int, dict[str, Any]] = field(default_factory=dict)
    schedule: list[dict[str, Any]] = field(default_factory=list)
    state: str = ""
    reason: str = ""
    run_id: str = ""

    @property
    def epochs(self) -> int:
        return next(reversed(self.rows), 0)

    @property
    def last(self) -> dict[str, float]:
        return self.rows[self.epochs] if self.rows else {}

    @property
    def seconds(self) -> float:
        return self.last.get("train_seconds", 0.0)


class StudyBook:
    """An open book. Raises `StudyError` where it belongs to another study, `JournalError` if in use."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.trials: dict[int, TrialRecord] = {}
        self.exchanges: list[dict[str, Any]] = []
        self.losses: Counter[int] = Counter()  # of this session: trials whose worker died before it worked
        self.over = False
        self.sessions = 0
        self._journal = Journal(path)
        if not self._journal.records:
            self._journal.append("study", dict(identity), sync=True)
        elif self._journal.records[0].body != dict(identity):
            self.close()
            raise StudyError(f"{path}: holds another study; remove its folder to start anew")
        for record in self._journal.records[1:]:
            self._take(record.kind, record.body, record.time_ms)

    def __enter__(self) -> "StudyBook":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._journal.close()

    def begin_session(self) -> int:
        """Number of this driver's session, from 1; every one writes its trials to a folder of its own."""
        self._note("session", {})
        return self.sessions

    def suggest(self, number: int, assignment: Assignment, hints: Mapping[str, Any]) -> TrialRecord:
        """Book a new trial; `hints` is what its sampler will want to know again."""
        self._note("suggestion", {"number": number, "assignment": assignment, "hints": dict(hints)})
        return self.trials[number]

    def report(
        self,
        number: int,
        rows: list[dict[str, float]],
        *,
        checkpoint: str,
        position: Mapping[str, Any] | None = None,
        schedule: list[dict[str, Any]] | None = None,
        end: tuple[str, str] | None = None,
    ) -> None:
        """Book the epochs since the trial's last report; those already there with these values are left.

        `end` is (state, reason) where this report is the trial's last. Both stand in one record: no kill
        comes between a rung's result and what was decided on it.
        """
        trial = self.trials[number]
        new = [row for row in rows if _measured(trial.rows.get(int(row["epoch"]), {})) != _measured(row)]
        body = {"number": number, "epoch": int(rows[-1]["epoch"]), "rows": new, "checkpoint": checkpoint}
        if schedule:
            body |= {"position": dict(position or {}), "schedule": schedule}
        if end is not None and not trial.state:
            body["end"] = {"state": end[0], "reason": end[1]}
        self._note("report", body)

    def exchange(self, epoch: int, number: int, donor: int, position: Mapping[str, Any]) -> None:
        """Book that after `epoch` trial `number` goes on with the weights of `donor`, from `position`."""
        event = {"epoch": epoch, "number": number, "donor": donor, "position": dict(position)}
        if event not in self.exchanges:
            self._note("exchange", event)

    def end(self, number: int, state: str, reason: str) -> None:
        if not self.trials[number].state:
            self._note("end", {"number": number, "state": state, "reason": reason})

    def will_return(self, trial: Any, max_failures: int) -> bool:
        """Whether a trial that Ray gives up goes out again: its worker died while it was being set up, and
        such a trial Ray does not start once more, whatever `max_failures` says."""
        return bool(trial.status == "PENDING") and self.losses[trial.config["number"]] < max_failures

    def name_run(self, number: int, run_id: str) -> None:
        self._note("run", {"number": number, "run_id": run_id})

    def finish(self) -> None:
        """The study is over: nothing is left to go on with."""
        self._note("over", {}, sync=True)

    @property
    def unfinished(self) -> list[TrialRecord]:
        return [trial for trial in self.trials.values() if not trial.state]

    def _note(self, kind: str, body: dict[str, Any], *, sync: bool = False) -> None:
        record = self._journal.append(kind, body, sync=sync)
        self._take(kind, record.body, record.time_ms)

    def _take(self, kind: str, body: Mapping[str, Any], time_ms: int) -> None:
        if kind == "suggestion":
            number = body["number"]
            self.trials[number] = TrialRecord(number, dict(body["assignment"]), dict(body["hints"]))
        elif kind == "report":
            trial = self.trials[body["number"]]
            for row in body["rows"]:
                trial.rows[int(row["epoch"])] = {**row, "time_ms": time_ms}
            trial.checkpoints[body["epoch"]] = body["checkpoint"]
            if "schedule" in body:
                trial.positions[body["epoch"]] = body["position"]
                trial.schedule = body["schedule"]
            if "end" in body:
                trial.state, trial.reason = body["end"]["state"], body["end"]["reason"]
        elif kind == "exchange":
            self.exchanges.append(dict(body))
        elif kind == "end":
            trial = self.trials[body["number"]]
            trial.state, trial.reason = body["state"], body["reason"]
        elif kind == "run":
            self.trials[body["number"]].run_id = body["run_id"]
        elif kind == "session":
            self.sessions += 1
        else:
            self.over = True


def _measured(row: Mapping[str, float]) -> dict[str, float]:
    """Without durations: the same epoch, trained again, took another time."""
    return {
        key: value for key, value in row.items() if key not in ("time_ms", "train_seconds", "epoch_seconds")
    }
