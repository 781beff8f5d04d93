"""A study of thousands of trials: what a trial costs beside its training, and whether the driver's memory
grows.

Every trial reports one epoch at once, with MLflow on: what remains is Ray Tune, the book and the runs.

    python benchmarks/tune_scale.py [--trials 2000]
"""

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from darkarc import config as configuration
from darkarc.config import Config
from darkarc.data.prepare import prepare
from darkarc.data.store import Store, StoreWriter
from darkarc.tuning import parse_study, run_study
from darkarc.tuning.ray_session import start_ray
from darkarc.tuning.trial import Trainable, TrialSettings


def tiny_store(folder: Path, config: Config) -> Store:
    """A store of noise: the studies here need one to name, not to train on."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    n = 400
    random = np.random.default_rng(0)
    kind = np.array(["axion", "axion", "cdm", "no_sub"])[np.arange(n) % 4]
    with StoreWriter(
        folder / "raw",
        name="noise",
        origin="benchmark",
        instrument="model_iii",
        shape=(16, 16),
        dtype="float32",
        parameters={},
    ) as writer:
        rows = {
            "sample_id": [str(i) for i in range(n)],
            "class": kind.tolist(),
            "log10_axion_mass_ev": np.where(kind == "axion", random.uniform(-24, -22, n), np.nan),
            "group_id": [str(i) for i in range(n)],
        }
        writer.append(random.normal(1.0, 0.1, (n, 16, 16)), rows)
        raw = writer.commit()
    return prepare(raw, folder / "prepared", config, None)


def at_once(settings: TrialSettings) -> Trainable:
    def run(trial: dict[str, Any]) -> None:
        from ray import tune

        error = abs(trial["assignment"]["model.dropout"] - 0.2)
        row = {"epoch": 1, "val_mae_dex": error, "train_seconds": 0.0}
        tune.report({**row, "rows": [row], "position": {}, "schedule": [], "ended": "all epochs"})

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2000)
    arguments = parser.parse_args()
    config = configuration.parse({"tracking": {"system_metrics": False}})
    memory: list[tuple[float, float]] = []
    began = time.perf_counter()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            memory.append((time.perf_counter() - began, psutil.Process().memory_info().rss / 2**20))

    import ray

    with tempfile.TemporaryDirectory() as folder:
        store = tiny_store(Path(folder), config)
        start_ray(2)
        tree = {
            "name": "scale",
            "budget": {"trials": arguments.trials, "epochs": 1},
            "algorithm": "random",
            "space": {"model.dropout": {"uniform": [0.0, 0.5]}},
            "concurrent": 2,
        }
        thread = threading.Thread(target=watch, daemon=True)
        began = time.perf_counter()
        thread.start()
        study = parse_study(tree, config)
        result = run_study(
            config, study, store, work=Path(folder) / "work", progress=False, trainable=at_once
        )
        seconds = time.perf_counter() - began
        stop.set()
        ray.shutdown()
    assert result.finished == arguments.trials, result
    each = 1e3 * seconds / arguments.trials
    print(f"{arguments.trials} trials of one epoch: {seconds:.0f} s, {each:.1f} ms a trial")
    for share in (0.1, 0.25, 0.5, 0.75, 0.95):
        at, used = memory[int(share * len(memory))]
        print(f"  after {at:5.0f} s the driver holds {used:.0f} MiB")
    later = np.array(memory[len(memory) // 4 : -2])  # behind the warm-up, before the figures
    slope = np.polyfit(later[:, 0] * arguments.trials / seconds, later[:, 1] * 1024, 1)[0]
    print(f"  {slope:.1f} KiB a trial")


if __name__ == "__main__":
    main()
