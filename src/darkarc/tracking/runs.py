"""One run of the experiment: opened, recorded through its journal, and ended with the right status."""

import contextlib
import getpass
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from darkarc.config import Config
from darkarc.durable import write_file
from darkarc.tracking._deliveries import kept_artifact
from darkarc.tracking._sender import TOKEN_TAG
from darkarc.tracking.errors import JournalError, TrackingError
from darkarc.tracking.journal import Journal
from darkarc.tracking.lineage import lineage_tags
from darkarc.tracking.location import open_client, project_root, shown, tracking_uri, without_password
from darkarc.tracking.run_tracker import RunTracker, tag_values
from darkarc.tracking.system_metrics import SystemMetrics

if TYPE_CHECKING:
    from darkarc.data.store import Store

_logger = logging.getLogger(__name__)

RUN_VARIABLE = "MLFLOW_RUN_ID"


class Terminated(SystemExit):
    """SIGTERM, raised in the main thread so that the run ends as KILLED and files are closed."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextlib.contextmanager
def start_run(
    config: Config,
    *,
    name: str,
    journal: str | Path,
    run_id: str | None = None,
    tags: Mapping[str, Any] | None = None,
    dataset: "Store | None" = None,
    context: str = "training",
) -> Iterator[RunTracker]:
    """Open a run, give its tracker, and end it: FINISHED, FAILED on an error, KILLED on Ctrl-C or SIGTERM.

    `name` is the stage ("train") and names a new run. `journal` is a file; where it already holds a run,
    that run goes on. With `run_id` the given run goes on ("evaluate" in the run of "train"), and what the
    journal holds of any other run is sent there first. Without it, a run that `mlflow run` has made
    (`MLFLOW_RUN_ID`) is used. `dataset` becomes an input of the run, for `context` "training" or
    "evaluation". A nested run has its parent's id in the tag `mlflow.parentRunId`.

    An unreachable server never raises here. Raises `TrackingError` where the store answers that the run
    cannot be, and `JournalError` where another process holds the journal.
    """
    uri = tracking_uri()
    # Taken out of the environment: else every worker process would take this run for its own.
    inherited = os.environ.pop(RUN_VARIABLE, None)
    send_unsent()
    held = _open_journal(Path(journal), run_id)
    status = "FAILED"
    machine: SystemMetrics | None = None
    try:
        tracker = RunTracker(held, uri)
        tracker.open_run(run_id or inherited, _run_facts(config, name, tags or {}))
        _describe(tracker, config, name, tags or {}, dataset, context, joins=run_id is not None)
        if config.tracking.system_metrics:
            machine = SystemMetrics(
                tracker,
                interval_s=config.tracking.system_metrics_interval_s,
                first_step=tracker.next_system_step(),
            )
            machine.start()
        try:
            with _sigterm_raises():
                yield tracker
            status = "FINISHED"
        except (KeyboardInterrupt, Terminated):
            status = "KILLED"
            raise
        except SystemExit as end:
            status = "FAILED" if end.code else "FINISHED"
            raise
        finally:
            if machine is not None:
                machine.stop()
            if not tracker.end_run(status, config.tracking.patience_s):
                _keep_unsent(held)
    finally:
        held.close()


def replay(journal: str | Path, *, patience_s: float = 30.0) -> int:
    """Send what a journal still holds to the tracking store; returns how many records went.

    A run that was killed, so that nobody ended it, ends as KILLED. Raises `TrackingError` if the store
    does not take everything within `patience_s`, `JournalError` if the journal is damaged or in use.
    """
    path = Path(journal)
    if not path.is_file():
        raise JournalError(f"{path}: no such journal")
    uri = tracking_uri()
    held = Journal(path)
    try:
        if not held.run:
            return 0
        tracker = RunTracker(held, uri)
        if not held.records or held.records[-1].kind != "status":
            held.append("status", {"status": "KILLED"}, sync=True)
        if held.run_id is not None and not tracker.run_is_usable():
            held.begin(**(held.run | {"run_id": None}))
        waiting = len(held.pending)
        if not tracker.flush(patience_s):
            left = f"{len(held.pending)} of {waiting} still wait in {path}"
            raise TrackingError(f"{shown(uri)} does not take the records; {left}")
        return waiting
    finally:
        held.close()


def send_unsent() -> None:
    """Send the journals that earlier runs left behind because the store did not answer."""
    for journal in sorted(_unsent_folder().glob("*.jsonl")):
        try:
            replay(journal, patience_s=0.0)
        except JournalError as error:
            _logger.warning("%s", error)
            continue
        except TrackingError as error:
            if not _answers():
                return
            _logger.warning("%s", error)  # this run's experiment may be gone, say: the others are sent
            continue
        shutil.rmtree(journal.with_suffix(""), ignore_errors=True)
        journal.unlink()
        journal.with_name(journal.name + ".lock").unlink(missing_ok=True)


def _answers() -> bool:
    try:
        open_client().search_experiments(max_results=1)
    except Exception:
        return False
    return True


def find_run(token: str) -> tuple[str, str] | None:
    """Id and experiment id of the run whose journal has this token; None if no store knows it."""
    try:
        client = open_client()
        experiments = [item.experiment_id for item in client.search_experiments()]
        found = client.search_runs(experiments, f"tags.`{TOKEN_TAG}` = '{token}'", max_results=1)
    except Exception as error:
        where = shown(tracking_uri(create=False))
        _logger.warning("%s: cannot look for the run: %s", where, without_password(error))
        return None
    return (found[0].info.run_id, found[0].info.experiment_id) if found else None


def run_tags(run_id: str) -> dict[str, str]:
    """Tags of a run; none, and a warning, if the store does not answer."""
    try:
        return dict(open_client().get_run(run_id).data.tags)
    except Exception as error:
        where = shown(tracking_uri(create=False))
        _logger.warning("%s: cannot read run %s: %s", where, run_id, without_password(error))
        return {}


def _unsent_folder() -> Path:
    return project_root() / ".darkarc" / "unsent"


def _keep_unsent(journal: Journal) -> None:
    """A copy out of the way: who owns the journal may remove it when its own work is done.

    With copies of the artifacts, for the next run writes its own in their places.
    """
    kept = _unsent_folder() / f"{journal.run['token']}.jsonl"
    try:
        for record in journal.pending:
            if record.kind == "artifact":
                _copy(Path(record.body["path"]), kept_artifact(kept, record))
        write_file(kept, journal.path.read_bytes())
    except OSError as error:
        kept = journal.path
        _logger.warning("cannot copy the journal: %s", error)
    _logger.warning(
        "the tracking store does not answer: %d records of this run wait in %s. The next run of the project "
        'sends them, and so does darkarc.tracking.replay("%s").',
        len(journal.pending),
        kept,
        kept,
    )


def _copy(source: Path, target: Path) -> None:
    """A file or a folder; nothing where there is none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.is_file():
        shutil.copyfile(source, target)


