"""`darkarc distill`: train a small student on a teacher's densities, and hold the two side by side."""

import json
import tempfile
from pathlib import Path
from typing import Any

from darkarc.config import DEFAULT_TARGET, Config
from darkarc.data.store import Store
from darkarc.durable import write_file
from darkarc.models import Regressor, load_regressor
from darkarc.serving.comparison import TestImages, images_per_second, try_out
from darkarc.serving.export import MODEL_FILE, export_onnx
from darkarc.serving.onnx_regressor import OnnxRegressor
from darkarc.tracking.promotion import mean_difference_interval
from darkarc.training import new_regressor
from darkarc.training.stage import train_stage

MOST_PARAMETERS = 200_000
REPORT = "distilled.json"


class DistillError(ValueError):
    """A student that is too large; the message says how large and what to change."""


def distill_stage(
    config: Config,
    prepared: Path,
    *,
    teacher: Path,
    out: Path,
    run_file: Path,
    reports: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the student that `config` describes on the answers of `teacher`, and write both's numbers.

    Writes the student `out`, its run, `reports/history.csv` and `reports/distilled.json`, where null stands
    for a number that is not finite: a truth without any density has an infinite `nll`. Raises
    `DistillError` for a student of more than `MOST_PARAMETERS`, and what training raises.
    """
    from darkarc.evaluation.tables import tidy  # needs matplotlib, which takes a second to import

    student_train = config.train.model_copy(update={"teacher": str(teacher)})
    config = config.model_copy(update={"train": student_train})
    store = Store.open(prepared)
    size = parameters(new_regressor(config, store))
    if size > MOST_PARAMETERS:
        raise DistillError(
            f"the student would have {size:,} parameters, more than {MOST_PARAMETERS:,}: lower model.width "
            f"(now {config.model.width:g})"
        )
    train_stage(
        config, prepared, out=out, run_file=run_file, history=reports / "history.csv", progress=progress
    )
    found = compare_students(load_regressor(teacher), load_regressor(out), store)
    write_file(reports / REPORT, json.dumps(tidy(found), indent=1, allow_nan=False) + "\n")
    return found


def parameters(regressor: Regressor) -> int:
    """Trained numbers of a regressor."""
    return sum(weight.numel() for weight in regressor.parameters())


def compare_students(teacher: Regressor, student: Regressor, store: Store) -> dict[str, Any]:
    """Error, calibration, size and speed (ONNX, one core) of both on the test split, and the difference."""
    target = DEFAULT_TARGET if DEFAULT_TARGET in teacher.targets else teacher.targets[0]
    test = TestImages.of(store, target)
    with tempfile.TemporaryDirectory() as folder:
        files = [
            OnnxRegressor(export_onnx(one, Path(folder) / f"{name}-{MODEL_FILE}"), threads=1)
            for name, one in (("teacher", teacher), ("student", student))
        ]
        trials = [try_out(one, test, target) for one in files]
        speeds = images_per_second(files[0], files[1], test.images)
    rows = {
        name: {
            "parameters": parameters(regressor),
            "mae_dex": round(trial.mae, 5),
            "nll": round(trial.nll, 4),
            "coverage_68": round(trial.coverage[68], 4),
            "coverage_90": round(trial.coverage[90], 4),
            "images_per_second": round(speed, 1),
        }
        for name, regressor, trial, speed in zip(
            ("teacher", "student"), (teacher, student), trials, speeds, strict=True
        )
    }
    low, high = mean_difference_interval(trials[1].errors - trials[0].errors)
    return {
        "target": target,
        "n_test": len(test.truth),
        **rows,
        "mae_difference_dex": [round(low, 5), round(high, 5)],
        "speedup": round(speeds[1] / speeds[0], 3),
    }
