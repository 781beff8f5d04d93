"""Where runs and models are kept: an SQLite database in the project, or a server."""

import contextlib
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from darkarc.tracking import _environment
from darkarc.tracking._lock import FileLock
from darkarc.tracking.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""The UI then shows training runs and models first, not conversations with language models."""

_SQLITE = "sqlite:///"
DATABASE_PATIENCE_S = 20.0
"""As long as MLflow waits for another process's transaction."""


def project_root() -> Path:
    """Nearest folder, from the working directory upwards, that holds `dvc.yaml` or `params.yaml`.

    Inside a DVC stage it is the real project (`DVC_ROOT`), also when DVC runs the stage in a
    temporary copy. Without any of these: the working directory.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() or (folder / "params.yaml").is_file():
            return folder
    return here


def tracking_uri(*, create: bool = True) -> str:
    """`MLFLOW_TRACKING_URI`, else the SQLite database `mlflow.db` of the project, absolute.

    With `create`, an SQLite database that is not there yet is made, once, whatever number of
    processes ask at the same time. Raises `TrackingError` for a URI that cannot work.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{_SQLITE}{project_root() / 'mlflow.db'}"
    if uri.startswith("sqlite:"):
        database = sqlite_path(uri)
        if create:
            _create_database(database)
        return f"{_SQLITE}{database}"
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file"):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={uri!r}: MLflow no longer keeps runs in a folder of files; "
            "give a server (http://127.0.0.1:5000), a database (sqlite:////absolute/path/mlflow.db), "
            "or unset it to use mlflow.db in the project"
        )
    return uri


def shown(uri: str) -> str:
    """The URI for messages and logs: without the user name and password that it may carry."""
    parts = urlsplit(uri)
    return uri.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1) if "@" in parts.netloc else uri


def without_password(text: object) -> str:
    """Text, such as an error's, without the user names and passwords of the URLs in it."""
    return re.sub(r"(?<=://)[^/\s]+@", "", str(text))


def sqlite_path(uri: str) -> Path:
    """File of an `sqlite:///` URI, absolute."""
    path = uri.removeprefix(_SQLITE)
    if not uri.startswith(_SQLITE) or not path or path.startswith(":memory:") or "?" in path:
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={uri!r}: expected sqlite:////absolute/path/mlflow.db (a file, no options)"
        )
    return Path(path).absolute()


def artifact_location(uri: str) -> str | None:
    """Folder of artifacts for new experiments: beside an SQLite database; a server decides itself."""
    return (sqlite_path(uri).parent / "mlartifacts").as_uri() if uri.startswith(_SQLITE) else None


def open_client(uri: str | None = None) -> "MlflowClient":
    """Client of the tracking store and its model registry."""
    uri = tracking_uri() if uri is None else uri
    with _environment.quiet_import():
        import mlflow

        _environment.quiet_loggers()
        return mlflow.MlflowClient(uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)


@contextlib.contextmanager
def global_store() -> Iterator[None]:
    """MLflow's module-level functions use our store inside, and what they used before afterwards."""
    with _environment.quiet_import():
        import mlflow

    uri, before = tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """Id of the experiment, created if it is not there (by whichever process comes first)."""
    from mlflow.exceptions import MlflowException

    found: Any = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location(uri), tags=EXPERIMENT_TAGS)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"tracking.experiment: {name!r} is deleted in {shown(uri)}; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}` or choose another name"
        )
    return str(found.experiment_id)


def _create_database(path: Path) -> None:
    """Make the database aside and rename it: it is complete or absent, also after a kill."""
    if _is_complete(path):
        return
    with FileLock(path.with_name(path.name + ".lock"), wait=True):
        if _is_complete(path):
            return
        if path.exists() and path.stat().st_size > 0:
            raise TrackingError(
                f"{path}: not a complete MLflow database; move it away, and a new one is made"
            )
        for leftover in path.parent.glob(f"{path.name}.partial*"):
            leftover.unlink()
        # MLflow keeps its connection to a database that it could not finish: never twice the same name.
        partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
        _initialise(partial, (path.parent / "mlartifacts").as_uri())
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(path)


def _initialise(path: Path, artifacts: str) -> None:
    with _environment.quiet_import():
        import mlflow
        import sqlalchemy
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        _environment.quiet_loggers()
        try:
            store = SqlAlchemyStore(f"{_SQLITE}{path}", artifacts)
        except (sqlalchemy.exc.SQLAlchemyError, mlflow.exceptions.MlflowException) as error:
            raise TrackingError(
                f"{path.with_suffix('')}: MLflow cannot make its database there ({_reason(error)}); make "
                "room or let this user write there, and run the same command again, or set "
                "MLFLOW_TRACKING_URI to a server"
            ) from error
    store.engine.dispose()


def _reason(error: Exception) -> str:
    """What the database said, without the statement that it said it about."""
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


def _is_complete(path: Path) -> bool:
    """The schema's version is the last thing that MLflow writes into a new database.

    Opened for writing: what a kill left half-written beside it is taken back first.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return False
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=DATABASE_PATIENCE_S
        )
        try:
            return connection.execute("select count(*) from alembic_version").fetchone()[0] > 0
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_IOERR_SHORT_READ):
            return False  # no such table; or an end that is missing
        raise TrackingError(
            f"{path}: cannot be opened ({error}); leave it and the files beside it where they are, and run "
            "the same command again when no other process holds it and this user may write there"
        ) from error
    except sqlite3.DatabaseError:
        return False