def _open_journal(path: Path, run_id: str | None) -> Journal:
    """The journal, empty if what it held belongs to another run than the one asked for."""
    journal = Journal(path)
    if run_id is None or not journal.run or journal.run_id == run_id:
        return journal
    journal.close()
    try:
        replay(path, patience_s=0.0)
    except JournalError:
        raise
    except TrackingError:
        _keep_unsent(journal)
    path.unlink()
    return Journal(path)


def _run_facts(config: Config, name: str, tags: Mapping[str, Any]) -> dict[str, Any]:
    """All that is needed to create the run, now or when the store answers."""
    first = {"mlflow.source.name": f"darkarc {name}", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):
        first["mlflow.user"] = getpass.getuser()
    return {
        "experiment": config.tracking.experiment,
        "name": name,
        "start_time_ms": time.time_ns() // 1_000_000,
        "tags": first | tag_values(tags),
    }


def _describe(
    tracker: RunTracker,
    config: Config,
    name: str,
    tags: Mapping[str, Any],
    dataset: "Store | None",
    context: str,
    *,
    joins: bool,
) -> None:
    """Lineage, parameters, configuration and data. A stage that joins a run leaves what it finds there."""
    lineage = lineage_tags(config, dataset)
    tracker.set_tags(lineage, keep=joins)
    if joins and "darkarc.git_commit" in lineage:
        tracker.set_tags({f"darkarc.git_commit.{name}": lineage["darkarc.git_commit"]})
    if tags:
        tracker.set_tags(tags)
    tracker.log_params({f"cfg.{key}": value for key, value in config.flat().items()})
    tracker.log_dict(config.dump(), f"config.{name}.yaml" if joins else "config.yaml")
    if dataset is not None:
        tracker.log_dataset(dataset, context)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the main thread, unless the program handles SIGTERM itself."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def _raise(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
