"""Disturb every verb at random, run the same command again, and compare with an undisturbed run.

    python benchmarks/faults.py --faults kill term disk closed memory --tries 20 --seed 1

`kill` and `term`: SIGKILL or SIGTERM to the whole process group at a random moment. `disk`: the project
lies in a file system that is full after a random share of what the verb writes (a tmpfs; only root may
mount one). `closed`: the project, or a folder of it, cannot be written. `memory`: the address space is
limited to a random share of what the verb takes (RLIMIT_AS). Then the fault is lifted and the command has
to end with the bytes of an undisturbed run, nothing left about, no MLflow run RUNNING and one registered
version. Each verb starts from the same files in a small project of its own, and goes on to the next fault
from where the last one left it. A try that the verb outran counts for nothing, and the next begins anew; of
these there are at most four times as many. Exit status 1 if anything was lost, or if a struck verb did not
say why in a message of its own.
"""

import argparse
import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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


STATE = ".darkarc"
"""Where verbs keep what they go on from."""


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
    """An undisturbed run of one verb: the project before it, what it wrote, and what that took: seconds,
    bytes of the disk, and bytes of address space."""

    before: Path
    contents: dict[str, str]
    files: set[str]
    seconds: float
    grown: int
    address_space: int


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, what it said, and the most address space it had, in bytes."""

    status: int
    said: str
    address_space: int = 0

    @property
    def found_it_done(self) -> bool:
        # A disturbance may come between the last byte and the end: then there is nothing left to do.
        return "a complete store stands there" in self.said

    @property
    def said_why(self) -> bool:
        lines = self.said.splitlines()
        return "Traceback" not in self.said and any(line.startswith("darkarc: ") for line in lines)


@dataclass
class Outcome:
    """What became of one verb; tries: those that it outran included; silent: what struck ones said that did
    not say why."""

    verb: str
    fault: str
    tries: int
    struck: int
    silent: list[str]
    same_bytes: bool
    leftovers: list[str]
    running: int
    versions: int

    @property
    def nothing_lost(self) -> bool:
        return self.same_bytes and not self.leftovers and self.running == 0 and self.versions <= 1


class CannotTry(Exception):
    """This machine does not allow the fault; the message says why."""


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
        ended = run_to_its_end(project, VERBS[name].arguments)
        seconds = time.monotonic() - started
        outputs, grown = contents(project, VERBS[name].outputs), size(project) - size(before)
        found[name] = Calm(before, outputs, files(project), seconds, grown, ended.address_space)
    return found


def try_verb(name: str, calm: Calm, fault: str, tries: int, seed: int, folder: Path) -> Outcome:
    """Run a verb with `tries` faults, then let it end; compare with the undisturbed run."""
    verb, chance = VERBS[name], random.Random(f"{name} {seed}")
    struck, silent = 0, []
    with FAULTS[fault](folder / f"{fault}-{name}", calm) as (project, strike):
        starts = 0
        while struck < tries and starts < 5 * tries:
            starts += 1
            ended = strike(verb.arguments, chance)
            if ended.status == 0 or ended.found_it_done:
                begin_anew(project, verb, calm.before)
                continue
            struck += 1
            if fault not in SILENT and not ended.said_why:
                silent.append(ended.said[-1500:])
        run_to_its_end(project, verb.arguments)
        return Outcome(
            verb=name,
            fault=fault,
            tries=starts,
            struck=struck,
            silent=silent,
            same_bytes=calm.contents == contents(project, verb.outputs),
            leftovers=sorted(files(project) - calm.files),
            running=running(project),
            versions=versions(project),
        )


def begin_anew(project: Path, verb: Verb, before: Path) -> None:
    """The verb was quicker than the fault: take what it wrote and what it remembers away."""
    remove(project, (*verb.outputs, STATE))
    if (before / STATE).exists():
        shutil.copytree(before / STATE, project / STATE)


# The faults: each yields a project, and what runs a command in it under a fault drawn anew

Strike = Callable[[tuple[str, ...], random.Random], Ended]


def a_copy(calm: Calm, project: Path) -> Path:
    shutil.copytree(calm.before, project, dirs_exist_ok=True)
    relocate(calm.before, project)
    return project


@contextlib.contextmanager
def killed(folder: Path, calm: Calm, how: signal.Signals = signal.SIGKILL) -> Iterator[tuple[Path, Strike]]:
    project = a_copy(calm, folder)

    def strike(arguments: tuple[str, ...], chance: random.Random) -> Ended:
        return run(project, arguments, end=(chance.uniform(0, calm.seconds), how))

    yield project, strike


@contextlib.contextmanager
def asked_to_end(folder: Path, calm: Calm) -> Iterator[tuple[Path, Strike]]:
    with killed(folder, calm, signal.SIGTERM) as found:
        yield found


@contextlib.contextmanager
def full_disk(folder: Path, calm: Calm) -> Iterator[tuple[Path, Strike]]:
    """A tmpfs with room for a random share of what the verb adds to the project."""
    if os.geteuid() != 0:
        raise CannotTry("only root may mount a small file system")
    folder.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", "size=2g", "tmpfs", str(folder))
    try:
        project = a_copy(calm, folder / "project")

        def strike(arguments: tuple[str, ...], chance: random.Random) -> Ended:
            there = os.statvfs(folder)
            used = (there.f_blocks - there.f_bfree) * there.f_frsize
            mount("-o", f"remount,size={used + int(chance.random() * calm.grown)}", str(folder))
            try:
                return run(project, arguments)
            finally:
                mount("-o", "remount,size=2g", str(folder))

        yield project, strike
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def closed_folder(folder: Path, calm: Calm) -> Iterator[tuple[Path, Strike]]:
    """The project or a folder of it is read-only: by its mode, or by a mount for root, who ignores modes."""
    project = a_copy(calm, folder)
    places = [project, *(project / name for name in ("data", "reports") if (project / name).is_dir())]

    def strike(arguments: tuple[str, ...], chance: random.Random) -> Ended:
        with read_only(chance.choice(places)):
            return run(project, arguments)

    yield project, strike


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        mode = folder.stat().st_mode
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(mode)
        return
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,ro,bind", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def little_memory(folder: Path, calm: Calm) -> Iterator[tuple[Path, Strike]]:
    project = a_copy(calm, folder)

    def strike(arguments: tuple[str, ...], chance: random.Random) -> Ended:
        return run(project, arguments, address_space=int(chance.uniform(0.3, 1.0) * calm.address_space))

    yield project, strike


FAULTS: dict[str, Callable[[Path, Calm], contextlib.AbstractContextManager[tuple[Path, Strike]]]] = {
    "kill": killed,
    "term": asked_to_end,
    "disk": full_disk,
    "closed": closed_folder,
    "memory": little_memory,
}
SILENT = ("kill", "term")
"""Who sends a signal knows why."""


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise CannotTry(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


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


def run_to_its_end(folder: Path, arguments: tuple[str, ...]) -> Ended:
    ended = run(folder, arguments)
    if ended.status and not ended.found_it_done:
        raise RuntimeError(f"{' '.join(arguments)} in {folder}: status {ended.status}\n{ended.said[-3000:]}")
    return ended


def run(
    folder: Path,
    arguments: tuple[str, ...],
    *,
    end: tuple[float, signal.Signals] | None = None,
    address_space: int | None = None,
) -> Ended:
    """Run a command in a process group of its own. `end`: kill the group after these seconds, by this signal.
    `address_space`: limit, in bytes."""

    def limit() -> None:
        if address_space is not None:
            resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))

    begun, signalled, most = time.monotonic(), False, 0
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command(arguments),
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
            preexec_fn=limit,
        )
        while True:
            try:
                process.wait(0.05)
                break
            except subprocess.TimeoutExpired:
                most = max(most, address_space_of(process.pid))
            after = time.monotonic() - begun
            if end and after > end[0] and not signalled:
                os.killpg(process.pid, end[1])
                signalled = True
            if after > 900:
                os.killpg(process.pid, signal.SIGKILL)
                raise RuntimeError(f"{' '.join(arguments)} in {folder}: no end after 900 seconds")
        output.seek(0)
        return Ended(process.returncode, output.read().decode(errors="replace"), most)


def address_space_of(pid: int) -> int:
    """The most that the process has had, in bytes; 0 once it has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmPeak:"):
                return 1024 * int(line.split()[1])
    return 0


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
    skip = ("mlartifacts/", f"{STATE}/tune/", "mlflow.db")
    names = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return {name for name in names if not name.startswith(skip)}


