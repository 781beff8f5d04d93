"""Kill every verb at random moments, run the same command again, and compare with an undisturbed run.

`python benchmarks/faults.py --kills 20 --seed 1 --verbs train predict` prints a table: verb, kills, whether
the bytes are the same, what lay about afterwards, and MLflow runs left RUNNING. Each verb starts from the
same files in a small project of its own; a kill is SIGKILL to the whole process group, or SIGTERM with
`--signal TERM`.
Exit status 1 if anything was lost.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

PROJECT = Path(__file__).resolve().parents[1]

PARAMETERS = {
    "simulate": {"n_axion": 180, "n_cdm": 36, "n_no_sub": 36},
    "prepare": {
        "train": 0.5,
        "validation": 0.15,
        "calibration": 0.15,
        "test": 0.2,
        "mass_bins": 2,
        "outliers": {"trees": 10},
    },
    "model": {"width": 0.25, "bins": 16},
    "train": {"epochs": 3, "batch_size": 16},
    "tune": {"search": True, "study": "study.yaml"},
    "tracking": {"system_metrics": False},
}
STUDY = {
    "name": "faults",
    "objectives": {"val_mae_dex": "min"},
    "budget": {"trials": 3, "epochs": 2},
    "algorithm": {"name": "random"},
    "space": {"train.weight_decay": {"log_uniform": [1e-3, 1e-1]}},
    "resources": {"cpus": 1},
    "concurrent": 1,
}


@dataclass(frozen=True)
class Verb:
    """A command of the pipeline: what it reads, what it writes, and what must be there before."""

    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    after: tuple[str, ...] = ()


VERBS = {
    "simulate": Verb(("simulate", "--workers", "1"), ("data/simulated",)),
    "ingest": Verb(("ingest", "lenses", "--out", "data/deeplense"), ("data/deeplense",)),
    "prepare": Verb(("prepare",), ("data/prepared", "reports/quality.json"), ("simulate",)),
    "tune": Verb(("tune", "--resume"), ("reports/winner.yaml",), ("simulate", "prepare")),
    "train": Verb(("train",), ("data/trained", "reports/history.csv"), ("simulate", "prepare")),
    "evaluate": Verb(("evaluate",), ("reports/metrics.json",), ("simulate", "prepare", "train")),
    "register": Verb(("register",), (), ("simulate", "prepare", "train", "evaluate")),
    "export": Verb(("export",), ("data/exported",), ("simulate", "prepare", "train", "evaluate", "register")),
    "predict": Verb(
        ("predict", "data/trained", "data/simulated", "--out", "predictions.csv", "--batch-size", "8"),
        ("predictions.csv",),
        ("simulate", "prepare", "train"),
    ),
}


@dataclass(frozen=True)
class Calm:
    """An undisturbed run of one verb: the project before it, what it wrote, and how long it took."""

    before: Path
    contents: dict[str, str]
    files: set[str]
    seconds: float


@dataclass
class Outcome:
    """What became of one verb after its kills."""

    verb: str
    kills: int
    same_bytes: bool
    leftovers: list[str]
    running: int
    versions: int
    seconds: float

    @property
    def nothing_lost(self) -> bool:
        return self.same_bytes and not self.leftovers and self.running == 0 and self.versions <= 1


def calm_project(folder: Path, verbs: list[str]) -> dict[str, Calm]:
    """Run the verbs, and those they need, once and undisturbed; a copy of the project before each is kept."""
    project = folder / "calm"
    start_project(project)
    needed = {name for verb in verbs for name in (*VERBS[verb].after, verb)}
    found = {}
    for name in (verb for verb in VERBS if verb in needed):
        before = folder / f"before-{name}"
        shutil.copytree(project, before)
        relocate(project, before)
        started = time.monotonic()
        run(project, VERBS[name].arguments)
        seconds = time.monotonic() - started
        found[name] = Calm(before, contents(project, VERBS[name].outputs), files(project), seconds)
    return found


def try_verb(name: str, calm: Calm, kills: int, seed: int, how: signal.Signals, folder: Path) -> Outcome:
    """Run a verb with `kills` kills at random moments, then let it end; compare with the undisturbed run."""
    disturbed = folder / f"disturbed-{name}"
    shutil.copytree(calm.before, disturbed)
    relocate(calm.before, disturbed)
    moments = random.Random(f"{name} {seed}")
    for _ in range(kills):
        if not run_and_kill(disturbed, VERBS[name].arguments, moments.uniform(0, calm.seconds), how):
            remove(disturbed, VERBS[name].outputs)  # it was quicker than the kill: once more from the start
    run(disturbed, VERBS[name].arguments, may_be_done=True)
    return Outcome(
        verb=name,
        kills=kills,
        same_bytes=calm.contents == contents(disturbed, VERBS[name].outputs),
        leftovers=sorted(files(disturbed) - calm.files),
        running=running(disturbed),
        versions=versions(disturbed),
        seconds=calm.seconds,
    )


def start_project(folder: Path) -> None:
    """A small project without git or DVC: parameters, a study, and a folder of DeepLense files."""
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMETERS))
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    import darkarc

    images = darkarc.simulate(
        "model_ii", log10_mass_ev=np.linspace(-23.9, -22.1, 60), noise="published", seed=4
    )
    target = folder / "lenses" / "Model_II" / "no_sub"
    target.mkdir(parents=True)
    for number, image in enumerate(images):
        np.save(target / f"no_sub_sim_{number}.npy", image)


def relocate(calm: Path, disturbed: Path) -> None:
    """MLflow keeps absolute places of artifacts: point those of a copied project into the copy."""
    database = disturbed / "mlflow.db"
    if not database.exists():
        return
    places = (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("model_versions", "source"),
        ("model_versions", "storage_location"),
        ("logged_models", "artifact_location"),
    )
    with sqlite3.connect(database) as connection:
        for table, column in places:
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(calm), str(disturbed))
            )


def command(arguments: tuple[str, ...]) -> list[str]:
    quiet = [] if arguments[0] in ("register", "export") else ["--quiet"]
    return [sys.executable, "-m", "darkarc", *arguments, *quiet]


def environment(folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_", "DARKARC_"))}
    return kept | {
        "OMP_NUM_THREADS": "1",
        "DVC_ROOT": str(folder),
        "PYTHONPATH": str(PROJECT / "src"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def run(folder: Path, arguments: tuple[str, ...], *, may_be_done: bool = False) -> None:
    ended = subprocess.run(
        command(arguments), cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=600
    )
    # A disturbance may come between the last byte and the end of the process: then there is nothing to do.
    done = may_be_done and "a complete store stands there" in ended.stderr
    if ended.returncode and not done:
        raise RuntimeError(
            f"{' '.join(arguments)} in {folder}: status {ended.returncode}\n{ended.stderr[-3000:]}"
        )


def run_and_kill(folder: Path, arguments: tuple[str, ...], after_s: float, how: signal.Signals) -> bool:
    """Start it in a process group of its own and kill the group after a while; whether it was still there."""
    process = subprocess.Popen(
        command(arguments),
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, how)
        process.wait(120)
        return True
    return False


def remove(folder: Path, outputs: tuple[str, ...]) -> None:
    for output in outputs:
        path = folder / output
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def contents(folder: Path, outputs: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of every file of the outputs."""
    found = {}
    for output in outputs:
        path = folder / output
        members = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for member in members:
            name = str(member.relative_to(folder))
            found[name] = hashlib.sha256(member.read_bytes()).hexdigest() if member.exists() else "absent"
    return found


