"""Verbs that search, train and compare."""

from pathlib import Path
from typing import Annotated

import typer

from darkarc import config as configuration
from darkarc.commands._app import (
    BENCHMARKS,
    PARAMS,
    PREPARED,
    REPORTS,
    RUN,
    STUDIES,
    TRAINED,
    WINNER,
    Overrides,
    Params,
    Quiet,
    Winner,
    say,
    study_of,
    verb,
    with_winner,
)


@verb("darkarc tune experiments/bayesian.yaml --resume")
def tune(
    study: Annotated[Path | None, typer.Argument(help="The study (default: tune.study)")] = None,
    prepared: Annotated[Path, typer.Option(help="The prepared store.")] = PREPARED,
    out: Annotated[Path, typer.Option(help="Where the winner's configuration goes.")] = WINNER,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with this study if it was begun.")] = False,
    storage: Annotated[
        str | None, typer.Option(help="Folder or URI that all machines reach, for trials' checkpoints.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Run the trials on this Ray cluster.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Where studies are kept that can go on.")] = STUDIES,
    params: Params = PARAMS,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Search architecture, regularisation and the rest with Ray Tune; the test split is never seen."""
    from darkarc.tuning import tune_stage

    config = configuration.load(params, overrides or ())
    result = tune_stage(
        config,
        study,
        prepared,
        out,
        work=work,
        storage=storage,
        resume=resume,
        address=ray_address,
        progress=not quiet,
    )
    if result is None:
        say(f"{out}: tune.search is false, params.yaml counts as it is")
        return
    say(
        f"{out}: {result.finished} trials to the end, {result.pruned} pruned, {result.failed} failed, "
        f"{result.epochs} epochs in all"
    )


@verb("darkarc train -S train.epochs=40")
def train(
    prepared: Annotated[Path, typer.Option(help="The prepared store.")] = PREPARED,
    out: Annotated[Path, typer.Option(help="Where the trained regressor goes.")] = TRAINED,
    run_file: Annotated[Path, typer.Option(help="Where the id of the MLflow run goes.")] = RUN,
    reports: Annotated[Path, typer.Option(help="Where history.csv goes.")] = REPORTS,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Say where a step's time goes; reports/trace.json has the details."),
    ] = False,
    winner: Winner = WINNER,
    params: Params = PARAMS,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Train a regressor (sections `model`, `train`); after a kill the same command goes on."""
    from darkarc.training.stage import train_stage

    config = with_winner(configuration.load(params, overrides or ()), winner)
    result = train_stage(
        config,
        prepared,
        out=out,
        run_file=run_file,
        history=reports / "history.csv",
        progress=not quiet,
        profile=reports / "trace.json" if profile else None,
        study=study_of(config, winner),
    )
    best = result.history[result.best_epoch - 1]
    error = configuration.in_unit(f"{best['val_mae_dex']:.4f}", next(iter(config.targets)))
    say(f"{out}: best epoch {result.best_epoch}, validation MAE {error}")


@verb("darkarc benchmark experiments/benchmark.yaml --out reports/benchmark")
def benchmark(
    plan: Annotated[Path, typer.Argument(help="What is compared, as a file.")] = Path(
        "experiments/benchmark.yaml"
    ),
    prepared: Annotated[Path, typer.Option(help="The prepared store.")] = PREPARED,
    out: Annotated[Path, typer.Option(help="Folder for the table and its figure.")] = REPORTS / "benchmark",
    storage: Annotated[
        str | None, typer.Option(help="Folder or URI that all machines reach, for the runs' checkpoints.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Run on this Ray cluster.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Where benchmarks are kept that can go on.")] = BENCHMARKS,
    params: Params = PARAMS,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Compare architectures and preprocessings at equal budget; after a kill the same command goes on."""
    from darkarc.evaluation.benchmark import benchmark_stage

    table = benchmark_stage(
        configuration.load(params, overrides or ()),
        plan,
        prepared,
        out,
        work=work,
        storage=storage,
        address=ray_address,
        progress=not quiet,
    )
    for row in table.measured:
        error = f"{row.mean('val_mae_dex'):.4f} ± {row.spread('val_mae_dex'):.4f}"
        say(f"{configuration.in_unit(error, table.target)}  {row.label}")
    say(f"{out}: {len(table.measured)} of {len(table.rows)} variants have a result")


@verb("darkarc lr-range -S train.optimiser=sgd --high 10")
def lr_range(
    prepared: Annotated[Path, typer.Option(help="The prepared store.")] = PREPARED,
    reports: Annotated[Path, typer.Option(help="Where lr_range.json and lr_range.png go.")] = REPORTS,
    low: Annotated[float, typer.Option(help="The rate of the first step.")] = 1e-6,
    high: Annotated[float, typer.Option(help="The rate of the last step.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps of the ramp; it ends early where the loss leaves.")] = 200,
    winner: Winner = WINNER,
    params: Params = PARAMS,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Find the learning rate: a short training whose rate rises until the loss leaves; keeps no weights."""
    from darkarc.training.range_test import range_test_stage

    config = with_winner(configuration.load(params, overrides or ()), winner)
    out, figure = reports / "lr_range.json", reports / "lr_range.png"
    result = range_test_stage(
        config, prepared, out=out, figure=figure, low=low, high=high, steps=steps, progress=not quiet
    )
    say(
        f"{figure}: the loss falls fastest at {result.steepest:.1e}, a tenth of where it is least is "
        f"{result.tenth:.1e}; try train.learning_rate={result.suggestion:.1e}"
    )


@verb("darkarc distill -S model.width=0.5")
def distill(
    teacher: Annotated[Path, typer.Option(help="The trained regressor to learn from.")] = TRAINED,
    prepared: Annotated[Path, typer.Option(help="The prepared store.")] = PREPARED,
    out: Annotated[Path, typer.Option(help="Where the student goes.")] = Path("data/student"),
    run_file: Annotated[Path, typer.Option(help="Where the id of its MLflow run goes.")] = Path(
        "data/student_run.json"
    ),
    reports: Annotated[Path, typer.Option(help="Where distilled.json goes.")] = Path("reports/student"),
    params: Params = PARAMS,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Train a student of at most 200,000 parameters on a teacher's densities, and compare the two."""
    from darkarc.serving.distil import REPORT, distill_stage

    found = distill_stage(
        configuration.load(params, overrides or ()),
        prepared,
        teacher=teacher,
        out=out,
        run_file=run_file,
        reports=reports,
        progress=not quiet,
    )
    own, theirs = found["student"], found["teacher"]
    error = configuration.in_unit(f"{own['mae_dex']:.4f}", found["target"])
    say(
        f"{out}: {own['parameters']:,} parameters, MAE {error}, the teacher's "
        f"({theirs['parameters']:,}) {theirs['mae_dex']:.4f}; {found['speedup']:.2f} times as fast "
        f"({reports / REPORT})"
    )
