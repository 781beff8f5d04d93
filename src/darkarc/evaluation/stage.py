"""The stage `evaluate`: the test split's evidence, logged to the run that trained the regressor."""

import shutil
from pathlib import Path
from typing import Any

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.evaluation.context import FLOOR_CACHE
from darkarc.evaluation.evaluate import evaluate
from darkarc.models import load_regressor, sealed_sha256
from darkarc.tracking import read_run, run_lineage, start_run

WORK = Path(".darkarc/evaluate")


def evaluate_stage(
    config: Config,
    prepared: str | Path,
    *,
    trained: Path,
    run_file: Path,
    out: Path,
    work: Path = WORK,
    floor_cache: Path | None = FLOOR_CACHE,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate the regressor in `trained` on the test split of `prepared`; returns the metrics.

    The evidence goes to `out` and to the MLflow run that `run_file` names. Raises what `evaluate` raises.
    """
    record = read_run(run_file)
    store = Store.open(prepared)
    regressor = load_regressor(trained)
    folder = work / (record.run_id or record.training_digest[:16])
    folder.mkdir(parents=True, exist_ok=True)
    with start_run(
        config,
        name="evaluate",
        journal=folder / "journal.jsonl",
        run_id=record.run_id,
        dataset=store,
        context="evaluation",
    ) as tracker:
        metrics = evaluate(
            config,
            regressor,
            store,
            out=out,
            tracker=tracker,
            floor_cache=floor_cache,
            lineage=run_lineage(record),
            regressor_sha256=sealed_sha256(trained),
            workers=workers,
            progress=progress,
        )
    shutil.rmtree(folder)
    return metrics
