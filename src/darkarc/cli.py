"""The command line: one verb a stage, thin. Every verb reads `params.yaml`; `--set` overrides a key of it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from darkarc import config as configuration

app = typer.Typer(
    name="darkarc",
    help="Calibrated posteriors of dark matter from images of strong gravitational lenses.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Params = Annotated[Path, typer.Option("--params", help="The parameter file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-S", metavar="KEY=VALUE", help="Override a key, as in `-S train.epochs=3`."),
]
Winner = Annotated[
    Path, typer.Option("--winner", help="What `tune` found; counts if it is there and tune.search is true.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]

PARAMS = Path("params.yaml")
PREPARED = Path("data/prepared")
TRAINED = Path("data/trained")
RUN = Path("data/run.json")
EXPORTED = Path("data/exported")
REPORTS = Path("reports")
WINNER = Path("reports/winner.yaml")
STUDIES = Path(".darkarc/tune")


def main() -> NoReturn:
    """Run the command line; a user's mistake ends in one message and status 2, not in a traceback."""
    _set_environment()
    try:
        app()
    except SystemExit as end:
        # typer turns Ctrl-C into a silent end
        stop = end.__context__ and end.__context__.__cause__
        if isinstance(stop, KeyboardInterrupt):
            _fail(str(stop) or "interrupted; the same command goes on where it stopped", 130)
        raise
    except Exception as error:
        if os.environ.get("DARKARC_DEBUG") or not _is_for_the_user(error):
            raise
        _fail(str(error), 2)
    raise SystemExit(0)


def _set_environment() -> None:
    """Turn off what DVC, MLflow and Ray would send home; let threads sleep while they wait.

    Threads that spin at OpenMP's barriers make a training on shared cores several times slower.
    """
    for name, value in {
        "OMP_WAIT_POLICY": "passive",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
    }.items():
        os.environ.setdefault(name, value)


