"""Running a study: Ray Tune around our training, MLflow beside it, and a book to go on from."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.tracking import RunTracker, start_run
from darkarc.tuning.book import FAILED, FINISHED, PRUNED, StudyBook
from darkarc.tuning.data_view import SearchView
from darkarc.tuning.figures import draw_figures
from darkarc.tuning.population import trial_id
from darkarc.tuning.ray_session import a_ray
from darkarc.tuning.storage import remove_sessions, storage_place
from darkarc.tuning.study import Study, StudyError, load_study
from darkarc.tuning.trial import Trainable, TrialSettings, make_trainable
from darkarc.tuning.winner import no_search, winner_document, write_winner

WORK = Path(".darkarc/tune")
"""Where studies live: outside DVC's outputs, which it deletes before a stage runs."""

BOOK = "book.jsonl"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's CSV, JSON and TensorBoard loggers cap a cluster at 50-100 results a second.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A study goes on from its own book; Ray's snapshots grow with the number of trials.
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    # The new output prints banners at every verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
}

_logger = logging.getLogger(__name__)

Conclusion = TypeVar("Conclusion")


class StudyInterrupted(KeyboardInterrupt):
    """The study was asked to stop, and goes on with `--resume`."""


@dataclass(frozen=True)
class StudyResult:
    """document: what the winner's file says; counts of trials by how they ended; epochs and seconds of
    training spent, over all trials; run_id: of the study in MLflow."""

    document: dict[str, Any]
    finished: int
    pruned: int
    failed: int
    epochs: int
    seconds: float
    run_id: str | None


def tune_stage(
    config: Config,
    study: str | Path | None,
    prepared: str | Path,
    out: str | Path,
    *,
    work: Path = WORK,
    storage: str | None = None,
    resume: bool = False,
    address: str | None = None,
    progress: bool = True,
) -> StudyResult | None:
    """The stage `tune`: run the study (a file; by default `tune.study`), write its winner to `out`.

    `storage`: a folder or URI that all machines of a cluster reach, for checkpoints of trials, which are
    removed when the study is over; `address`: of a Ray cluster. `resume` goes on with an interrupted study
    of the same parameters, data and code, or starts it if there is none. Without a study the file says so,
    and None is returned. Raises `StudyError`, and `StudyInterrupted` after Ctrl-C.
    """
    path = study or config.tune.study
    if study is None and not config.tune.search:
        write_winner(no_search(config), out)
        return None
    loaded = load_study(path, config)
    store = Store.open(prepared)
    result = run_study(
        config, loaded, store, work=work, storage=storage, resume=resume, address=address, progress=progress
    )
    write_winner(result.document, out)
    return result


def run_study(
    config: Config,
    study: Study,
    prepared: Store,
    *,
    work: Path = WORK,
    storage: str | None = None,
    resume: bool = False,
    address: str | None = None,
    progress: bool = True,
    trainable: Callable[[TrialSettings], Trainable] = make_trainable,
) -> StudyResult:
    """Run a study on the train and validation splits of a prepared store. Arguments as of `tune_stage`;
    `trainable` makes what Ray runs for each trial."""

    def conclude(book: StudyBook, folder: Path, parent: RunTracker) -> StudyResult:
        document = winner_document(config, study, book)
        for path in draw_figures(study, book, folder / "figures"):
            parent.log_artifact(path, "figures")
        parent.log_dict(document, "winner.yaml")
        return _result(book, document, parent.run_id)

    return conduct(
        config,
        study,
        prepared,
        conclude,
        work=work,
        storage=storage,
        resume=resume,
        address=address,
        progress=progress,
        trainable=trainable,
    )


def conduct(
    config: Config,
    study: Study,
    prepared: Store,
    conclude: Callable[[StudyBook, Path, RunTracker], Conclusion],
    *,
    kind: str = "study",
    work: Path = WORK,
    storage: str | None = None,
    resume: bool = False,
    address: str | None = None,
    progress: bool = True,
    trainable: Callable[[TrialSettings], Trainable] = make_trainable,
) -> Conclusion:
    """Run the trials of a study, then `conclude` (book, folder, the study's run): what that gives is
    returned. The study's run is named after `kind`. Other arguments as of `run_study`."""
    view = SearchView.of(prepared, study.train_share, config.seed)
    identity = study_identity(config, study, view)
    folder = Path(os.path.abspath(work)) / f"{study.name}-{_digest(identity)}"
    place = storage_place(storage, folder / "ray")
    _clear_the_way(folder, resume)
    with StudyBook(folder / BOOK, identity) as book:
        tags = {"darkarc.kind": kind, "darkarc.study": study.name}
        journal = folder / "parent.jsonl"
        with start_run(
            config, name=f"{kind} {study.name}", journal=journal, tags=tags, dataset=prepared
        ) as parent:
            parent.log_dict(study.dump(), "study.yaml")
            if not book.over:
                with _environment(ENVIRONMENT), a_ray(study, address):
                    settings = TrialSettings(config.dump(), study.dump(), os.path.abspath(view.path))
                    task = trainable(settings)
                    _Search(config, study, task, book, parent, folder, place, progress).run()
            result = conclude(book, folder, parent)
        book.finish()
        if storage is None:
            shutil.rmtree(place, ignore_errors=True)
        else:
            remove_sessions(place, [_session(folder, n) for n in range(1, book.sessions + 1)])
    return result


