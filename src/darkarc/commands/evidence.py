"""Verbs that measure how much an answer is worth."""

from pathlib import Path
from typing import Annotated

import typer

from darkarc import config as configuration
from darkarc.commands._app import (
    PARAMS,
    PREPARED,
    REPORTS,
    RUN,
    TRAINED,
    WINNER,
    Overrides,
    Params,
    Quiet,
    Winner,
    cores,
    say,
    verb,
    with_winner,
)


@verb("darkarc evaluate")
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

    config = with_winner(configuration.load(params, overrides or ()), winner)
    metrics = evaluate_stage(
        config,
        prepared,
        trained=trained,
        run_file=run_file,
        out=out,
        workers=cores(),
        progress=not quiet,
    )
    if metrics["mae_dex"] is None:
        say(f"{out}: no test image has a true value of the target; the classes alone were measured")
    else:
        error = configuration.in_unit(f"{metrics['mae_dex']:.4f}", next(iter(config.targets)))
        say(f"{out}: MAE {error}, 68% coverage {metrics['coverage_68']:.3f}")
    if metrics.get("floor_mae_dex") is not None:
        own, n = metrics["floor_same_images_mae_dex"], metrics["floor_n_images"]
        say(f"  information floor {metrics['floor_mae_dex']:.4f} dex; on the same {n} images {own:.4f}")
    for warning in metrics["warnings"]:
        say(f"  warning: {warning}")


@verb("darkarc floor data/prepared --images 100 --workers 2")
def floor(
    store: Annotated[Path, typer.Argument(help="A simulated or DeepLense store.")] = PREPARED,
    out: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("reports/floor.json"),
    images: Annotated[
        int, typer.Option(min=1, help="Axion images, of the test split if there is one.")
    ] = 100,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    mass_bins: Annotated[int, typer.Option(min=1, help="Bins of the true mass.")] = 8,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quiet: Quiet = False,
) -> None:
    """Compute exact posteriors: the error on these images that no regressor can get below."""
    from darkarc.data.store import Store
    from darkarc.evaluation.floor import floor_stage

    found = floor_stage(
        Store.open(store),
        out,
        images=images,
        mass_bins=mass_bins,
        workers=workers or cores(),
        device=device,
        progress=not quiet,
    )
    error = found["standard_error"]["mae_dex"]
    uncertainty = "" if error is None else f" +- {error:.4f}"
    say(f"{out}: MAE {found['mae_dex']:.4f}{uncertainty} dex over {found['n_images']} images")
    say(f"  68% coverage {found['coverage_68']:.3f}; figure {out.with_suffix('.png')}")
