"""Verbs that hand a regressor on and let it answer."""

from pathlib import Path
from typing import Annotated

import typer

from darkarc import config as configuration
from darkarc.commands._app import (
    EXPORTED,
    PARAMS,
    PREPARED,
    REPORTS,
    RUN,
    TRAINED,
    Overrides,
    Params,
    Quiet,
    cores,
    fail,
    say,
    verb,
)

Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="The simulator's own likelihood: a second or two a lens, Model I's 6 to 12; for images with the "
        "instrument's noise, and Model I's published ones.",
    ),
]
ExactWorkers = Annotated[int, typer.Option("--workers", min=0, help="Processes for --exact; 0: one a core.")]


@verb("darkarc register")
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
    from darkarc.serving.release import register_stage, rollback_stage

    config = configuration.load(params, overrides or ())
    if rollback is not None:
        say(f"{rollback_stage(config, rollback, reports=reports).uri} is champion again")
        return
    version, decision = register_stage(
        config, trained=trained, prepared=prepared, run_file=run_file, reports=reports, force=force
    )
    say(f"{version.uri} ({', '.join(version.aliases) or 'no alias'}): {decision.reason}")


@verb("darkarc export --out data/exported")
def export(
    out: Annotated[Path, typer.Option(help="The folder for model.onnx and its model card.")] = EXPORTED,
    alias: Annotated[
        str | None, typer.Option(help="Which version (default: champion, else challenger).")
    ] = None,
    prepared: Annotated[
        Path, typer.Option(help="The prepared store whose test split judges export.variants.")
    ] = PREPARED,
    params: Params = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Write the registered champion as ONNX, with its model card, into a folder."""
    from darkarc.serving.release import export_stage

    version = export_stage(configuration.load(params, overrides or ()), out, alias=alias, prepared=prepared)
    say(f"{out}: {version.uri} ({', '.join(version.aliases)})")


@verb("darkarc predict models:/axion-mass-regressor@champion my_lenses/ --out predictions.csv")
def predict(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, an .onnx file, or a folder.")],
    paths: Annotated[list[Path], typer.Argument(help=".npy, .npz, .fits, .h5, folders, stores.")],
    out: Annotated[Path, typer.Option(help="The table: .csv or .parquet.")] = Path("predictions.csv"),
    gate: Annotated[
        float, typer.Option(min=0, max=1, help="Below this probability of its class an image gets no mass.")
    ] = 0.5,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in memory at once.")] = 64,
    target: Annotated[
        str | None, typer.Option(help="What to answer (default: log10_axion_mass_ev, or the only one).")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on where a killed call of the same kind stopped.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda, for a folder of weights.")] = "cpu",
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A picture of each lens and its answer, in here.")
    ] = None,
    exact: Exact = False,
    workers: ExactWorkers = 0,
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
        pictures=pictures,
        exact=exact,
        workers=workers or cores(),
    )
    say(str(summary))
    if summary.n_unreadable == summary.n_images:
        fail(f"none of the {summary.n_images} images could be read; {out} gives each one's reason", 1)


@verb("darkarc combine models:/axion-mass-regressor@champion my_lenses/ --out joint.json")
def combine(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, an .onnx file, or a folder.")],
    paths: Annotated[list[Path], typer.Argument(help=".npy, .npz, .fits, .h5, folders, stores.")],
    out: Annotated[Path, typer.Option(help="The numbers (.json); the figure is put beside them.")] = Path(
        "joint.json"
    ),
    axion_share: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Of these lenses, those that are axion-like: a number up to 1, `unknown` (integrated out) "
            "or `trained`, as in training (default: unknown, where the regressor knows its training).",
        ),
    ] = None,
    keep_flagged: Annotated[
        bool, typer.Option("--keep-flagged", help="Count images that look a little unlike the training's.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images predicted at once.")] = 64,
    device: Annotated[str, typer.Option(help="cpu or cuda, for a folder of weights.")] = "cpu",
    exact: Exact = False,
    workers: ExactWorkers = 0,
    quiet: Quiet = False,
) -> None:
    """Combine many lenses into one posterior of the mass of one particle."""
    from collections import Counter

    from darkarc.data.readers import said_of
    from darkarc.evaluation.zoom import significant_digits
    from darkarc.serving import load
    from darkarc.serving.combine import combine_files, parse_share

    found = combine_files(
        load(model, device),
        paths,
        out,
        axion_share=parse_share(axion_share),
        batch_size=batch_size,
        keep_flagged=keep_flagged,
        exact=exact,
        workers=workers or cores(),
        progress=not quiet,
    )
    low, high = found["interval_68"]
    left_out = f" ({found['n_left_out']} left out)" if found["n_left_out"] else ""
    digits = significant_digits(high - low)
    said = (
        found["limit"] or f"{found['median']:.{digits}f}, 68% interval {low:.{digits}f} to {high:.{digits}f}"
    )
    say(f"{out}: log10(m / eV) from {found['n_lenses']} lenses{left_out}: {said}")
    if found["n_copies"]:
        say(f"  {found['n_copies']} of those left out are copies: the same pixels as an image before")
    if passed_over := said_of(Counter(found["passed_over"])):
        say(f"  {passed_over}")
    if "notice" in found:
        say(f"  {found['notice']}")
