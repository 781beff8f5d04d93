"""The project's own files: git, DVC, the tracking database, and what killed commands left behind."""

import json
import sqlite3
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from darkarc.doctor.findings import NOTE, OK, WRONG, Finding, Findings

LEFTOVERS = ("*.partial", "*.writing", ".*.partial")
OLD_LOCK_S = 3600.0


def check_git(root: Path) -> Findings:
    """The project is a git repository that nothing holds."""
    if not (root / ".git").exists():
        yield Finding(
            "git", NOTE, f"{root} is no git repository: runs cannot name their commit", "git init, git commit"
        )
        return
    try:
        folder = Path(_git(root, "rev-parse", "--absolute-git-dir"))
        changed = len(_git(root, "status", "--porcelain").splitlines())
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        yield Finding("git", WRONG, f"git does not answer: {said.strip()}", "what does `git status` say?")
        return
    lock = folder / "index.lock"
    if lock.exists() and _age_s(lock) > 60:
        yield Finding("git", WRONG, f"{lock} holds the repository", f"if no git runs: rm {lock}")
    elif changed:
        yield Finding("git", NOTE, f"{changed} files differ from the commit; runs say so", "git commit")
    else:
        yield Finding("git", OK, "clean")


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def check_dvc(root: Path) -> Findings:
    """`dvc.yaml` and `dvc.lock` are whole, and no dead process holds DVC's locks."""
    if not (root / "dvc.yaml").is_file():
        yield Finding("dvc", NOTE, f"no dvc.yaml in {root}", "run it in the project's folder")
        return
    found = [*_damaged_lock(root), *_stale_locks(root)]
    yield from found or [Finding("dvc", OK, "dvc.yaml and dvc.lock are whole, nothing is held")]


def _damaged_lock(root: Path) -> Findings:
    import yaml

    # DVC writes it in place: a kill in that moment leaves half of it.
    for path in [root / "dvc.lock", *sorted(root.glob("sources/*/dvc.lock"))]:
        if not path.is_file():
            continue
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
            whole = isinstance(tree, dict) and isinstance(tree.get("stages"), dict)
            whole = whole and all("cmd" in stage for stage in tree["stages"].values())
        except (yaml.YAMLError, UnicodeDecodeError, TypeError):
            whole = False
        if not whole:
            name = path.relative_to(root)
            remedy = f"git checkout -- {name}; then `dvc repro` (results stay in its cache)"
            yield Finding("dvc", WRONG, f"{name} is damaged: a kill while DVC wrote it?", remedy)


def _stale_locks(root: Path) -> Findings:
    import psutil

    path = root / ".dvc/tmp/rwlock"
    if path.is_file():
        try:
            held = json.loads(path.read_text(encoding="utf-8") or "{}")
            dead = sorted({pid for pid in _pids(held) if not psutil.pid_exists(pid)})
        except ValueError:
            yield Finding("dvc", WRONG, ".dvc/tmp/rwlock is damaged", "if no dvc runs: rm .dvc/tmp/rwlock")
            return
        if dead:
            said = f"processes that are gone ({', '.join(map(str, dead))}) hold .dvc/tmp/rwlock"
            yield Finding("dvc", WRONG, said, "if no dvc runs: rm .dvc/tmp/rwlock")


def _pids(tree: object) -> Iterable[int]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "pid" and isinstance(value, int):
                yield value
            else:
                yield from _pids(value)
    elif isinstance(tree, list):
        for item in tree:
            yield from _pids(item)


def check_database(root: Path) -> Findings:
    """`mlflow.db` can be read."""
    path = root / "mlflow.db"
    if not path.is_file():
        yield Finding("tracking", OK, "no mlflow.db yet; the first run makes it")
        return
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=10)
        try:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict == "ok":
        yield Finding("tracking", OK, f"mlflow.db, {path.stat().st_size / 1e6:.0f} MB")
    else:
        remedy = "bring a copy back; or move it away: a new one is made, without the runs of before"
        yield Finding("tracking", WRONG, f"mlflow.db is damaged: {verdict}", remedy)


def check_leftovers(root: Path, now: float | None = None) -> Findings:
    """What killed commands left: the same command goes on from it, or it can go."""
    unsent = sorted((root / ".darkarc/unsent").glob("*.jsonl"))
    if unsent:
        yield Finding(
            "leftovers", NOTE, f"{len(unsent)} runs wait in .darkarc/unsent for a server that did not answer",
            "the next run of any stage sends them",
        )  # fmt: skip
    folders = [root, root / "data", root / "reports", *(root / "sources").glob("*")]
    old = [
        path
        for folder in folders
        for pattern in LEFTOVERS
        for path in sorted(folder.glob(pattern))
        if (now or time.time()) - path.stat().st_mtime > OLD_LOCK_S
    ]
    if old:
        names = ", ".join(str(path.relative_to(root)) for path in old[:5])
        remedy = "repeat the command that made it, which goes on; or remove it"
        yield Finding("leftovers", NOTE, f"half-written and over an hour old: {names}", remedy)
    if not unsent and not old:
        yield Finding("leftovers", OK, "none")


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime
