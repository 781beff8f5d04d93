"""What a person sees of a study: a live table on a terminal, a line a finished trial elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from darkarc.tuning.book import FAILED, FINISHED, PRUNED, StudyBook, TrialRecord
from darkarc.tuning.study import Study
from darkarc.tuning.winner import best_trial

REFRESH_S = 0.5
MOST_OF_THE_DRIVER = 0.02
"""Share of the driver's time that showing a study may take."""

SHOWN = 12


class StudyDisplay:
    """A context: shows the book of a study while it is open. `running` is kept by the caller."""

    def __init__(self, study: Study, book: StudyBook, *, progress: bool) -> None:
        self.running: set[int] = set()
        self._study = study
        self._book = book
        self._progress = progress
        self._console = Console(stderr=True)
        self._live = progress and self._console.is_terminal
        self._began = self._refreshed = time.monotonic()
        self._pause_s = REFRESH_S
        self._done_before = sum(self._work(trial) for trial in book.trials.values())
        self._told = {trial.number for trial in book.trials.values() if trial.state}
        self._screen = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> "StudyDisplay":
        if self._live:
            self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._screen.stop()

    def refresh(self) -> None:
        """Show what is new, at most twice a second, and of thousands of trials less often: what is shown
        of a study takes time with every trial that it has."""
        began = time.monotonic()
        if not self._progress or began - self._refreshed < self._pause_s:
            return
        if self._live:
            self._screen.update(self.table(), refresh=True)
        else:
            self._tell()
        self._refreshed = time.monotonic()
        self._pause_s = max(REFRESH_S, (self._refreshed - began) / MOST_OF_THE_DRIVER)

    def _tell(self) -> None:
        ended = [t for t in self._book.trials.values() if t.state and t.number not in self._told]
        summary = self.summary() if ended else ""
        for trial in ended:
            self._told.add(trial.number)
            print(f"{self._line(trial)}; {summary}", file=sys.stderr, flush=True)

    def table(self) -> Table:
        """The last trials, running ones first, under a line that sums the study up."""
        names = list(self._study.objectives)
        table = Table(title=f"study {self._study.name}", caption=self.summary(), title_justify="left")
        for heading in ("trial", "state", "epochs", *names, "searched"):
            table.add_column(heading, no_wrap=heading != "searched")
        trials = sorted(self._book.trials.values(), key=lambda t: (t.number not in self.running, -t.number))
        best = best_trial(self._study, self._book)
        for trial in trials[:SHOWN]:
            state = "running" if trial.number in self.running else trial.state or "waiting"
            values = [_number(trial.last.get(name)) for name in names]
            searched = ", ".join(
                f"{key.partition('.')[2]}={_number(v)}" for key, v in self._values(trial).items()
            )
            style = "bold" if best is not None and trial.number == best.number else ""
            epochs = f"{trial.epochs}/{self._length(trial)}"
            table.add_row(str(trial.number), state, epochs, *values, searched, style=style)
        return table

    def summary(self) -> str:
        trials = self._book.trials.values()
        count = {state: sum(t.state == state for t in trials) for state in (FINISHED, PRUNED, FAILED)}
        parts = [f"{len(trials)} of {self._study.budget.trials} trials", f"{len(self.running)} running"]
        parts += [f"{n} {state}" for state, n in count.items() if n]
        best = best_trial(self._study, self._book)
        if best is not None:
            values = ", ".join(f"{name} {_number(best.last[name])}" for name in self._study.objectives)
            parts.append(f"best so far: {values} (trial {best.number})")
        return " · ".join([*parts, self._time_left()])

    def _time_left(self) -> str:
        """From the pace of this session: what the rest of the trials would take if none is stopped."""
        elapsed = time.monotonic() - self._began
        trials, budget = self._book.trials.values(), self._study.budget
        done = sum(self._work(trial) for trial in trials) - self._done_before
        left = sum(max(0.0, self._whole() - self._work(t)) for t in trials if not t.state)
        left += (budget.trials - len(trials)) * self._mean_work()
        if done <= 0:
            return "time left: not known yet"
        seconds = elapsed / done * left
        if budget.seconds is not None:
            seconds = min(seconds, max(0.0, budget.seconds - elapsed))
        return f"about {_duration(seconds)} left"

    def _work(self, trial: TrialRecord) -> float:
        """Epochs behind a trial; seconds where those are what trials get."""
        return trial.seconds if self._study.budget.trial_seconds is not None else float(trial.epochs)

    def _whole(self) -> float:
        return self._study.budget.trial_seconds or float(self._study.budget.epochs)

    def _mean_work(self) -> float:
        ended = [self._work(trial) for trial in self._book.trials.values() if trial.state]
        return sum(ended) / len(ended) if ended else self._whole()

    def _length(self, trial: TrialRecord) -> str:
        if self._study.budget.trial_seconds is None:
            return str(self._study.budget.epochs)
        planned = trial.last.get("planned_epochs")
        return "?" if planned is None else str(int(planned))

    def _values(self, trial: TrialRecord) -> dict[str, object]:
        if self._study.is_population and trial.schedule:
            return dict(trial.schedule[-1]["values"])
        return dict(trial.assignment)

    def _line(self, trial: TrialRecord) -> str:
        values = ", ".join(f"{name} {_number(trial.last.get(name))}" for name in self._study.objectives)
        return f"trial {trial.number} {trial.state} ({trial.reason}): {values}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
