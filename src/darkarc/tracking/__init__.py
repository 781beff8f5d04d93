"""Everything that knows MLflow: runs with a durable journal, lineage, the model registry, promotion."""

from darkarc.tracking import _environment

_environment.set_defaults()  # before anything imports mlflow

from darkarc.tracking.errors import JournalError, RegistryError, TrackingError  # noqa: E402
from darkarc.tracking.journal import Journal  # noqa: E402
from darkarc.tracking.lineage import dvc_revision, git_commit, lineage_tags  # noqa: E402
from darkarc.tracking.location import open_client, project_root, tracking_uri  # noqa: E402
from darkarc.tracking.run_file import RunRecord, read_run, run_lineage, write_run  # noqa: E402
from darkarc.tracking.run_tracker import RunTracker  # noqa: E402
from darkarc.tracking.runs import find_run, replay, send_unsent, start_run  # noqa: E402
from darkarc.tracking.tracker import NullTracker, Tracker  # noqa: E402
from darkarc.tracking.ui import serve_ui, ui_address  # noqa: E402

__all__ = [
    "Journal",
    "JournalError",
    "NullTracker",
    "RegistryError",
    "RunRecord",
    "RunTracker",
    "Tracker",
    "TrackingError",
    "dvc_revision",
    "find_run",
    "git_commit",
    "lineage_tags",
    "open_client",
    "project_root",
    "read_run",
    "replay",
    "run_lineage",
    "send_unsent",
    "serve_ui",
    "start_run",
    "tracking_uri",
    "ui_address",
    "write_run",
]
