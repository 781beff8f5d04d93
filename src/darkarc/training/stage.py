"""The stage `train`: one training in one MLflow run, its files complete or absent."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.models import save_regressor
from darkarc.tracking import start_run
from darkarc.training.engine import TrainResult, train
from darkarc.training.fingerprint import training_digest

WORK = Path(".darkarc/train")
"""Where interrupted trainings wait: outside DVC's outputs, which it deletes before a stage runs."""


def train_stage(
    config: Config,
    prepared: str | Path,
    *,
    out: Path,
    run_file: Path,
    history: Path,
    work: Path = WORK,
    progress: bool = True,
) -> TrainResult:
    """Train on a prepared store; write the regressor to `out`, its run to `run_file`, its curves to `history`.

    The state of an unfinished training, its journal of metrics included, lies in `work`; the same
    configuration and data go on there, in the same MLflow run. It is removed when everything is written.
    Raises what `train` raises.
    """
    store = Store.open(prepared)
    folder = work / training_digest(config, store)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with start_run(config, name="train", journal=folder / "journal.jsonl", dataset=store) as tracker:
        result = train(config, store, workdir=folder, tracker=tracker, progress=progress)
        tracker.log_params({"best_epoch": result.best_epoch, "stopped_early": result.stopped_early})
        for path in (out, run_file, history):
            path.parent.mkdir(parents=True, exist_ok=True)
        save_regressor(result.regressor, out)
        _write(history, _table(result.history))
        tracker.log_artifact(history)
        run = {
            "run_id": tracker.run_id,
            "experiment_id": tracker.experiment_id,
            "training_digest": result.digest,
        }
    _write(run_file, json.dumps(run, indent=2) + "\n")
    shutil.rmtree(folder)
    return result


def _table(history: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    """A file, complete or absent."""
    aside = path.with_name(path.name + ".partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
