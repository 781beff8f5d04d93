"""The application of the command line, and what its verbs share: options, places, words.

Every verb reads `params.yaml`; `--set` overrides a key of it.
"""

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
BENCHMARKS = Path(".darkarc/benchmark")


GIVEN_ENVIRONMENT = dict(os.environ)
"""As the shell has it, before `set_environment`."""


def set_environment() -> None:
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


def fail(message: str, status: int) -> NoReturn:
    print(f"darkarc: {message}", file=sys.stderr)
    raise SystemExit(status)


def say(message: str) -> None:
    typer.echo(message)


def verb(example: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return app.command(epilog=f"Example: {example}")


def with_winner(config: configuration.Config, winner: Path) -> configuration.Config:
    """The configuration with what a search found, said aloud."""
    if not (config.tune.search and winner.exists()):
        return config
    from darkarc.tuning import apply_winner

    found = apply_winner(config, winner)
    before = config.flat()
    changed = [f"{key}={value}" for key, value in found.flat().items() if value != before[key]]
    if changed:
        say(f"from {winner}: {', '.join(changed)}")
    return found


def study_of(config: configuration.Config, winner: Path) -> dict[str, str]:
    """Tags that name the study whose winner `with_winner` takes; none without one."""
    if not (config.tune.search and winner.exists()):
        return {}
    from darkarc.tuning import winner_tags

    return winner_tags(winner)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
