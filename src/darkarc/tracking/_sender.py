"""Brings a journal's records to MLflow: in order, in batches, each exactly once, and without haste.

A record counts as sent when the store has answered; the journal then holds an acknowledgement. If
the process dies in between, the record is sent again, and that changes nothing: a metric is one row for
each (run, key, timestamp, step, value), a tag and an artifact overwrite themselves, a parameter that is
there is left out, and a run is found again by the journal's token in its tags.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from darkarc.tracking import _deliveries
from darkarc.tracking.errors import TrackingError
from darkarc.tracking.journal import Journal, Record
from darkarc.tracking.location import experiment_id, open_client, shown, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

_logger = logging.getLogger(__name__)

TOKEN_TAG = "darkarc.journal"
REFUSED_TAG = "darkarc.refused"
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

_REJECTED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
_MISCONFIGURED = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND")


class Sender:
    """Sends one journal to one store, and never raises in `send` for what the store does."""

    def __init__(self, journal: Journal, uri: str) -> None:
        self._journal = journal
        self._uri = uri
        self._client: MlflowClient | None = None
        self._busy = threading.Lock()
        self._retry_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._told = False

    @property
    def client(self) -> "MlflowClient":
        if self._client is None:
            self._client = open_client(self._uri)
        return self._client

    def open_run(self) -> None:
        """Create the journal's run, or set it to RUNNING again.

        An unreachable store is only warned about. Raises `TrackingError` if the store answers that it
        cannot be: no permission, no such run, a database of another version.
        """
        try:
            self._ensure_run()
            if self._journal.run_id is not None:
                self.client.update_run(self._journal.run_id, status="RUNNING")
        except TrackingError:
            raise
        except Exception as error:
            if is_final(error):
                raise TrackingError(f"{shown(self._uri)}: {without_password(error)}") from error
            self._wait_before_next_try(error)

    def run_is_usable(self, run_id: str) -> bool:
        """Whether the store still has the run; True if it cannot be asked."""
        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except Exception as error:
            return error_code(error) != "RESOURCE_DOES_NOT_EXIST"

    def send(self, *, patience_s: float | None = None) -> bool:
        """Send what is pending.

        Without `patience_s` it returns at once while a store that failed is given time to recover;
        with it, it tries again until all is sent or the time is over.
        """
        if not self._busy.acquire(blocking=patience_s is not None):
            return False
        try:
            give_up_at = time.monotonic() + (patience_s or 0.0)
            if patience_s is not None:
                self._retry_at, self._pause_s = 0.0, FIRST_PAUSE_S
            while not self._try_once():
                if time.monotonic() >= give_up_at:
                    return False
                wake_at = min(self._retry_at, give_up_at)
                time.sleep(max(0.0, wake_at - time.monotonic()))
                self._retry_at = min(self._retry_at, give_up_at)
            return True
        finally:
            self._busy.release()

    def _try_once(self) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        try:
            self._ensure_run()
            for batch in batches(self._journal.pending):
                self._deliver(batch)
        except Exception as error:
            self._wait_before_next_try(error)
            return False
        if self._told:
            _logger.warning("%s answers again; what was recorded meanwhile has been sent", shown(self._uri))
        self._told, self._pause_s, self._retry_at = False, FIRST_PAUSE_S, 0.0
        return True

    def _ensure_run(self) -> None:
        journal = self._journal
        if journal.run_id is not None:
            return
        run = journal.run
        experiment = experiment_id(self.client, self._uri, run["experiment"])
        found = self.client.search_runs([experiment], f"tags.`{TOKEN_TAG}` = '{run['token']}'", max_results=1)
        created = (
            found[0]
            if found
            else self.client.create_run(
                experiment,
                start_time=run["start_time_ms"],
                tags=run["tags"] | {TOKEN_TAG: run["token"]},
                run_name=run["name"],
            )
        )
        journal.acknowledge(0, created.info.run_id)

    def _deliver(self, batch: Sequence[Record]) -> None:
        run_id = self._journal.run_id
        assert run_id is not None
        last = batch[-1].seq
        is_last = last == self._journal.records[-1].seq
        try:
            if batch[0].kind != "status" or is_last:  # an earlier end of a run that went on counts no more
                _deliveries.DELIVERIES[batch[0].kind](self.client, run_id, self._as_kept(batch))
        except FileNotFoundError as error:
            _logger.warning("not recorded in the run: %s", error)
        except Exception as error:
            if error_code(error) not in _REJECTED or not self.run_is_usable(run_id):
                raise
            if len(batch) > 1:
                for record in batch:
                    self._deliver([record])
                return
            self._deliver_or_leave_out(batch, run_id, error)
        self._journal.acknowledge(last, run_id)

    def _as_kept(self, batch: Sequence[Record]) -> Sequence[Record]:
        """An artifact as it was when its run ended, if the store did not answer then."""
        if batch[0].kind != "artifact":
            return batch
        kept = _deliveries.kept_artifact(self._journal.path, batch[0])
        return [replace(batch[0], body=batch[0].body | {"path": str(kept)})] if kept.exists() else batch

    def _deliver_or_leave_out(self, batch: Sequence[Record], run_id: str, error: Exception) -> None:
        """Leave a record out only if a store that is well refuses it.

        MLflow says BAD_REQUEST of whatever its database says, also of a database that is being restarted.
        A tag, which stays as a note of what was left out, shows that the store writes; then the record has
        its second chance.
        """
        self.client.set_tag(run_id, REFUSED_TAG, f"{batch[0].kind}: {_first_line(error)}")
        try:
            _deliveries.DELIVERIES[batch[0].kind](self.client, run_id, self._as_kept(batch))
        except Exception as again:
            if error_code(again) not in _REJECTED:
                raise
            _logger.warning(
                "%s refuses to record %s: %s", shown(self._uri), batch[0].kind, without_password(again)
            )
        else:
            self.client.delete_tag(run_id, REFUSED_TAG)

    def _wait_before_next_try(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if not self._told:
            self._told = True
            _logger.warning(
                "the tracking store %s does not take records (%s). The run goes on; everything is kept in %s "
                "and sent when the store answers.",
                shown(self._uri),
                _first_line(error),
                self._journal.path,
            )


def batches(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Neighbouring metrics together, as many as one call may carry; everything else alone."""
    for kind, group in groupby(records, key=lambda record: record.kind):
        batch: list[Record] = []
        size = 0
        for record in group:
            points = len(record.body["values"]) if kind == "metrics" else _deliveries.MAX_METRICS
            if batch and size + points > _deliveries.MAX_METRICS:
                yield batch
                batch, size = [], 0
            batch.append(record)
            size += points
        if batch:
            yield batch


def error_code(error: Exception) -> str:
    return str(getattr(error, "error_code", ""))


def is_final(error: Exception) -> bool:
    """Whether the store answered, and waiting would not change its answer."""
    code = error_code(error)
    return code in (*_REJECTED, *_MISCONFIGURED, "RESOURCE_DOES_NOT_EXIST") or "out-of-date database" in str(
        error
    )


def _first_line(error: Any) -> str:
    text = without_password(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__
