"""One function for each kind of journal record: how it reaches MLflow. Doing it twice changes nothing."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from darkarc.tracking.journal import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

Delivery = Callable[["MlflowClient", str, Sequence[Record]], None]

# Limits of one MLflow call and of one value.
MAX_METRICS = 1000
MAX_PARAMS = 100
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 8000
MAX_KEY_CHARACTERS = 250


def shorten(value: Any, limit: int) -> str:
    """Text of a value within MLflow's limit; a cut is marked."""
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _metrics(client: "MlflowClient", run_id: str, batch: Sequence[Record]) -> None:
    from mlflow.entities import Metric

    points = [
        Metric(key, value, record.time_ms, record.body["step"])
        for record in batch
        for key, value in record.body["values"].items()
    ]
    for start in range(0, len(points), MAX_METRICS):
        client.log_batch(run_id, metrics=points[start : start + MAX_METRICS])


def _params(client: "MlflowClient", run_id: str, batch: Sequence[Record]) -> None:
    """Only those that the run does not have: MLflow refuses a second value for a parameter."""
    from mlflow.entities import Param

    there = client.get_run(run_id).data.params
    missing = [Param(key, value) for key, value in batch[0].body["values"].items() if key not in there]
    for start in range(0, len(missing), MAX_PARAMS):
        client.log_batch(run_id, params=missing[start : start + MAX_PARAMS])


def _tags(client: "MlflowClient", run_id: str, batch: Sequence[Record]) -> None:
    from mlflow.entities import RunTag

    values: Mapping[str, str] = batch[0].body["values"]
    there = client.get_run(run_id).data.tags if batch[0].body["keep"] else {}
    tags = [RunTag(key, value) for key, value in values.items() if key not in there]
    for start in range(0, len(tags), MAX_PARAMS):
        client.log_batch(run_id, tags=tags[start : start + MAX_PARAMS])


def _dataset(client: "MlflowClient", run_id: str, batch: Sequence[Record]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    facts = batch[0].body
    dataset = Dataset(
        name=facts["name"],
        digest=facts["digest"],
        source_type="local",
        source=facts["source"],
        schema=facts["schema"],
        profile=facts["profile"],
    )
    context = InputTag("mlflow.data.context", facts["context"])
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags=[context])])


def kept_artifact(journal: Path, record: Record) -> Path:
    """Where the file or folder of an artifact's record lies beside a journal that waits for its store."""
    return journal.with_suffix("") / str(record.seq) / Path(record.body["path"]).name


def _artifact(client: "MlflowClient", run_id: str, batch: Sequence[Record]) -> None:
    path, folder = Path(batch[0].body["path"]), batch[0].body["folder"] or None
    if path.is_dir():
        client.log_artifacts(run_id, str(path), artifact_path=folder)
    elif path.is_file():
        client.log_artifact(run_id, str(path), artifact_path=folder)
    else:
        raise FileNotFoundError(f"{path} is no longer there")


def _document(client: "MlflowClient", run_id: str, batch: Sequence[Record]) -> None:
    """A mapping as JSON or YAML, keys in the order given."""
    name = Path(batch[0].body["name"])
    data = batch[0].body["data"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name.name
        if name.suffix in (".yaml", ".yml"):
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        else:
            text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")
        parent = name.parent.as_posix()
        client.log_artifact(run_id, str(path), artifact_path=None if parent == "." else parent)


def _status(client: "MlflowClient", run_id: str, batch: Sequence[Record]) -> None:
    client.set_terminated(run_id, status=batch[-1].body["status"], end_time=batch[-1].time_ms)


DELIVERIES: dict[str, Delivery] = {
    "metrics": _metrics,
    "params": _params,
    "tags": _tags,
    "dataset": _dataset,
    "artifact": _artifact,
    "document": _document,
    "status": _status,
}
