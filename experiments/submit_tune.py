"""Run a study on the cluster that this file is sent to; docs/clusters.md has every command.

ray submit experiments/cluster.yaml experiments/submit_tune.py -- experiments/paper.yaml --storage s3://bucket/studies

`ray submit` copies this one file to the head's home and runs it there, in no project: the code is in
~/darkarc, where the cluster's file mounts and `setup_node.sh` have put it. All arguments but the two below
are those of `darkarc tune`.
"""

import argparse
import os
from pathlib import Path

PROJECT = Path.home() / "darkarc"
PYTHON = PROJECT / ".venv" / "bin" / "python"


def main() -> None:
    """Become `darkarc tune`, in the project and on the whole cluster."""
    parser = argparse.ArgumentParser(
        description="Run `darkarc tune` on this cluster; its own arguments are passed on.", allow_abbrev=False
    )
    parser.add_argument("--tracking-uri", help="the MLflow server; its login is in ~/.mlflow/credentials")
    parser.add_argument("--commit", help="what is checked out at home, for the runs' lineage")
    own, tune = parser.parse_known_args()
    if not PYTHON.exists():
        raise SystemExit(f"{PYTHON} is missing: this runs on a cluster's head; start it with `ray submit`")
    given = {"MLFLOW_TRACKING_URI": own.tracking_uri, "DARKARC_GIT_COMMIT": own.commit}
    os.environ.update({name: value for name, value in given.items() if value})
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.chdir(PROJECT)
    os.execv(PYTHON, [str(PYTHON), "-m", "darkarc", "tune", *tune, "--ray", "auto"])


if __name__ == "__main__":
    main()
