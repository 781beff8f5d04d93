"""What tracking costs a trial that reports one result a second: the driver's book, MLflow (SQLite) and table.

Twelve metrics an epoch, in real time, through the callback that Ray calls for each result: a trial waits
while the driver is inside it. Without Ray, whose own share `tune_scale.py` has.

    python benchmarks/tune_tracking.py [--epochs 30] [--trials 2 64]
"""

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from tune_scale import tiny_store

from darkarc import config as configuration
from darkarc.tracking import start_run
from darkarc.tuning import parse_study
from darkarc.tuning.book import StudyBook
from darkarc.tuning.callback import StudyCallback
from darkarc.tuning.display import StudyDisplay
from darkarc.tuning.runs import TrialRuns

METRICS = 12
RESULT_S = 1.0


def measure(n_trials: int, n_epochs: int) -> tuple[float, float]:
    """Mean seconds (wall, CPU) inside the callback for one result of one trial."""
    config = configuration.parse({"tracking": {"system_metrics": False}})
    tree = {
        "name": "pace",
        "budget": {"trials": n_trials, "epochs": n_epochs},
        "algorithm": "random",
        "space": {"model.dropout": {"uniform": [0.0, 0.5]}},
        "concurrent": n_trials,
    }
    study = parse_study(tree, config)
    wall = cpu = 0.0
    with tempfile.TemporaryDirectory() as folder:
        store = tiny_store(Path(folder), config)
        with (
            StudyBook(Path(folder) / "book.jsonl", {}) as book,
            start_run(config, name="pace", journal=Path(folder) / "parent.jsonl", dataset=store) as parent,
        ):
            runs = TrialRuns(config, study, book, parent)
            with StudyDisplay(study, book, progress=False) as display:
                callback = StudyCallback(study, book, runs, display, folder)
                trials = [SimpleNamespace(config={"number": number}) for number in range(n_trials)]
                for number, trial in enumerate(trials):
                    book.suggest(number, {"model.dropout": 0.1}, {})
                    callback.log_trial_start(trial)
                for epoch in range(1, n_epochs + 1):
                    due = time.monotonic() + RESULT_S
                    for trial in trials:
                        values = {f"metric_{i}": epoch + i / METRICS for i in range(METRICS)}
                        row = {"epoch": epoch, "val_mae_dex": 1 / epoch, "train_seconds": epoch, **values}
                        result = {"rows": [row], "position": {}, "schedule": [], "ended": "", "epoch": epoch}
                        began = time.perf_counter(), time.process_time()
                        callback.log_trial_result(epoch, trial, result)
                        callback.on_step_end(epoch, trials)
                        wall += time.perf_counter() - began[0]
                        cpu += time.process_time() - began[1]
                    time.sleep(max(0.0, due - time.monotonic()))
                runs.finish(patience_s=10)
    return wall / n_epochs / n_trials, cpu / n_epochs / n_trials


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--trials", type=int, nargs="+", default=[2, 64])
    arguments = parser.parse_args()
    for n_trials in arguments.trials:
        wall, cpu = measure(n_trials, arguments.epochs)
        print(
            f"{n_trials:3d} trials: {1e3 * cpu:5.2f} ms of CPU a result, {100 * cpu / RESULT_S:.2f}% of a "
            f"trial's time; {1e3 * wall:.2f} ms on this machine as busy as it is",
            flush=True,
        )


if __name__ == "__main__":
    main()
