"""The file that ties a trained regressor to its MLflow run, cached stage or not."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from darkarc.durable import write_file
from darkarc.tracking.errors import TrackingError
from darkarc.tracking.lineage import describe_lineage
from darkarc.tracking.runs import find_run, run_tags, send_unsent


@dataclass(frozen=True)
class RunRecord:
    """What a training leaves for the stages after it.

    run_id, experiment_id: None if the store never answered; training_digest: names the training;
    journal_token: finds the run when its journal has reached the store later.
    """

    run_id: str | None
    experiment_id: str | None
    training_digest: str
    journal_token: str | None = None


def write_run(path: Path, record: RunRecord) -> None:
    write_file(path, json.dumps(asdict(record), indent=2) + "\n")


def read_run(path: Path) -> RunRecord:
    """The record; a run that had no id yet is sent and looked up now.

    Raises `TrackingError` if the file is missing or damaged.
    """
    try:
        record = RunRecord(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise TrackingError(f"{path}: not there; run `darkarc train` first") from error
    except (ValueError, TypeError) as error:
        raise TrackingError(f"{path}: damaged ({error}); run `darkarc train` again") from error
    if record.run_id is not None or record.journal_token is None:
        return record
    send_unsent()
    found = find_run(record.journal_token)
    return record if found is None else replace(record, run_id=found[0], experiment_id=found[1])


def run_lineage(record: RunRecord) -> dict[str, str]:
    """Where a trained regressor comes from, name to text: what its run recorded when it was trained.

    Git commit, DVC revision of the data, study, run and training digest. A store that does not answer is
    no error: its facts are then not there.
    """
    tags = {} if record.run_id is None else run_tags(record.run_id)
    known = {"MLflow run": record.run_id} if record.run_id is not None else {}
    return describe_lineage(tags) | known | {"Training digest": record.training_digest}
