"""How many epochs a search needs to be as good as random search: TPE with ASHA, and PB2, on real curves.

`curves.csv` holds validation curves of real trainings (`record_curves.py`). Between its points the curve of
a configuration is interpolated (inverse distance, five nearest); a trial whose parameters change makes,
in each epoch, the relative progress of the curve of its parameters of that epoch. On this objective
`darkarc`'s own studies run on Ray, trainings replaced by the table: everything else is what `darkarc
tune` does. Each repeat has its own seed; the goal is the best final value of its random search.

    python benchmarks/tune.py [--repeats 10] [--results FILE]

Each repeat is kept in FILE (a line of JSON); a second start goes on behind the last one.
"""

import argparse
import csv
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
from record_curves import EPOCHS, SPACE, TABLE
from tune_scale import tiny_store

from darkarc import config as configuration
from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.tuning import parse_study, run_study
from darkarc.tuning.population import values_at
from darkarc.tuning.ray_session import start_ray
from darkarc.tuning.study import Study
from darkarc.tuning.trial import Trainable, TrialSettings

PRIOR_MAE = 0.5
NEIGHBOURS = 5


class Curves:
    """The table as a function: parameters to a curve (EPOCHS,) of the validation MAE in dex."""

    def __init__(self) -> None:
        with TABLE.open() as file:
            rows = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
        table = np.array(rows)
        values, self.curves = table[:, : len(SPACE)], table[:, len(SPACE) :]
        self.points = np.array(
            [[d.coordinate(v) for d, v in zip(SPACE.values(), row, strict=True)] for row in values]
        )

    def __call__(self, parameters: dict[str, Any]) -> np.ndarray:
        place = np.array([d.coordinate(float(parameters[key])) for key, d in SPACE.items()])
        distance = np.linalg.norm(self.points - place, axis=1)
        nearest = np.argsort(distance)[:NEIGHBOURS]
        weights = 1 / (distance[nearest] + 1e-6)
        return np.exp(np.average(np.log(self.curves[nearest]), axis=0, weights=weights))


def tabulated(settings: TrialSettings) -> Trainable:
    """Trials that look their epochs up."""
    curves = Curves()
    study = Study.model_validate(settings.study)

    def run(trial: dict[str, Any]) -> None:
        from ray import tune
        from ray.train._internal.session import get_session

        parameters = values_at(study, trial) if study.is_population else trial["assignment"]
        curve = np.concatenate([[PRIOR_MAE], curves(parameters)])
        epoch, error, schedule = 0, PRIOR_MAE, []
        if checkpoint := tune.get_checkpoint():
            with checkpoint.as_directory() as folder:
                state = json.loads((Path(folder) / "state.json").read_text())
            epoch, error, schedule = state["epoch"], state["error"], state["schedule"]
        if study.is_population and (not schedule or schedule[-1]["values"] != parameters):
            schedule = [*schedule, {"epoch": epoch, "values": parameters}]
        rows = []
        while epoch < study.budget.epochs:
            epoch += 1
            error *= curve[epoch] / curve[epoch - 1]
            rows.append({"epoch": epoch, "val_mae_dex": float(error), "train_seconds": 0.0})
            if epoch % study.report_interval:
                continue
            metrics = {
                **rows[-1],
                "rows": rows,
                "position": {key: trial[key] for key in study.space} if study.is_population else {},
                "schedule": schedule,
                "ended": "all epochs" if epoch == study.budget.epochs else "",
            }
            rows = []
            with tempfile.TemporaryDirectory() as folder:
                state = {"epoch": epoch, "error": float(error), "schedule": schedule}
                (Path(folder) / "state.json").write_text(json.dumps(state))
                get_session().storage.current_checkpoint_index = epoch - 1
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))

    return run


METHODS: dict[str, dict[str, Any]] = {
    "random": {
        "algorithm": "random",
        "budget": {"trials": 64, "epochs": EPOCHS},
        "report_epochs": EPOCHS,
    },
    "TPE + ASHA": {
        "algorithm": {"name": "tpe", "startup_trials": 8},
        # A third of the epochs before the first rung: until then these curves tell little.
        "scheduler": {"name": "asha", "grace_epochs": 4, "reduction": 3},
        "budget": {"trials": 128, "epochs": EPOCHS},
        "report_epochs": 4,
    },
    "PB2": {
        "algorithm": "random",
        "scheduler": {"name": "pb2", "interval_epochs": 2, "quantile": 0.375},
        "budget": {"trials": 16, "epochs": EPOCHS},
    },
}


def spent_until(book: Path, goal: float) -> int | None:
    """Epochs trained, over all trials in the order of their reports, until a value is at most `goal`."""
    spent = 0
    for line in book.read_text().splitlines():
        record = json.loads(line)
        if record.get("kind") == "report":
            for row in record["body"]["rows"]:
                spent += 1
                if row["val_mae_dex"] <= goal:
                    return spent
    return None


def one_repeat(config: Config, store: Store, seed: int, folder: Path) -> dict[str, float]:
    """Share of random search's epochs that each method needs; infinite where it never gets there."""
    space = {key: dimension.model_dump(exclude_none=True) for key, dimension in SPACE.items()}
    books: dict[str, Path] = {}
    goal = 0.0
    for name, changes in METHODS.items():
        tree = {"name": "bench", "space": space, "seed": seed, "concurrent": 2, **changes}
        work = folder / name.replace(" ", "")
        study = parse_study(tree, config)
        result = run_study(config, study, store, work=work, progress=False, trainable=tabulated)
        books[name] = next(work.glob("*/book.jsonl"))
        if name == "random":
            goal = result.document["objectives"]["val_mae_dex"]
    budget = METHODS["random"]["budget"]["trials"] * EPOCHS
    shares = {}
    for name in METHODS:
        spent = spent_until(books[name], goal)
        shares[name] = spent / budget if spent is not None else float("inf")
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--results", type=Path, help="where repeats are kept")
    arguments = parser.parse_args()
    config = configuration.parse({"tracking": {"system_metrics": False}})
    kept = arguments.results.read_text() if arguments.results and arguments.results.exists() else ""
    repeats: list[dict[str, float]] = [json.loads(line) for line in kept.splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        store = tiny_store(Path(folder), config)
        start_ray(2)
        for seed in range(len(repeats), arguments.repeats):
            shares = one_repeat(config, store, seed, Path(folder) / str(seed))
            repeats.append(shares)
            if arguments.results:
                with arguments.results.open("a") as file:
                    file.write(json.dumps(shares) + "\n")
            print(f"repeat {seed}: " + ", ".join(f"{n} {s:.3f}" for n, s in shares.items()), flush=True)
        ray.shutdown()
    print_summary(repeats)


def print_summary(repeats: list[dict[str, float]]) -> None:
    budget, n = METHODS["random"]["budget"]["trials"] * EPOCHS, len(repeats)
    print(f"share of random search's {budget} epochs until its best is reached; {n} repeats")
    for name in METHODS:
        ordered = sorted(shares[name] for shares in repeats)
        spread = f"quartiles {ordered[n // 4]:.3f} to {ordered[3 * n // 4]:.3f}"
        every = " ".join(f"{share:.3f}" for share in ordered)
        print(f"{name:12} median {statistics.median(ordered):.3f}   {spread}   all {every}")


if __name__ == "__main__":
    main()
