"""One trial, as it runs in a worker of Ray: a training whose epochs are reported, and which can go on."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkarc import config as configuration
from darkarc.config import Config
from darkarc.models import read_sealed, write_sealed
from darkarc.tracking.tracker import NullTracker
from darkarc.tuning.data_view import SearchView, open_view
from darkarc.tuning.memory import give_memory_back
from darkarc.tuning.metrics import calibration_error, million_parameters, worst
from darkarc.tuning.population import values_at
from darkarc.tuning.space import Assignment
from darkarc.tuning.study import Study, resolve
from darkarc.tuning.timing import clock, planned_epochs, threads

MIN_REPORT_S = 1.0
"""Where no scheduler decides by them, reports of a trial come no closer than this."""

LEAVING_S = 60
"""What a trial that was stopped or paused may take to leave its worker before the next one wants it; Ray's
own 2 seconds are short on a busy machine, and it forgets the trial that waited in vain."""

Trainable = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrialSettings:
    """All that a worker needs to know, small and the same for every trial: paths, never pixels."""

    config: dict[str, Any]
    study: dict[str, Any]
    prepared: str


def make_trainable(settings: TrialSettings) -> Trainable:
    """The function that Ray runs for each trial; its argument names the trial and where it starts."""

    def run_trial(trial: dict[str, Any]) -> None:
        # Here, and not where the driver is: workers of a cluster have an environment of their own.
        os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", str(LEAVING_S))
        try:
            _run(settings, trial)
        finally:
            give_memory_back()

    return run_trial


def trial_config(config: Config, study: Study, assignment: Assignment) -> Config:
    """The configuration that a trial trains: the study's budget and device, one page cache for all."""
    on_gpu = study.resources.gpus > 0
    fixed = {
        "train.epochs": study.budget.epochs,
        "train.sanity": False,  # once, before the final training, is enough
        "train.workers": 1,  # Ray Tune has the cores
        "device": "cuda" if on_gpu else "cpu",
        # Memory-mapped on the CPU: trials of a machine then share one copy of the pixels.
        "data.memory_gb": config.data.memory_gb if on_gpu else 1e-9,
    }
    return resolve(config, {**assignment, **fixed})


def _run(settings: TrialSettings, trial: dict[str, Any]) -> None:
    import torch
    from ray import tune

    from darkarc.training import TrainingError, train

    study = Study.model_validate(settings.study)
    torch.set_num_threads(threads(study))
    assignment = values_at(study, trial) if study.is_population else trial["assignment"]
    base = configuration.parse(settings.config)
    config = trial_config(base, study, assignment)
    view = open_view(settings.prepared, study.train_share, base.seed)
    with tempfile.TemporaryDirectory(dir=os.getcwd(), prefix="training-") as scratch:
        reporter = _Reporter(study, view, Path(scratch))
        try:
            found = _Found.of(trial["start"])
            if study.budget.trial_seconds is not None:
                reporter.planned = (
                    found.planned if found else planned_epochs(config, view, study, reporter.scratch)
                )
                config = resolve(config, {"train.epochs": reporter.planned})
            if found:
                reporter.go_on(config, found)
            if study.is_population:
                reporter.adopt(assignment, {key: trial[key] for key in study.space})
                if trial["announce"] and found and tune.get_checkpoint() is None:
                    reporter.rows.append(found.row)
                    reporter.report(ended="")
            reporter.began = clock(study)
            train(
                config, view, workdir=Path(scratch), tracker=NullTracker(), progress=False, on_epoch=reporter
            )
        except TrainingError as error:
            reporter.give_up(str(error))


@dataclass(frozen=True)
class _Found:
    """A checkpoint to go on from: the state of the trial, name and files of its training's checkpoint."""

    state: dict[str, Any]
    name: str
    files: dict[str, bytes]

    @classmethod
    def of(cls, start: str) -> "_Found | None":
        """The checkpoint that Ray hands in, else the one at `start`, else none."""
        from ray import tune

        checkpoint = tune.get_checkpoint() or (tune.Checkpoint(start) if start else None)
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            content = {path.name: read_sealed(path) for path in Path(folder).iterdir() if path.is_dir()}
        state = json.loads(content.pop("trial")["state.json"])
        ((name, files),) = content.items()
        return cls(state, name, files)

    @property
    def row(self) -> dict[str, float]:
        """Of its last epoch."""
        return dict(self.state["row"])

    @property
    def planned(self) -> int:
        return int(self.row["planned_epochs"])


