"""Verbs that serve pages."""

from pathlib import Path
from typing import Annotated

import typer

from darkarc.commands._app import fail, say, verb


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
