"""Metrics a second into SQLite: our tracker (journal, one batch an epoch) against one MLflow call a value.

    python benchmarks/tracking.py [--epochs 40] [--metrics 20]

Both ways log the same values to a run of one fresh database, alternating in blocks of epochs, so that a
busy machine slows both alike. Printed: metrics a second for each way, and the ratio.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from darkarc import config
from darkarc.tracking import open_client, start_run
from darkarc.tracking.location import experiment_id, tracking_uri


def measure(epochs: int, metrics: int, blocks: int = 4) -> tuple[float, float]:
    """Seconds spent by (our tracker, one call a value) on `epochs * metrics` values each."""
    settings = config.parse({"tracking": {"system_metrics": False}})
    client = open_client()
    plain = client.create_run(experiment_id(client, tracking_uri(), "plain")).info.run_id
    ours_s = theirs_s = 0.0
    with start_run(settings, name="benchmark", journal="journal.jsonl") as tracker:
        for block in range(blocks):
            steps = range(block * epochs // blocks, (block + 1) * epochs // blocks)
            started = time.perf_counter()
            for step in steps:
                tracker.log_metrics({f"m{i}": step + i / metrics for i in range(metrics)}, step)
            ours_s += time.perf_counter() - started
            started = time.perf_counter()
            for step in steps:
                for i in range(metrics):
                    client.log_metric(plain, f"m{i}", step + i / metrics, step=step)
            theirs_s += time.perf_counter() - started
    for run_id in (str(tracker.run_id), plain):
        assert len(client.get_metric_history(run_id, "m0")) == epochs
    return ours_s, theirs_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--metrics", type=int, default=20, help="curves, one value an epoch each")
    arguments = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DVC_ROOT"] = folder
        here = Path.cwd()
        os.chdir(folder)
        try:
            ours_s, theirs_s = measure(arguments.epochs, arguments.metrics)
        finally:
            os.chdir(here)
    values = arguments.epochs * arguments.metrics
    print(f"{'way':34s} {'metrics/s':>10s} {'ms an epoch':>12s}")
    for name, seconds in (
        ("darkarc (journal + log_batch)", ours_s),
        ("mlflow.log_metric, one a value", theirs_s),
    ):
        print(f"{name:34s} {values / seconds:10.0f} {1000 * seconds / arguments.epochs:12.2f}")
    print(f"ratio {theirs_s / ours_s:.1f}")


if __name__ == "__main__":
    main()
