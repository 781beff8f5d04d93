"""The stage `train`: one training in one MLflow run, its files complete or absent."""

import csv
import io
import shutil
from collections.abc import Mapping
from pathlib import Path

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.durable import write_file
from darkarc.models import save_regressor
from darkarc.tracking import RunRecord, dvc_revision, start_run, write_run
from darkarc.tracking.lineage import DVC_TAG
from darkarc.tracking.tensorboard import with_curves
from darkarc.training.engine import TrainResult
from darkarc.training.fingerprint import training_digest
from darkarc.training.fit_novelty import fit_novelty
from darkarc.training.fit_population import fit_population
from darkarc.training.members import train_members
from darkarc.training.recalibrate import check_calibration, recalibrate

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
    profile: Path | None = None,
    study: Mapping[str, str] | None = None,
) -> TrainResult:
    """Train on a prepared store; write the regressor `out`, its run `run_file` and its curves `history`.

    The state of an unfinished training, its journal of metrics included, lies in `work`; the same
    configuration and data go on there, in the same MLflow run. It is removed when everything is written.
    `profile` as of `train`; `study`: tags of the run that say which study gave the parameters
    (`darkarc.tuning.winner_tags`). With `tracking.tensorboard` the curves also go to
    `.darkarc/tensorboard/<run>`. Raises what `train` raises, and before it what `check_calibration` raises.
    """
    store = Store.open(prepared)
    check_calibration(config, store)
    folder = work / training_digest(config, store)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    tags = {**(study or {}), **({DVC_TAG: md5} if (md5 := dvc_revision(store.path)) else {})}
    journal = folder / "journal.jsonl"
    with start_run(config, name="train", journal=journal, tags=tags, dataset=store) as tracker:
        with with_curves(tracker, config) as curves:
            result = train_members(
                config, store, workdir=folder, tracker=curves, progress=progress, profile=profile
            )
        tracker.log_params({"best_epoch": result.best_epoch, "stopped_early": result.stopped_early})
        fit_novelty(config, result.regressor, store)
        tracker.log_metrics(recalibrate(config, result.regressor, store), step=result.best_epoch)
        tracker.log_metrics(fit_population(config, result.regressor, store), step=result.best_epoch)
        save_regressor(result.regressor, out)
        write_file(history, _table(result.history))
        tracker.log_artifact(history)
    # After its end: a server that came back only then has given the run its id.
    write_run(run_file, RunRecord(tracker.run_id, tracker.experiment_id, result.digest, tracker.token))
    shutil.rmtree(folder)
    return result


def _table(history: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
