"""Verbs that make stores of images."""

from pathlib import Path
from typing import Annotated

import typer

from darkarc import config as configuration
from darkarc.commands._app import PARAMS, PREPARED, REPORTS, Overrides, Params, Quiet, cores, say, verb


@verb(
    "darkarc simulate --out data/model_ii -S simulate.preset=model_ii -S simulate.n_axion=30000 --workers 2"
)
def simulate(
    out: Annotated[
        Path | None,
        typer.Option(help="The store to write (default: data/simulated, or data/online by data.source)"),
    ] = None,
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
    out = out or Path("data") / ("online" if config.data.source == "online" else "simulated")
    store = generate(config, out, workers=workers or cores(), ray_address=ray_address, progress=not quiet)
    say(f"{out}: {len(store)} images of {store.shape[0]}x{store.shape[1]} pixels")


@verb("darkarc ingest Model_II --out data/model_ii --on-bad skip")
def ingest(
    source: Annotated[
        str | None,
        typer.Argument(help="Folder or .tgz of DeepLense files (default: data.path of the parameters)"),
    ] = None,
    out: Annotated[Path, typer.Option(help="The store to write.")] = Path("data/deeplense"),
    on_bad: Annotated[
        str | None, typer.Option(help="stop or skip, at a bad file (default: ingest.on_bad)")
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
    say(f"{out}: {report.n_ingested} images, {report.n_rejected} files rejected")
    if report.rejected:
        say(f"  the rejected ones, with reasons: {report.rejected}")


@verb("darkarc prepare --raw data/simulated --out data/prepared")
def prepare(
    raw: Annotated[
        Path | None,
        typer.Option(help="The raw store (default: data/simulated, online or deeplense, by data.source)"),
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
    say(f"{out}: {len(store)} images; outliers in {reports / 'outliers.png'}")
