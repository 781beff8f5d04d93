"""Where a run comes from: commit, DVC experiment, seed, data digest, versions. Nothing names the machine."""

import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkarc.config import Config
from darkarc.tracking.location import project_root

if TYPE_CHECKING:
    from darkarc.data.store import Store

DVC_VARIABLES = ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE")
COMMIT = "DARKARC_GIT_COMMIT"
MAX_DATASET_DIGEST = 36
"""MLflow's limit; the full digest is in the tag `darkarc.data_digest`."""


def package_version(name: str = "darkarc") -> str:
    """Installed version of a package, `unknown` where it runs from a plain folder."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def git_commit(folder: Path | None = None) -> tuple[str, bool] | None:
    """Commit that is checked out, and whether tracked files differ from it.

    Outside a repository, as on a cluster's node, it is what `DARKARC_GIT_COMMIT` says (a commit, with
    `+dirty` behind it where files differ); None without that.
    """
    folder = project_root() if folder is None else folder
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        commit, dirty, _ = os.environ.get(COMMIT, "").strip().partition("+dirty")
        return (commit, bool(dirty)) if commit else None
    return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))


def _git(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # a status must not lock the user's index
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def lineage_tags(config: Config, dataset: "Store | None" = None) -> dict[str, str]:
    """Tags that tie a run to its code, data and parameters."""
    tags = {"darkarc.version": package_version(), "darkarc.seed": str(config.seed)}
    if found := git_commit():
        commit, dirty = found
        tags |= {
            "mlflow.source.git.commit": commit,
            "darkarc.git_commit": commit + ("+dirty" if dirty else ""),
        }
    tags |= {name: value for name in DVC_VARIABLES if (value := os.environ.get(name))}
    if dataset is not None:
        tags["darkarc.data_digest"] = dataset.digest
    return tags


def dataset_facts(store: "Store", context: str) -> dict[str, Any]:
    """A store as an MLflow dataset input, from its manifest alone: no image is read."""
    manifest = store.manifest
    path = Path(store.path).resolve()
    root = project_root()
    height, width = manifest.shape
    features = [
        {"type": "tensor", "tensor-spec": {"dtype": str(manifest.dtype), "shape": [-1, height, width]}}
    ]
    profile = {
        "n_samples": manifest.n_samples,
        "origin": manifest.origin,
        "instrument": manifest.instrument,
        "schema_version": manifest.schema_version,
        "digest": store.digest,
        "parameters": manifest.parameters,
    }
    # MLflow keeps one context for a (name, digest): the same store evaluated has another name.
    return {
        "name": manifest.name if context == "training" else f"{manifest.name} ({context})",
        "digest": store.digest[:MAX_DATASET_DIGEST],
        "source": json.dumps({"uri": str(path.relative_to(root) if path.is_relative_to(root) else path)}),
        "schema": json.dumps({"mlflow_tensorspec": {"features": json.dumps(features), "targets": None}}),
        "profile": json.dumps(profile, default=str, sort_keys=True),
        "context": context,
    }
