"""What Ray Tune tells about trials, passed on: to the book first, then to MLflow and the terminal."""

import contextlib
import time
from typing import TYPE_CHECKING, Any

from ray.tune.logger import LoggerCallback

from darkarc.tuning.book import FAILED, FINISHED, PRUNED, StudyBook
from darkarc.tuning.display import StudyDisplay
from darkarc.tuning.runs import TrialRuns
from darkarc.tuning.search import StudySearch
from darkarc.tuning.study import Study

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

KEPT_CHECKPOINTS = 3
"""Of a trial: the last, the one before (of a population's generation that is not complete), and one more."""


class TrialsDropped(Exception):
    """Ray has dropped trials; a new session of it takes them up again."""


class StudyCallback(LoggerCallback):
    def __init__(
        self,
        study: Study,
        book: StudyBook,
        search: StudySearch,
        runs: TrialRuns,
        display: StudyDisplay,
        storage: str,
    ) -> None:
        self._study = study
        self._book = book
        self._search = search
        self._runs = runs
        self._display = display
        self._storage = storage.rstrip("/")
        self._written: dict[int, list[str]] = {}
        self.errors: list[str] = []
        self.ends_at = float("inf")

    def log_trial_start(self, trial: "Trial") -> None:
        self._runs.start(trial.config["number"])
        self._display.running.add(trial.config["number"])

    def log_trial_result(self, iteration: int, trial: "Trial", result: dict[str, Any]) -> None:
        number = trial.config["number"]
        self._book.report(
            number,
            result["rows"],
            checkpoint=self._checkpoint(trial, result),
            position=result["position"],
            schedule=result["schedule"],
            end=self._end(result),
        )
        self._runs.reported(number)
        self._runs.flush()

    def log_trial_end(self, trial: "Trial", failed: bool = False) -> None:
        number = trial.config["number"]
        if failed and trial.error_file:
            self.errors.append(_last_line(trial.error_file))
        self._display.running.discard(number)
        if not self._book.trials[number].state:
            return  # it comes back
        # Ray's averages of every number of a trial take more memory than all the rest of it.
        trial.run_metadata.metric_analysis = {}
        trial.run_metadata.metric_n_steps = {}
        self._drop_checkpoints(trial, 0 if not self._study.is_population else KEPT_CHECKPOINTS)
        self._runs.end(number)

    def on_step_end(self, iteration: int, trials: list["Trial"], **info: Any) -> None:
        self._runs.flush()
        self._display.refresh()
        if dropped := self._search.dropped:
            raise TrialsDropped(dropped)

    def _end(self, result: dict[str, Any]) -> tuple[str, str] | None:
        """State and reason where this result is a trial's last."""
        if result.get("failure"):
            return FAILED, result["failure"]
        if result["ended"]:
            return FINISHED, result["ended"]
        if not result.get("done"):  # the scheduler decides so
            return None
        over = time.monotonic() >= self.ends_at
        return (
            PRUNED,
            "the time is over" if over else f"{self._study.scheduler.name} after epoch {result['epoch']}",
        )

    def _checkpoint(self, trial: "Trial", result: dict[str, Any]) -> str:
        """Where the report's checkpoint lies ("" for none); older ones of the trial are dropped."""
        name = result.get("checkpoint_dir_name")
        if not name:
            return ""
        self._written.setdefault(trial.config["number"], []).append(name)
        self._drop_checkpoints(trial, KEPT_CHECKPOINTS)
        return f"{self._storage}/{trial.storage.experiment_dir_name}/{trial.storage.trial_dir_name}/{name}"

    def _drop_checkpoints(self, trial: "Trial", keep: int) -> None:
        written = self._written.get(trial.config["number"], [])
        while len(written) > keep:
            folder = f"{trial.storage.trial_fs_path}/{written.pop(0)}"
            with contextlib.suppress(OSError):
                trial.storage.storage_filesystem.delete_dir(folder)


def _last_line(error_file: str) -> str:
    try:
        with open(error_file, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
    except OSError:
        return "its error file is gone"
    return lines[-1] if lines else "no message"
