"""Environment of MLflow, set before its first import: no phoning home, no pickle, no chatter.

Every value is a default: what the caller's environment already holds is left alone.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

DEFAULTS = {
    # Usage statistics would go to MLflow's makers.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # A model whose flavour falls back to pickle is refused instead of run.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # MLflow's own retries block for minutes; the journal waits and retries without blocking.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def set_defaults() -> None:
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def quiet_loggers() -> None:
    """Progress reports of schema migrations and model logging tell a darkarc user nothing."""
    for name in ("alembic", "mlflow"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET or logger.level < logging.WARNING:
            logger.setLevel(logging.WARNING)
    # What it logs, with a traceback each time, it raises too, and the sender says once what that means.
    database = logging.getLogger("mlflow.store.db.utils")
    if database.level == logging.NOTSET:
        database.setLevel(logging.CRITICAL)


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """MLflow warns of its own innards while it is imported: nothing that a user could mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
