"""Where a run comes from: commit, DVC experiment, seed, data digest, versions. Nothing names the machine."""

import hashlib
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from darkarc.config import Config
from darkarc.tracking.location import project_root

if TYPE_CHECKING:
    from darkarc.data.store import Store

DVC_VARIABLES = ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE")
COMMIT = "DARKARC_GIT_COMMIT"
COMMIT_TAG = "darkarc.git_commit"
DIRTY = "+dirty"
OWN_FILES = ":(top,exclude,glob)**/dvc.lock"
DATA_TAG = "darkarc.data_digest"
DVC_TAG = "darkarc.dvc_data_md5"
STUDY_TAG = "darkarc.study"
TRIAL_TAG = "darkarc.trial"
ORIGIN_TAGS = (COMMIT_TAG, DVC_TAG, STUDY_TAG, TRIAL_TAG)
"""Tags of a training's run that its registered versions carry, too."""
NOT_RECORDED = "none recorded"
MAX_DATASET_DIGEST = 36
"""MLflow's limit; the full digest is in the tag `darkarc.data_digest`."""


def package_version(name: str = "darkarc") -> str:
    """Installed version of a package, `unknown` where it runs from a plain folder."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def git_commit(folder: Path | None = None) -> tuple[str, bool] | None:
    """Commit that is checked out, and whether tracked files differ from it, other than `dvc.lock`, which
    `dvc repro` itself writes while it runs.

    Outside a repository, as on a cluster's node, it is what `DARKARC_GIT_COMMIT` says (a commit, with
    `+dirty` behind it where files differ); None without that.
    """
    folder = project_root() if folder is None else folder
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        commit, dirty, _ = os.environ.get(COMMIT, "").strip().partition(DIRTY)
        return (commit, bool(dirty)) if commit else None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", OWN_FILES)
    return commit, bool(changed)


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
            COMMIT_TAG: commit + (DIRTY if dirty else ""),
        }
    tags |= {name: value for name in DVC_VARIABLES if (value := os.environ.get(name))}
    if dataset is not None:
        tags[DATA_TAG] = dataset.digest
    return tags


def dvc_revision(folder: str | Path) -> str | None:
    """The MD5 under which DVC keeps a folder, if the nearest `dvc.lock` above names just this content.

    None without one, and where the folder has changed since: every file of it is read.
    """
    folder = Path(folder).resolve()
    lock = next((found for above in folder.parents if (found := above / "dvc.lock").is_file()), None)
    if lock is None:
        return None
    place = folder.relative_to(lock.parent).as_posix()
    try:
        stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"].values()
        entries = [entry for stage in stages for entry in (*stage.get("deps", ()), *stage.get("outs", ()))]
        recorded = {entry.get("md5") for entry in entries if entry["path"] == place}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None  # a lock that DVC cannot read either
    md5 = _dvc_md5(folder) if recorded else None
    return md5 if md5 in recorded else None


def _dvc_md5(folder: Path) -> str:
    """DVC's hash of a folder: the MD5 of the list of its files and theirs."""
    listed = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as content:
            md5 = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        listed.append({"md5": md5, "relpath": file.relative_to(folder).as_posix()})
    listed.sort(key=lambda entry: entry["relpath"])
    return (
        hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
    )


def describe_lineage(tags: Mapping[str, str]) -> dict[str, str]:
    """What the tags of a training's run say about its origin, name to text; what they lack is said, too."""
    commit, dirty, _ = tags.get(COMMIT_TAG, "").partition(DIRTY)
    study, trial = tags.get(STUDY_TAG), tags.get(TRIAL_TAG)
    md5, digest = tags.get(DVC_TAG), tags.get(DATA_TAG)
    facts = {
        "Git commit": (commit + (", with changes that were not committed" if dirty else "")) or NOT_RECORDED,
        "DVC revision": f"{md5} (MD5 of the data in dvc.lock)" if md5 else NOT_RECORDED,
        "Study": (f"{study}, best trial {trial}" if trial else study) or NOT_RECORDED,
    }
    if not md5 and digest:
        facts["DVC revision"] += f"; the data's SHA-256 is {digest}"
    return facts


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
