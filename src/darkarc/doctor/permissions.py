"""Who else may read secrets or write where code and checkpoints are loaded from."""

import os
import stat
from pathlib import Path

from darkarc.doctor.findings import OK, WRONG, Finding, Findings

SECRETS = ("mlserver", "mlserver/admin_password", "mlserver/secret_key", "mlserver/basic_auth.ini")
HOME_SECRETS = (".ray/auth_token", ".mlflow/credentials")
WRITTEN = (".", "src", ".darkarc", "data", "mlflow.db", "mlartifacts", ".venv")


def check_permissions(root: Path, home: Path | None = None) -> Findings:
    """Secrets are their owner's alone; nobody else writes into the project."""
    found = []
    home = Path.home() if home is None else home
    secrets = [root / name for name in SECRETS] + [home / name for name in HOME_SECRETS]
    for path in secrets:
        mode = _mode(path)
        if mode is not None and mode & 0o077:
            said = f"others can read {path} (mode {mode:03o})"
            found.append(
                Finding("permissions", WRONG, said, f"chmod {'700' if path.is_dir() else '600'} {path}")
            )
    for name in WRITTEN:
        path = root / name
        mode = _mode(path)
        if mode is not None and mode & 0o002:
            said = f"everyone can write to {path} (mode {mode:03o}): whoever does runs code as you"
            found.append(Finding("permissions", WRONG, said, f"chmod o-w {path}"))
    yield from found or [Finding("permissions", OK, "secrets are yours alone, nobody else writes here")]


def _mode(path: Path) -> int | None:
    """None where it is not there, or is another user's business."""
    try:
        status = path.stat()
    except OSError:
        return None
    return stat.S_IMODE(status.st_mode) if status.st_uid == os.getuid() else None
