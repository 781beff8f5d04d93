"""The verb `benchmark`: Ray carries the runs, MLflow has them nested, and one table comes out."""

import json
from pathlib import Path

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.durable import write_file
from darkarc.evaluation.benchmark.plan import Benchmark, load_benchmark, make_plan
from darkarc.evaluation.benchmark.table import ERROR, Table, make_table
from darkarc.tracking import RunTracker
from darkarc.tuning import conduct
from darkarc.tuning.book import StudyBook

WORK = Path(".darkarc/benchmark")
"""Where runs wait that were interrupted."""


def benchmark_stage(
    config: Config,
    path: str | Path,
    prepared: str | Path,
    out: Path,
    *,
    work: Path = WORK,
    storage: str | None = None,
    address: str | None = None,
    progress: bool = True,
) -> Table:
    """Run the benchmark of a file on a prepared store; its table and figure go to `out`.

    The files are `table.md`, `table.csv`, `benchmark.json` and `pareto.png`. After a kill the same call
    goes on. `storage`, `address`: as of `tuning.tune_stage`. Raises `BenchmarkError`, `StudyError`, and
    `StudyInterrupted` after Ctrl-C.
    """
    benchmark = load_benchmark(path, config)
    return run_benchmark(
        config,
        benchmark,
        Store.open(prepared),
        out,
        work=work,
        storage=storage,
        address=address,
        progress=progress,
    )


def run_benchmark(
    config: Config,
    benchmark: Benchmark,
    prepared: Store,
    out: Path,
    *,
    work: Path = WORK,
    storage: str | None = None,
    address: str | None = None,
    progress: bool = True,
) -> Table:
    """Arguments as of `benchmark_stage`."""
    plan = make_plan(benchmark, config)

    def conclude(book: StudyBook, folder: Path, parent: RunTracker) -> Table:
        table = make_table(benchmark, plan, book)
        for file in write_table(table, out):
            parent.log_artifact(file)
        parent.log_dict(benchmark.model_dump(mode="json", exclude_none=True), "benchmark.yaml")
        if table.measured:
            best = table.measured[0]
            parent.log_metrics({f"best_{ERROR}": best.mean(ERROR)}, step=len(plan.runs))
            parent.set_tags({"darkarc.best": best.label})
        return table

    return conduct(
        plan.config,
        plan.study,
        prepared,
        conclude,
        kind="benchmark",
        work=work,
        storage=storage,
        resume=True,
        address=address,
        progress=progress,
    )


def write_table(table: Table, out: Path) -> list[Path]:
    """The files of a table, each complete or absent."""
    from darkarc.evaluation.figures import frontier_figure
    from darkarc.evaluation.style import style, to_png

    files = [
        write_file(out / "table.md", table.markdown()),
        write_file(out / "table.csv", table.csv()),
        write_file(out / "benchmark.json", json.dumps(table.document(), indent=1) + "\n"),
    ]
    if table.measured:
        with style():
            files.append(write_file(out / "pareto.png", to_png(frontier_figure(table))))
    return files