def size(folder: Path) -> int:
    """Bytes of the disk that a folder takes."""
    return sum(512 * path.lstat().st_blocks for path in folder.rglob("*"))


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
    parser.add_argument("--faults", nargs="+", default=["kill"], choices=list(FAULTS))
    parser.add_argument("--tries", type=int, default=3, help="of each fault that strike, a verb")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, shares and folders")
    parser.add_argument("--verbs", nargs="*", default=list(VERBS), choices=list(VERBS))
    asked = parser.parse_args()
    print(f"seed {asked.seed}\n")
    print("| verb | fault | tries | struck | said why | same bytes | left about | RUNNING | versions |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    fine = True
    with tempfile.TemporaryDirectory(prefix="darkarc-faults-") as name:
        folder = Path(name)
        calm = calm_project(folder, asked.verbs)
        for verb, fault in ((verb, fault) for verb in asked.verbs for fault in asked.faults):
            try:
                found = try_verb(verb, calm[verb], fault, asked.tries, asked.seed, folder)
            except CannotTry as reason:
                print(f"| {verb} | {fault} | 0 | not tried: {reason} | | | | | |", flush=True)
                continue
            fine &= found.nothing_lost and not found.silent
            print(row(found), flush=True)
            for said in found.silent:
                print(f"{verb}, {fault}:\n{said}\n", file=sys.stderr, flush=True)
    return 0 if fine else 1


def row(found: Outcome) -> str:
    said = "–" if found.fault in SILENT else f"{found.struck - len(found.silent)} of {found.struck}"
    cells = [found.verb, found.fault, found.tries, found.struck, said, "yes" if found.same_bytes else "NO"]
    cells += [", ".join(found.leftovers) or "nothing", found.running, found.versions]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    raise SystemExit(main())