def study_identity(config: Config, study: Study, view: SearchView) -> dict[str, Any]:
    """What two sessions must share to be one study: the search, parameters, data, and code of training."""
    from darkarc.training import training_digest

    return {"study": study.dump(), "training": training_digest(config, view)}


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def _clear_the_way(folder: Path, resume: bool) -> None:
    """Decide what an earlier session of the same study means."""
    book = folder / BOOK
    content = book.read_text(encoding="utf-8", errors="replace") if book.exists() else ""
    if resume or '"kind":"suggestion"' not in content:  # refused before its first trial, nothing has begun
        folder.mkdir(parents=True, exist_ok=True)
        return
    if '"kind":"over"' not in content:
        raise StudyError(
            f"{folder}: this study was interrupted; go on with `--resume`, or remove the folder to start anew"
        )
    shutil.rmtree(folder)
    folder.mkdir(parents=True)


@dataclass(frozen=True)
class _Search:
    """What is left of a study, for Ray Tune to run. Arguments as of `run_study`."""

    config: Config
    study: Study
    trainable: Trainable
    book: StudyBook
    parent: RunTracker
    folder: Path
    place: str
    progress: bool

    def run(self) -> None:
        """One session of Ray Tune after the other, until nothing is left or the time is over."""
        seconds, name = self.study.budget.seconds, self.study.name
        ends_at = float("inf") if seconds is None else time.monotonic() + seconds
        while True:
            stood = self._progress()
            interrupted, errors = self._tune(ends_at)
            if self._is_whole() or time.monotonic() >= ends_at:
                break
            if interrupted:
                raise StudyInterrupted(f"study {name} was interrupted; `--resume` goes on with it")
            left = [record.number for record in self.book.unfinished]
            if self._progress() == stood:
                raise StudyError(f"study {name}: Ray Tune drops trials {left}; `--resume` tries them again")
            _logger.warning("study %s: Ray Tune has dropped trials %s; going on with them", name, left)
        if errors and not any(trial.rows for trial in self.book.trials.values()):
            raise StudyError(f"study {name}: every trial failed; the last one with: {errors[-1]}")

    def _is_whole(self) -> bool:
        return not self.book.unfinished and len(self.book.trials) >= self.study.budget.trials

    def _progress(self) -> list[tuple[int, str]]:
        return [(trial.epochs, trial.state) for trial in self.book.trials.values()]

    def _tune(self, ends_at: float) -> tuple[bool, list[str]]:
        """One session: whether a signal ended it, and the errors of its trials."""
        from ray import tune

        from darkarc.tuning.callback import StudyCallback, TrialsDropped
        from darkarc.tuning.display import StudyDisplay
        from darkarc.tuning.proposer import Proposer
        from darkarc.tuning.runs import TrialRuns
        from darkarc.tuning.schedulers import build_scheduler
        from darkarc.tuning.search import StudySearch
        from darkarc.tuning.time_limit import TimeLimit

        study, book = self.study, self.book
        scheduler = build_scheduler(study, book)
        search = StudySearch(study, Proposer(study, self.config), book)
        runs = TrialRuns(self.config, study, book, self.parent)
        display = StudyDisplay(study, book, progress=self.progress)
        callback = StudyCallback(study, book, search, runs, display, self.place)
        search.ends_at = callback.ends_at = ends_at
        resources = {"cpu": study.resources.cpus, "gpu": study.resources.gpus}
        session = _session(self.folder, book.begin_session())
        # It would tell of its own missing loggers, banners and snapshots; failures of trials are in the book.
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        try:
            with display, _signals_kept() as was_interrupted:
                with contextlib.suppress(TrialsDropped):
                    tune.run(
                        tune.with_resources(self.trainable, resources),
                        name=session,
                        search_alg=search,
                        scheduler=scheduler,
                        callbacks=[callback],
                        storage_path=self.place,
                        stop=TimeLimit(ends_at) if study.budget.seconds is not None else None,
                        max_failures=study.max_failures,
                        reuse_actors=True,
                        trial_name_creator=_name,
                        trial_dirname_creator=_name,
                        verbose=0,
                        raise_on_failed_trial=False,
                    )
                return was_interrupted(), callback.errors
        finally:
            runs.finish(self.config.tracking.patience_s)


def _session(folder: Path, number: int) -> str:
    """Name of the folder, below a study's storage, that one session of its driver writes to."""
    return f"{folder.name}-{number:03d}"


def _name(trial: Any) -> str:
    """The same however often the trial was lost: PB2 knows trials by their names."""
    return trial_id(trial.config["number"])


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables set inside, as they were outside; what the user has set stays."""
    mine = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for key in mine:
            os.environ.pop(key, None)


@contextlib.contextmanager
def _signals_kept() -> Iterator[Callable[[], bool]]:
    """Ray Tune takes SIGINT and SIGUSR1 and does not give them back. Inside, the function that is given
    tells whether one of them has come: then Ray has put back the handler of SIGINT that it found."""
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield lambda: signal.getsignal(signal.SIGINT) is kept[signal.SIGINT]
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _result(book: StudyBook, document: dict[str, Any], run_id: str | None) -> StudyResult:
    trials = list(book.trials.values())
    count = {state: sum(trial.state == state for trial in trials) for state in (FINISHED, PRUNED, FAILED)}
    return StudyResult(
        document=document,
        finished=count[FINISHED],
        pruned=count[PRUNED],
        failed=count[FAILED],
        epochs=sum(trial.epochs for trial in trials),
        seconds=sum(trial.seconds for trial in trials),
        run_id=run_id,
    )
