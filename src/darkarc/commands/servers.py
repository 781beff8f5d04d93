"""Verbs that serve pages, and the one that looks whether all is well."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from darkarc import config as configuration
from darkarc.commands._app import GIVEN_ENVIRONMENT, PARAMS, Overrides, Params, fail, say, verb


@verb("darkarc ui --port 5001")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on the loopback.")] = 5000,
) -> None:
    """Look at runs and models in MLflow's UI, on this machine only."""
    from darkarc.tracking.ui import serve_ui, ui_address

    say(f"MLflow's UI: {ui_address(port)}; Ctrl-C ends it")
    status = serve_ui(port)
    if status:
        fail(f"the server ended with status {status}; is port {port} in use?", 1)


@verb("darkarc server --host 192.0.2.7 --name runs.example.org --artifacts s3://our-bucket/runs")
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
        say(f"log in as admin; the password is in {settings.home / 'admin_password'}, or what you have set")
    if not is_loopback(host):
        say("warning: passwords cross the network as they are; put a proxy with TLS in front")
    raise typer.Exit(serve_team(settings))


@verb("darkarc serve models:/axion-mass-regressor@champion")
def serve(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, an .onnx file, or a folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1024, max=65535, help="Port to listen on (default: serve.port)")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name that it is reached by; may be repeated.")
    ] = None,
    token: Annotated[
        bool | None,
        typer.Option("--token/--no-token", help="Ask visitors for a token (default: off the loopback)"),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token; or set DARKARC_SERVE_TOKEN.")
    ] = None,
    gate: Annotated[
        float, typer.Option(min=0, max=1, help="Below this probability of its class an image gets no mass.")
    ] = 0.5,
    params: Params = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Answer lens files that are dropped on a page, on this machine only (section `serve`)."""
    from darkarc.serving.web import PageServer, read_token, run_page

    # The page serves a model, not a project: without a params.yaml the defaults count.
    known = params if params != PARAMS or params.exists() else Path(os.devnull)
    limits = configuration.load(known, overrides or ()).serve
    given = read_token(host, token, token_file, os.environ)
    settings = PageServer(
        model, limits, host, limits.port if port is None else port, tuple(allowed_host or ()), given, gate
    )

    def ready(server: PageServer, facts: dict[str, Any]) -> None:
        say(f"{model}: {facts['target_name']} on {facts['instrument']}, SHA-256 {facts['sha256'][:16]}")
        login = (
            f"login?token={given}"
            if given and not (token_file or os.environ.get("DARKARC_SERVE_TOKEN"))
            else ""
        )
        say(f"open {server.address}{login}; Ctrl-C ends it")
        if server.host not in ("127.0.0.1", "::1", "localhost"):
            say("warning: token and images cross the network as they are; put a proxy with TLS in front")

    run_page(settings, ready)


@verb("darkarc doctor --json")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON, for a script.")] = False,
    params: Params = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Look for what would fail, get lost or stand open in this set-up; say what to do about each."""
    import json
    from dataclasses import asdict

    from darkarc.doctor import examine
    from darkarc.doctor.findings import WRONG
    from darkarc.tracking.location import project_root

    known = params if params != PARAMS or params.exists() else Path(os.devnull)
    found = examine(project_root(), configuration.load(known, overrides or ()), GIVEN_ENVIRONMENT)
    if as_json:
        say(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for finding in found:
            say(f"{finding.level:<6} {finding.check:<16} {finding.found}")
            if finding.remedy:
                say(f"{'':<24}-> {finding.remedy}")
    wrong = sum(finding.level == WRONG for finding in found)
    if wrong:
        fail(f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong; what to do stands beside each", 1)
