"""The tracker of one run: every record goes into the journal first, and from there to MLflow."""

import contextlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkarc.tracking import _deliveries
from darkarc.tracking._sender import Sender
from darkarc.tracking.journal import Journal
from darkarc.tracking.lineage import dataset_facts
from darkarc.tracking.location import shown, without_password

if TYPE_CHECKING:
    from darkarc.data.store import Store

_logger = logging.getLogger(__name__)

_PLAIN_KEY = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-. /:")


class RunTracker:
    """A `Tracker` whose records go to the journal first and from there to MLflow."""

    def __init__(self, journal: Journal, uri: str) -> None:
        self._journal = journal
        self._sender = Sender(journal, uri)
        self.tracking_uri = uri

    @property
    def run_id(self) -> str | None:
        return self._journal.run_id

    @property
    def token(self) -> str:
        """Names the run even before the store has given it an id; a tag of the run."""
        return str(self._journal.run["token"])

    @property
    def experiment_id(self) -> str | None:
        """Id of the run's experiment; None while the store does not answer."""
        if self.run_id is None:
            return None
        try:
            return str(self._sender.client.get_run(self.run_id).info.experiment_id)
        except Exception as error:
            where = shown(self.tracking_uri)
            _logger.warning("%s: cannot ask for the experiment: %s", where, without_password(error))
            return None

    def log_params(self, params: Mapping[str, Any]) -> None:
        limit = _deliveries.MAX_PARAM_CHARACTERS
        self._record(
            "params", {"values": {_key(key): _deliveries.shorten(v, limit) for key, v in params.items()}}
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        values: dict[str, float] = {}
        for key, value in metrics.items():
            try:
                point = float(value)
            except (TypeError, ValueError):
                _logger.warning("metric %s at step %s is not a number: %r; left out", key, step, value)
                continue
            before = self._journal.point(_key(key), int(step))
            if before is None or not _same(before, point):
                values[_key(key)] = point
        if values:
            self._record("metrics", {"step": int(step), "values": values})

    def set_tags(self, tags: Mapping[str, Any], *, keep: bool = False) -> None:
        """Labels of the run; with `keep` those that are already there keep their values."""
        self._record("tags", {"values": tag_values(tags), "keep": keep})

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        self._record("artifact", {"path": str(Path(path).resolve()), "folder": folder})

    def log_dict(self, data: Mapping[str, Any], name: str) -> None:
        self._record("document", {"name": name, "data": _plain(data)})

    def log_dataset(self, store: "Store", context: str = "training") -> None:
        """A store as an input of the run; `context` is "training" or "evaluation"."""
        self._record("dataset", dataset_facts(store, context))

    def flush(self, patience_s: float = 0.0) -> bool:
        """Send what is pending, trying for at most `patience_s`; whether all has been sent."""
        return self._sender.send(patience_s=patience_s)

    def _record(self, kind: str, body: Mapping[str, Any]) -> None:
        self._journal.append(kind, body)
        self._sender.send()

    def open_run(self, wanted: str | None, facts: Mapping[str, Any]) -> None:
        """Tie the journal to its run: the one it had, unless that is gone or another one is wanted."""
        journal, before = self._journal, self._journal.run_id
        gone = not self.run_is_usable()
        moves = wanted is not None and wanted != before
        if journal.run and gone:
            _logger.warning(
                "run %s is gone from %s; its records go to a new run", before, shown(self.tracking_uri)
            )
        elif journal.run and moves and before is not None:
            self._leave(before, str(wanted))
        if not journal.run or gone or moves:
            journal.begin(run_id=wanted, **facts)
        self._sender.open_run()

    def run_is_usable(self) -> bool:
        """False if the store answers that the journal's run is not there (any more)."""
        return self.run_id is None or self._sender.run_is_usable(self.run_id)

    def _leave(self, before: str, wanted: str) -> None:
        """The same work goes on in another run: end the one that was interrupted."""
        try:
            if self._sender.client.get_run(before).info.status == "RUNNING":
                self._sender.client.set_tag(before, "darkarc.continued_in", wanted)
                self._sender.client.set_terminated(before, status="KILLED")
        except Exception as error:
            where = shown(self.tracking_uri)
            _logger.warning("%s: run %s could not be ended: %s", where, before, without_password(error))

    def end_run(self, status: str, patience_s: float) -> bool:
        """Give the run its status; whether everything has reached the store."""
        self._journal.append("status", {"status": status}, sync=True)
        return self._sender.send(patience_s=patience_s)

    def next_system_step(self) -> int:
        """Samples of the machine go on counting where another stage of the same run stopped."""
        last = self._journal.last_step("system/")
        if last is None and self._journal.run.get("run_id") is not None:
            with contextlib.suppress(Exception):
                history = self._sender.client.get_metric_history(
                    str(self.run_id), "system/cpu_utilization_percentage"
                )
                last = max((point.step for point in history), default=None)
        return 1 if last is None else last + 1


def _key(name: str) -> str:
    """A name that MLflow takes: other characters become `_`."""
    plain = "".join(character if character in _PLAIN_KEY else "_" for character in str(name))
    return plain[: _deliveries.MAX_KEY_CHARACTERS] or "_"


def tag_values(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags with names and lengths that MLflow takes."""
    limit = _deliveries.MAX_TAG_CHARACTERS
    return {_key(key): _deliveries.shorten(value, limit) for key, value in tags.items()}


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _plain(value: Any) -> Any:
    """Nested data as JSON types; what has none becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)
