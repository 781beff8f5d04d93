"""The MLflow UI of this project's runs, for this machine alone."""

import os
import sys

from darkarc.tracking._child import serve_until_asked
from darkarc.tracking._environment import DEFAULTS
from darkarc.tracking.errors import TrackingError
from darkarc.tracking.location import shown, sqlite_path, tracking_uri


def ui_command(port: int = 5000) -> list[str]:
    """Command of a server that listens on the loopback and answers to its own name only.

    Raises `TrackingError` where the runs are kept by a server, which has a UI of its own.
    """
    uri = tracking_uri()
    if not uri.startswith("sqlite:"):
        raise TrackingError(f"the runs are kept by {shown(uri)}; open its own UI in a browser")
    hosts = f"127.0.0.1:{port},localhost:{port}"
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--allowed-hosts", hosts),
        *("--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts.split(","))),
        *("--x-frame-options", "DENY"),
        *("--workers", "1"),
        *("--backend-store-uri", uri),
        *("--artifacts-destination", str(sqlite_path(uri).parent / "mlartifacts")),
    ]


def ui_address(port: int = 5000) -> str:
    """Page to open: experiments, with MLflow's side bar on model training (its default is chat models)."""
    return f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"


def ui_environment() -> dict[str, str]:
    """Environment of that server: nothing phones home, and no background jobs."""
    environment = DEFAULTS | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | dict(os.environ)
    environment.pop("MLFLOW_TRACKING_URI", None)  # the server is given its database, and is no client
    return environment


def serve_ui(port: int = 5000) -> int:
    """Run the UI until Ctrl-C or SIGTERM, which end all its processes; returns the server's exit status."""
    if not 1024 <= port <= 65535:
        raise TrackingError(f"port {port}: expected 1024 to 65535")
    return serve_until_asked(ui_command(port), ui_environment())