def _is_for_the_user(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "darkarc"


def _fail(message: str, status: int) -> NoReturn:
    print(f"darkarc: {message}", file=sys.stderr)
    raise SystemExit(status)


def _say(message: str) -> None:
    typer.echo(message)


def _verb(example: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return app.command(epilog=f"Example: {example}")


@_verb(
    "darkarc simulate --out data/model_ii -S simulate.preset=model_ii -S simulate.n_axion=30000 --workers 2"
)
def simulate(
    out: Annotated[Path, typer.Option(help="The store to write.")] = Path("data/simulated"),
    params: Params = PARAMS,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    ray_address: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Simulate on this Ray cluster instead.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Simulate lens images into a store (section `simulate`)."""
    from darkarc.data.generate import generate

    config = configuration.load(params, overrides or ())
    store = generate(config, out, workers=workers or _cores(), ray_address=ray_address, progress=not quiet)
    _say(f"{out}: {len(store)} images of {store.shape[0]}x{store.shape[1]} pixels")


def _with_winner(config: configuration.Config, winner: Path) -> configuration.Config:
    """The configuration with what a search found, said aloud."""
    if not (config.tune.search and winner.exists()):
        return config
    from darkarc.tuning import apply_winner

    found = apply_winner(config, winner)
    before = config.flat()
    changed = [f"{key}={value}" for key, value in found.flat().items() if value != before[key]]
    if changed:
        _say(f"from {winner}: {', '.join(changed)}")
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@_verb("darkarc ingest Model_II --out data/model_ii --on-bad skip")
def ingest(
    source: Annotated[
        str | None,
        typer.Argument(help="Folder or .tgz of DeepLense files [default: data.path of the parameters]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="The store to write.")] = Path("data/deeplense"),
    on_bad: Annotated[
        str | None, typer.Option(help="stop or skip, at a bad file [default: ingest.on_bad]")
    ] = None,
    params: Params = PARAMS,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Read DeepLense files, in every published layout, into a store; bad ones are named."""
    from darkarc.data.ingest import ingest as run

    wanted = [*(overrides or ()), *([f"ingest.on_bad={on_bad}"] if on_bad else [])]
    config = configuration.load(params, wanted)
    report = run(
        source or config.data.path,
        out,
        on_bad=config.ingest.on_bad,
        log10_mass_range_ev=config.targets.get(configuration.DEFAULT_TARGET, (-24.0, -22.0)),
        progress=not quiet,
    )
    _say(f"{out}: {report.n_ingested} images, {report.n_rejected} files rejected")
    if report.rejected:
        _say(f"  the rejected ones, with reasons: {report.rejected}")


@_verb("darkarc prepare --raw data/simulated --out data/prepared")
def prepare(
    raw: Annotated[
        Path | None,
        typer.Option(help="The raw store [default: data/simulated or data/deeplense, by data.source]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="The prepared store to write.")] = PREPARED,
    reports: Annotated[Path, typer.Option(help="Where the contact sheet and the counts go.")] = REPORTS,
    params: Params = PARAMS,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Split by scene, score outliers, fit statistics on the train split (section `prepare`)."""
    from darkarc.data.prepare import prepare as run
    from darkarc.data.store import Store

    config = configuration.load(params, overrides or ())
    store = run(
        Store.open(raw or Path("data") / config.data.source),
        out,
        config,
        reports,
        replace=True,
        progress=not quiet,
    )
    _say(f"{out}: {len(store)} images; outliers in {reports / 'outliers.png'}")


@_verb("darkarc tune experiments/bayesian.yaml --resume")
def tune(
    study: Annotated[Path | None, typer.Argument(help="The study [default: tune.study]")] = None,
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
        _say(f"{out}: tune.search is false, params.yaml counts as it is")
        return
    _say(
        f"{out}: {result.finished} trials to the end, {result.pruned} pruned, {result.failed} failed, "
        f"{result.epochs} epochs in all"
    )


@_verb("darkarc train -S train.epochs=40")
def train(
    prepared: Annotated[Path, typer.Option(help="The prepared store.")] = PREPARED,
    out: Annotated[Path, typer.Option(help="Where the trained regressor goes.")] = TRAINED,
    run_file: Annotated[Path, typer.Option(help="Where the id of the MLflow run goes.")] = RUN,
    reports: Annotated[Path, typer.Option(help="Where history.csv goes.")] = REPORTS,
    winner: Winner = WINNER,
    params: Params = PARAMS,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Train a regressor (sections `model`, `train`); after a kill the same command goes on."""
    from darkarc.training.stage import train_stage

    config = _with_winner(configuration.load(params, overrides or ()), winner)
    result = train_stage(
        config, prepared, out=out, run_file=run_file, history=reports / "history.csv", progress=not quiet
    )
    best = result.history[result.best_epoch - 1]
    _say(f"{out}: best epoch {result.best_epoch}, validation MAE {best['val_mae_dex']:.4f} dex")


@_verb("darkarc evaluate")
def evaluate(
    trained: Annotated[Path, typer.Option(help="The trained regressor.")] = TRAINED,
    prepared: Annotated[Path, typer.Option(help="The prepared store.")] = PREPARED,
    run_file: Annotated[Path, typer.Option(help="The MLflow run of its training.")] = RUN,
    out: Annotated[Path, typer.Option(help="Where metrics, figures and the report go.")] = REPORTS,
    winner: Winner = WINNER,
    params: Params = PARAMS,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Measure a regressor on the test split: errors, calibration, figures, report."""
    from darkarc.evaluation.stage import evaluate_stage

    config = _with_winner(configuration.load(params, overrides or ()), winner)
    metrics = evaluate_stage(
        config, prepared, trained=trained, run_file=run_file, out=out, progress=not quiet
    )
    if metrics["mae_dex"] is None:
        _say(f"{out}: no test image has a true value of the target; the classes alone were measured")
    else:
        _say(f"{out}: MAE {metrics['mae_dex']:.4f} dex, 68% coverage {metrics['coverage_68']:.3f}")
    for warning in metrics["warnings"]:
        _say(f"  warning: {warning}")


@_verb("darkarc register")
def register(
    trained: Annotated[Path, typer.Option(help="The trained regressor.")] = TRAINED,
    prepared: Annotated[Path, typer.Option(help="The prepared store it was trained on.")] = PREPARED,
    run_file: Annotated[Path, typer.Option(help="The MLflow run of its training.")] = RUN,
    reports: Annotated[Path, typer.Option(help="What `evaluate` wrote.")] = REPORTS,
    force: Annotated[
        str | None, typer.Option(metavar="REASON", help="Make it champion whatever the comparison says.")
    ] = None,
    rollback: Annotated[
        str | None, typer.Option(metavar="REASON", help="Instead: the previous champion is champion again.")
    ] = None,
    params: Params = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Register the regressor as ONNX; it becomes champion if it is better on the same test data."""
    from darkarc.serving.release import register_stage
    from darkarc.tracking.promotion import rollback as roll_back

    config = configuration.load(params, overrides or ())
    if rollback is not None:
        _say(f"{roll_back(config.register_.name, rollback).uri} is champion again")
        return
    version, decision = register_stage(
        config, trained=trained, prepared=prepared, run_file=run_file, reports=reports, force=force
    )
    _say(f"{version.uri} ({', '.join(version.aliases) or 'no alias'}): {decision.reason}")


@_verb("darkarc export --out data/exported")
def export(
    out: Annotated[Path, typer.Option(help="The folder for model.onnx and its model card.")] = EXPORTED,
    alias: Annotated[
        str | None, typer.Option(help="Which version [default: champion, else challenger].")
    ] = None,
    params: Params = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Write the registered champion as ONNX, with its model card, into a folder."""
    from darkarc.serving.release import export_stage

    version = export_stage(configuration.load(params, overrides or ()), out, alias=alias)
    _say(f"{out}: {version.uri} ({', '.join(version.aliases)})")


@_verb("darkarc predict models:/axion-mass-regressor@champion my_lenses/ --out predictions.csv")
def predict(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, an .onnx file, or a folder.")],
    paths: Annotated[list[Path], typer.Argument(help=".npy, .npz, .fits, .h5, folders, stores.")],
    out: Annotated[Path, typer.Option(help="The table: .csv or .parquet.")] = Path("predictions.csv"),
    gate: Annotated[
        float, typer.Option(min=0, max=1, help="Below this probability of its class an image gets no mass.")
    ] = 0.5,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in memory at once.")] = 64,
    target: Annotated[
        str | None, typer.Option(help="What to answer [default: log10_axion_mass_ev, or the only one].")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on where a killed call of the same kind stopped.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda, for a folder of weights.")] = "cpu",
    quiet: Quiet = False,
) -> None:
    """Answer images of any number with class probabilities, mass, intervals and flags."""
    from darkarc.serving import load, predict_files

    summary = predict_files(
        load(model, device),
        paths,
        out,
        target=target,
        gate=gate,
        batch_size=batch_size,
        progress=not quiet,
        resume=resume,
    )
    _say(str(summary))
    if summary.n_unreadable == summary.n_images:
        _fail(f"none of the {summary.n_images} images could be read; {out} gives each one's reason", 1)


@_verb("darkarc server --host 192.0.2.7 --name runs.example.org --artifacts s3://our-bucket/runs")
def server(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
    name: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="A name that it is reached by; may be repeated.")
    ] = None,
    home: Annotated[Path, typer.Option(help="Folder of its passwords and artifacts.")] = Path("mlserver"),
    artifacts: Annotated[
        str | None, typer.Option(metavar="PLACE", help="A folder or s3://… for artifacts, instead.")
    ] = None,
    permission: Annotated[
        str, typer.Option(help="On what others have made: READ, EDIT or NO_PERMISSIONS.")
    ] = "EDIT",
    login: Annotated[bool, typer.Option(help="Off on the loopback only.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Processes that answer.")] = 4,
) -> None:
    """Serve MLflow to a team, from the PostgreSQL of DARKARC_SERVER_DATABASE, with a login."""
    from darkarc.tracking.server import TeamServer, database_url, is_loopback, serve_team

    settings = TeamServer(
        database=database_url(),
        home=home.absolute(),
        host=host,
        port=port,
        names=tuple(name or ()),
        artifacts=artifacts,
        permission=permission,
        login=login,
        workers=workers,
    )
    if login:
        _say(f"log in as admin; the password is in {settings.home / 'admin_password'}, or what you have set")
    if not is_loopback(host):
        _say("warning: passwords cross the network as they are; put a proxy with TLS in front")
    raise typer.Exit(serve_team(settings))


@_verb("darkarc floor data/prepared --images 100 --workers 2")
def floor(
    store: Annotated[Path, typer.Argument(help="A simulated or DeepLense store.")] = PREPARED,
    out: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("reports/floor.json"),
    images: Annotated[
        int, typer.Option(min=1, help="Axion images, of the test split if there is one.")
    ] = 100,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Compute exact posteriors: the error on these images that no regressor can get below."""
    from darkarc.data.store import Store
    from darkarc.evaluation.floor import floor_stage

    found = floor_stage(
        Store.open(store), out, images=images, workers=workers or _cores(), progress=not quiet
    )
    error = found["standard_error"]["mae_dex"]
    uncertainty = "" if error is None else f" +- {error:.4f}"
    _say(f"{out}: MAE {found['mae_dex']:.4f}{uncertainty} dex over {found['n_images']} images")


@_verb("darkarc ui --port 5001")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on the loopback.")] = 5000,
) -> None:
    """Look at runs and models in MLflow's UI, on this machine only."""
    from darkarc.tracking.ui import serve_ui, ui_address

    _say(f"MLflow's UI: {ui_address(port)}; Ctrl-C ends it")
    status = serve_ui(port)
    if status:
        _fail(f"the server ended with status {status}; is port {port} in use?", 1)
