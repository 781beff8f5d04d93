"""What tracking costs a trial: the share of its time that it spends in reports, one result a second.

Trials sleep one second an epoch and report twelve metrics of it, with a checkpoint, as trainings do; MLflow
writes to SQLite. Measured in the trials themselves, with the runs in MLflow and without.

    python benchmarks/tune_tracking.py [--epochs 30] [--trials 2]
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from tune_scale import tiny_store

from darkarc import config as configuration
from darkarc.tuning import parse_study, run_study
from darkarc.tuning.book import StudyBook
from darkarc.tuning.ray_session import start_ray
from darkarc.tuning.runs import TrialRuns
from darkarc.tuning.study import Study
from darkarc.tuning.trial import Trainable, TrialSettings

METRICS = 12
EPOCH_S = 1.0


def sleeping(settings: TrialSettings) -> Trainable:
    """Trials that train nothing; each row says how long the report before took."""
    study = Study.model_validate(settings.study)

    def run(trial: dict[str, Any]) -> None:
        from ray import tune

        waited = 0.0
        for epoch in range(1, study.budget.epochs + 1):
            time.sleep(EPOCH_S)
            values = {f"metric_{i}": epoch + i / METRICS for i in range(METRICS)}
            row = {"epoch": epoch, "val_mae_dex": 1 / epoch, "train_seconds": 0.0, "waited": waited, **values}
            ended = "all epochs" if epoch == study.budget.epochs else ""
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "state.json").write_text(json.dumps(row))
                began = time.perf_counter()
                tune.report(
                    {**row, "rows": [row], "position": {}, "schedule": [], "ended": ended},
                    checkpoint=tune.Checkpoint.from_directory(folder),
                )
                waited = time.perf_counter() - began

    return run


def measure(tracked: bool, trials: int, epochs: int) -> tuple[float, float]:
    """(mean seconds in a report, share of the trial's time)"""
    import ray

    config = configuration.parse({"tracking": {"system_metrics": False}})
    with tempfile.TemporaryDirectory() as folder:
        store = tiny_store(Path(folder), config)
        start_ray(trials)
        tree = {
            "name": "sleep",
            "budget": {"trials": trials, "epochs": epochs},
            "algorithm": "random",
            "space": {"model.dropout": {"uniform": [0.0, 0.5]}},
            "concurrent": trials,
        }
        study = parse_study(tree, config)
        off = {name: mock.DEFAULT for name in ("start", "end", "flush", "finish")}
        with mock.patch.multiple(TrialRuns, **off) if not tracked else nullcontext():
            run_study(config, study, store, work=Path(folder) / "work", progress=False, trainable=sleeping)
        ray.shutdown()
        (path,) = (Path(folder) / "work").glob("*/book.jsonl")
        identity = json.loads(path.read_text().splitlines()[0])["body"]
        with StudyBook(path, identity) as book:
            waits = [
                row["waited"]
                for trial in book.trials.values()
                for epoch, row in trial.rows.items()
                if epoch > 1  # a row tells of the report before
            ]
    mean = statistics.fmean(waits)
    return mean, mean / (mean + EPOCH_S)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--trials", type=int, default=2)
    arguments = parser.parse_args()
    for tracked in (False, True):
        mean, share = measure(tracked, arguments.trials, arguments.epochs)
        name = "with MLflow" if tracked else "without"
        print(f"{name:12} {1e3 * mean:6.1f} ms a report, {100 * share:.2f}% of the trial's time", flush=True)


if __name__ == "__main__":
    main()
