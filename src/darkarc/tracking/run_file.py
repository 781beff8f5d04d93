"""The file that ties a trained regressor to its MLflow run, cached stage or not."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from darkarc.durable import write_file
from darkarc.tracking.errors import TrackingError


@dataclass(frozen=True)
class RunRecord:
    """run_id, experiment_id: None if the store never answered; training_digest: names the training."""

    run_id: str | None
    experiment_id: str | None
    training_digest: str


def write_run(path: Path, record: RunRecord) -> None:
    write_file(path, json.dumps(asdict(record), indent=2) + "\n")


def read_run(path: Path) -> RunRecord:
    """Raises `TrackingError` if the file is missing or damaged."""
    try:
        return RunRecord(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise TrackingError(f"{path}: not there; run `darkarc train` first") from error
    except (ValueError, TypeError) as error:
        raise TrackingError(f"{path}: damaged ({error}); run `darkarc train` again") from error
