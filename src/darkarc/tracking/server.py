"""An MLflow server for a team: PostgreSQL behind it, artifacts through it, a login in front of it.

Passwords are in files that only their owner can read, or in the environment, and never in a command line,
which every user of a machine can see.
"""

import ipaddress
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from darkarc.durable import write_file
from darkarc.tracking._child import serve_until_asked
from darkarc.tracking._environment import DEFAULTS
from darkarc.tracking.errors import TrackingError

DATABASE = "DARKARC_SERVER_DATABASE"
"""Variable with the database's URL: it may hold a password."""

PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
SECRET_KEY = "MLFLOW_FLASK_SERVER_SECRET_KEY"
ADMIN = "admin"
SHORTEST_PASSWORD = 12
"""MLflow's own limit."""

PERMISSIONS = ("READ", "EDIT", "NO_PERMISSIONS")
PASSWORD_CACHE_S = 60
"""Checking a password is slow on purpose: once a minute and user is enough."""


@dataclass(frozen=True)
class TeamServer:
    """How the server is to run.

    database: its URL; host, port: where it listens; names: under which others reach it, as in
    `mlflow.example.org`; home: folder of its secrets and, unless `artifacts` names another place (a
    folder, s3://…), of the runs' artifacts; permission: what a user may do with what others have made;
    login: off only on the loopback. Raises `TrackingError` for what cannot be.
    """

    database: str
    home: Path
    host: str = "127.0.0.1"
    port: int = 5000
    names: tuple[str, ...] = ()
    artifacts: str | None = None
    permission: str = "EDIT"
    login: bool = True
    workers: int = 4

    def __post_init__(self) -> None:
        if not 1024 <= self.port <= 65535:
            raise TrackingError(f"port {self.port}: expected 1024 to 65535")
        if self.permission not in PERMISSIONS:
            raise TrackingError(f"permission {self.permission!r}: expected one of {', '.join(PERMISSIONS)}")
        if not self.login and not is_loopback(self.host):
            raise TrackingError(
                f"host {self.host}: without a login the server answers on 127.0.0.1 alone, because whoever "
                "reaches it can change and delete every run; leave --no-login away, or the host"
            )


def database_url(environment: Mapping[str, str] = os.environ) -> str:
    """The PostgreSQL database of `DARKARC_SERVER_DATABASE`. Raises `TrackingError` without one."""
    url = environment.get(DATABASE, "").strip()
    if not url:
        raise TrackingError(
            f"{DATABASE} is not set: expected the URL of a PostgreSQL database, as in "
            f"{DATABASE}=postgresql://mlflow:PASSWORD@127.0.0.1/mlflow"
        )
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgresql", "postgresql+psycopg2"):
        raise TrackingError(
            f"{DATABASE} begins with {scheme[:20]!r}: expected postgresql://… (for one person alone, "
            "`darkarc ui` serves the project's own database)"
        )
    # Which driver a bare `postgresql` means depends on the version of SQLAlchemy.
    return f"postgresql+psycopg2://{rest}"


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def server_command(server: TeamServer) -> list[str]:
    """Command of MLflow's server; what is secret comes from `server_environment`."""
    hosts = [f"{name}:{server.port}" for name in ("127.0.0.1", "localhost", *_own_name(server))]
    # A proxy in front of the server passes its own name on, with or without a port.
    hosts += [host for name in server.names for host in (name, f"{name}:{server.port}")]
    origins = [f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")]
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", server.host, "--port", str(server.port)),
        *("--allowed-hosts", ",".join(hosts)),
        *("--cors-allowed-origins", ",".join(origins)),
        *("--x-frame-options", "DENY"),
        *("--workers", str(server.workers)),
        "--serve-artifacts",
        *("--artifacts-destination", server.artifacts or str(server.home / "artifacts")),
        *(("--app-name", "basic-auth") if server.login else ()),
    ]


def server_environment(server: TeamServer, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of the server; writes and reads the secrets in its home folder."""
    server.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    values = DEFAULTS | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | dict(environment)
    values.pop("MLFLOW_TRACKING_URI", None)  # the server is given its database, and is no client
    values["MLFLOW_BACKEND_STORE_URI"] = server.database
    if server.login:
        password = values.get(PASSWORD) or _secret_file(server.home / "admin_password")
        if len(password) < SHORTEST_PASSWORD:
            where = PASSWORD if values.get(PASSWORD) else server.home / "admin_password"
            raise TrackingError(
                f"{where}: a password of {len(password)} characters; expected {SHORTEST_PASSWORD} or more"
            )
        values[PASSWORD] = password
        values[SECRET_KEY] = values.get(SECRET_KEY) or _secret_file(server.home / "secret_key")
        values["MLFLOW_AUTH_CONFIG_PATH"] = str(_write_login(server))
    return values


def check_database(server: TeamServer) -> None:
    """Connect once, for an error that a person can act on. Raises `TrackingError`."""
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(server.database)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise TrackingError(
            f"{DATABASE}: not a database's URL; see postgresql://user:password@host/name"
        ) from error
    shown = engine.url.render_as_string(hide_password=True)
    try:
        engine.connect().close()
    except sqlalchemy.exc.OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise TrackingError(
            f"{shown}: {reason}; is PostgreSQL running, and does the database exist?"
        ) from error
    finally:
        engine.dispose()


def serve_team(server: TeamServer) -> int:
    """Run the server until Ctrl-C or SIGTERM, which end all its processes; returns its exit status."""
    check_database(server)
    environment = server_environment(server)
    return serve_until_asked(server_command(server), environment)


def _own_name(server: TeamServer) -> list[str]:
    """The address that it listens on, unless that is all of them or the loopback."""
    is_address = server.host not in ("0.0.0.0", "::") and not is_loopback(server.host)
    return [server.host] if is_address else []


def _secret_file(path: Path) -> str:
    """What a file that only its owner can read holds; a new random secret if it is not there.

    Raises `TrackingError` if others can read it.
    """
    if not path.exists():
        _write_secret(path, secrets.token_urlsafe(32) + "\n")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise TrackingError(f"{path}: others can read it (mode {mode:03o}); run `chmod 600 {path}`")
    return path.read_text(encoding="utf-8").strip()


def _write_secret(path: Path, text: str) -> None:
    """Write a file that nobody else can read at any moment."""
    before = os.umask(0o077)
    try:
        write_file(path, text.encode())
        path.chmod(0o600)
    finally:
        os.umask(before)


def _write_login(server: TeamServer) -> Path:
    """MLflow's configuration of the login: users are kept in the same database as the runs."""
    path = server.home / "basic_auth.ini"
    database = server.database.replace("%", "%%")  # the file's reader takes a single % for its own
    _write_secret(
        path,
        "# Written at every start of `darkarc server`.\n"
        "[mlflow]\n"
        f"default_permission = {server.permission}\n"
        f"database_uri = {database}\n"
        f"admin_username = {ADMIN}\n"
        f"auth_cache_ttl_seconds = {PASSWORD_CACHE_S}\n",
    )
    return path