@dataclass
class _Reporter:
    """Collects epochs and reports them with a checkpoint where a decision is due.

    rows: epochs not yet reported; position and schedule: of a population, what it trains with now, and
    with what since when; planned: epochs, where a timing decides; seconds: of training so far, by `clock`.
    """

    study: Study
    view: SearchView
    scratch: Path
    rows: list[dict[str, float]] = field(default_factory=list)
    position: dict[str, Any] = field(default_factory=dict)
    schedule: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: Path | None = None
    epoch: int = 0
    planned: int = 0
    seconds: float = 0.0
    began: float = float("nan")
    reported: float = field(default_factory=time.monotonic)

    def __call__(self, end: Any) -> bool:
        """The hook of `training.train`."""
        self.epoch, self.checkpoint = int(end.row["epoch"]), end.checkpoint
        due = end.is_last or self.epoch % self.study.report_interval == 0
        if self.study.scheduler.name == "none" and not end.is_last:
            due = due and time.monotonic() - self.reported >= MIN_REPORT_S
        now = clock(self.study)
        self.seconds += now - self.began
        row = {**end.row, "train_seconds": self.seconds}
        row["million_parameters"] = million_parameters(end.regressor)
        if self.planned:
            row["planned_epochs"] = self.planned
        if due and "val_calibration" in self.study.objectives:
            row["val_calibration"] = calibration_error(end.regressor, self.view)
        self.rows.append(row)
        if due:
            ended = "early stopping" if end.stopped_early else "all epochs" if end.is_last else ""
            self.report(ended)
        self.began = clock(self.study)
        return False

    def go_on(self, config: Config, found: _Found) -> None:
        """Take over a checkpoint."""
        from darkarc.training import training_digest

        folder = self.scratch / training_digest(config, self.view)[:16]
        self.checkpoint = write_sealed(folder / found.name, found.files)
        self.seconds, self.schedule = found.state["seconds"], found.state["schedule"]
        self.epoch = int(found.row["epoch"])

    def adopt(self, values: Assignment, position: dict[str, Any]) -> None:
        """Of a population: these values hold from here on."""
        self.position = position
        if not self.schedule or self.schedule[-1]["values"] != values:
            self.schedule = [step for step in self.schedule if step["epoch"] < self.epoch]
            self.schedule.append({"epoch": self.epoch, "values": values})

    def report(self, ended: str) -> None:
        from ray import tune
        from ray.train._internal.session import get_session

        assert self.checkpoint is not None
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="report-") as folder:
            state = {"seconds": self.seconds, "schedule": self.schedule, "row": self.rows[-1]}
            write_sealed(Path(folder) / "trial", {"state.json": json.dumps(state).encode()})
            os.symlink(self.checkpoint, Path(folder) / self.checkpoint.name, target_is_directory=True)
            metrics = self._metrics(ended)
            # Ray counts checkpoints, and counts anew when it pauses or clones a trial, writing over what
            # another one may be reading: named by its epoch, a trial's checkpoint stays what it is.
            get_session().storage.current_checkpoint_index = self.epoch - 1
            self.rows, self.reported = [], time.monotonic()
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))

    def give_up(self, reason: str) -> None:
        """The training diverged: the worst value, and why."""
        from ray import tune

        row = {"epoch": self.epoch + 1, "train_seconds": self.seconds}
        self.rows.append(row | {name: worst(name) for name in self.study.objectives})
        tune.report({**self._metrics("diverged"), "failure": reason})

    def _metrics(self, ended: str) -> dict[str, Any]:
        last = self.rows[-1]
        shown = {name: last[name] for name in self.study.objectives}
        return {
            **shown,
            "epoch": int(last["epoch"]),
            "rows": self.rows,
            "position": self.position,
            "schedule": self.schedule,
            "ended": ended,
        }