def files(folder: Path) -> set[str]:
    """Names of the files that a verb left, without those whose names are drawn anew by every run."""
    skip = ("mlartifacts/", ".darkarc/tune/", "mlflow.db")
    names = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return {name for name in names if not name.startswith(skip)}


def running(folder: Path) -> int:
    """MLflow runs of the project that still say RUNNING."""
    return count(folder, "SELECT count(*) FROM runs WHERE status = 'RUNNING'")


def versions(folder: Path) -> int:
    """Registered versions: a verb that was killed and run again makes one, not two."""
    return count(folder, "SELECT count(*) FROM model_versions")


def count(folder: Path, query: str) -> int:
    if not (folder / "mlflow.db").exists():
        return 0
    with sqlite3.connect(folder / "mlflow.db") as connection:
        return int(connection.execute(query).fetchone()[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=3, help="kills a verb")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--verbs", nargs="*", default=list(VERBS), choices=list(VERBS))
    asked = parser.parse_args()
    how = signal.Signals[f"SIG{asked.signal}"]
    print(f"seed {asked.seed}, {how.name}\n")
    print("| verb | kills | same bytes | left about | runs RUNNING | registered versions | undisturbed, s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    fine = True
    with tempfile.TemporaryDirectory(prefix="darkarc-faults-") as name:
        folder = Path(name)
        calm = calm_project(folder, asked.verbs)
        for verb in asked.verbs:
            found = try_verb(verb, calm[verb], asked.kills, asked.seed, how, folder)
            fine &= found.nothing_lost
            print(
                f"| {verb} | {found.kills} | {'yes' if found.same_bytes else 'NO'} | "
                f"{', '.join(found.leftovers) or 'nothing'} | {found.running} | {found.versions} | "
                f"{found.seconds:.1f} |",
                flush=True,
            )
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
