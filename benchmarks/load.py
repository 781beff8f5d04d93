"""Load: stores of up to a million rows through every stage, questions over REST, and many loggers at once.

    python benchmarks/load.py --rows 100000 300000 1000000 --requests 10000 --clients 8 --loggers 50

Every stage runs in a process of its own on each number of rows (lenses of 16 x 16 pixels, simulated). Its
peak memory, children included, is read twenty times a second: `own` is what only it holds (anonymous and
shared memory), `resident` also has pages of mapped files, which the system takes back when somebody needs
them. The slope over the rows is by least squares. Then a registered regressor of 64 x 64 pixels answers over
MLflow's REST interface, and many processes log to one MLflow server. `--rows`, `--requests` or `--loggers` 0
leaves a part away. Exit status 1 if a question had no answer, or a point is missing or doubled.
"""

import argparse
import contextlib
import dataclasses
import http.client
import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

PIXELS = 16
PRESET = "model_iii"
CURVES = ("loss", "val_loss", "val_mae_dex")
MB = 1e6

PARAMETERS = {
    "device": "cpu",
    "data": {"memory_gb": 0.05},  # larger splits are memory-mapped
    "model": {"width": 0.25, "bins": 64, "lens_residual": "none"},
    "train": {"epochs": 1, "batch_size": 256, "sanity": False},
    "evaluate": {"floor_images": 0},
    "tune": {"search": False},
    "tracking": {"system_metrics": False},
}
STAGES = {
    "simulate": ("simulate", "--workers", "1"),
    "ingest": ("ingest", "lenses.tgz", "--out", "data/deeplense"),
    "prepare": ("prepare",),
    "train": ("train",),
    "evaluate": ("evaluate",),
    "predict": ("predict", "data/trained", "data/simulated", "--out", "predictions.parquet"),
}


@dataclasses.dataclass(frozen=True)
class Used:
    """What a process and its children took: seconds, and peaks of memory in bytes."""

    seconds: float
    own: int
    resident: int


# Rows


def measure_rows(rows: Sequence[int], folder: Path) -> dict[str, dict[int, Used]]:
    """Every stage on a store of each number of rows: stage -> rows -> what it used."""
    found: dict[str, dict[int, Used]] = {stage: {} for stage in STAGES}
    for n in rows:
        project = start_project(folder / str(n), PARAMETERS | {"simulate": shares(n)})
        for stage, arguments in STAGES.items():
            if stage == "ingest":
                write_archive(project / "data" / "simulated", project / "lenses.tgz")
            found[stage][n] = used = watched(stage_command(arguments, PIXELS), project)
            print(f"{stage}, {n} rows: {used.seconds:.1f} s, {used.own / MB:.0f} MB", file=sys.stderr)
        shutil.rmtree(project)
    return found


def shares(n: int) -> dict[str, Any]:
    """Section `simulate` of n images: 7 of 9 axion-like, as in params.yaml."""
    each = n // 9
    return {"preset": PRESET, "n_axion": n - 2 * each, "n_cdm": each, "n_no_sub": each}


def start_project(folder: Path, parameters: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters))
    return folder


def stage_command(arguments: Sequence[str], pixels: int) -> list[str]:
    quiet = [] if arguments[0] in ("register", "export") else ["--quiet"]
    return [sys.executable, str(Path(__file__).resolve()), "--stage", str(pixels), *arguments, *quiet]


def run_stage(pixels: int, arguments: list[str]) -> None:
    """`darkarc ARGUMENTS`, with the preset's field of view in so many pixels a side."""
    from darkarc.cli import main as darkarc
    from darkarc.simulation import presets

    preset = presets.PRESETS[PRESET]
    camera = preset.instrument
    scale = camera.pixel_scale_arcsec * camera.pixels / pixels
    smaller = dataclasses.replace(camera, pixels=pixels, pixel_scale_arcsec=scale)
    presets.PRESETS[PRESET] = dataclasses.replace(preset, instrument=smaller)
    sys.argv = ["darkarc", *arguments]
    darkarc()


def write_archive(store: Path, out: Path) -> None:
    """The images of a store as DeepLense publishes them: an archive of a file an image."""
    from darkarc.data.store import Store

    source = Store.open(store, verify=False)
    names, masses = (source.samples[key].to_pylist() for key in ("class", "log10_axion_mass_ev"))
    with tarfile.open(out, "w:gz", compresslevel=1) as archive:
        for start in range(0, len(source), 4096):
            for row, image in enumerate(source.images(slice(start, start + 4096)), start):
                content = io.BytesIO()
                if masses[row] is None:
                    np.save(content, image)
                else:
                    pair = np.empty(2, dtype=object)
                    pair[0], pair[1] = image, np.float64(10 ** masses[row])
                    np.save(content, pair, allow_pickle=True)
                entry = tarfile.TarInfo(f"Model_III/{names[row]}/{names[row]}_sim_{row}.npy")
                entry.size = content.tell()
                content.seek(0)
                archive.addfile(entry, content)


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_", "DARKARC_"))}
    defaults = {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    return defaults | kept | {"DVC_ROOT": str(folder)} | more


def watched(command: Sequence[str], folder: Path) -> Used:
    """Run a command to its end; raises RuntimeError with what it said if it fails."""
    log = folder / "log"
    began, own, resident = time.monotonic(), 0, 0
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=output, stderr=output)
        while process.poll() is None:
            now = memory(process.pid)
            own, resident = max(own, now[0]), max(resident, now[1])
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {process.returncode}\n{log.read_text()[-3000:]}")
    return Used(time.monotonic() - began, own, resident)


def memory(pid: int) -> tuple[int, int]:
    """Bytes that a process and its children hold: (their own, resident with mapped files)."""
    own = resident = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(OSError, ValueError):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)
                       if name.startswith("Rss")}  # fmt: skip
                own += 1024 * (kib.get("RssAnon", 0) + kib.get("RssShmem", 0))
                resident += 1024 * sum(kib.values())
    return own, resident


def slope(found: dict[int, Used], of: str) -> float:
    """Of a quantity over the rows, by least squares, for 100,000 rows."""
    rows = np.array(list(found), float)
    values = np.array([getattr(used, of) for used in found.values()])
    return float(np.polyfit(rows / 1e5, values, 1)[0]) if len(rows) > 1 else float("nan")


def print_rows(found: dict[str, dict[int, Used]]) -> None:
    print(f"\n| stage | rows ({PIXELS} x {PIXELS} pixels) | seconds | own, MB | resident, MB |")
    print("|---|---|---|---|---|")
    for stage, by_rows in found.items():
        for n, used in by_rows.items():
            own, resident = used.own / MB, used.resident / MB
            print(f"| {stage} | {n:,} | {used.seconds:.1f} | {own:.0f} | {resident:.0f} |")
    print("\n| stage | own, MB per 100,000 rows | resident | seconds |\n|---|---|---|---|")
    for stage, by_rows in found.items():
        own, resident = slope(by_rows, "own") / MB, slope(by_rows, "resident") / MB
        print(f"| {stage} | {own:+.1f} | {resident:+.1f} | {slope(by_rows, 'seconds'):.1f} |", flush=True)


# Questions over REST


@dataclasses.dataclass
class Answers:
    """Of all clients: seconds of each answer, what went wrong, and the server's own memory in bytes."""

    latencies: list[float]
    failures: Counter[str]
    seconds: float
    memory_before: int
    memory_after: int


def measure_rest(requests: int, clients: int, folder: Path) -> Answers:
    """Register a regressor and ask its server, a lens a question."""
    parameters = PARAMETERS | {
        "simulate": shares(450),
        "model": {},
        "train": PARAMETERS["train"] | {"batch_size": 64},
    }
    project = start_project(folder / "rest", parameters)
    for arguments in (
        STAGES["simulate"],
        STAGES["prepare"],
        STAGES["train"],
        STAGES["evaluate"],
        ("register",),
    ):
        watched(stage_command(arguments, 64), project)
    from darkarc.data.store import Store

    images = Store.open(project / "data" / "simulated").images(slice(0, 64))
    bodies = [json.dumps({"inputs": image[None, None].tolist()}).encode() for image in images]
    alias = next(line for line in (project / "log").read_text().splitlines() if line.startswith("models:/"))
    model = alias.split()[0]
    command = ["-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    uri = f"sqlite:///{project / 'mlflow.db'}"
    with server(command, project, "/ping", MLFLOW_TRACKING_URI=uri) as (port, pid):
        ask(port, bodies[:8], itertools.count(), 20)  # what happens only once is not the subject
        before = memory(pid)[0]
        latencies, failures, began = [], Counter(), time.monotonic()
        numbers = itertools.count()

        def client() -> None:
            took, wrong = ask(port, bodies, numbers, requests)
            latencies.extend(took)
            failures.update(wrong)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Answers(latencies, failures, time.monotonic() - began, before, memory(pid)[0])


def ask(
    port: int, bodies: Sequence[bytes], numbers: Iterator[int], stop: int
) -> tuple[list[float], Counter[str]]:
    """One client's questions over one connection, while `numbers`, shared by all clients, is below `stop`."""
    latencies: list[float] = []
    failures: Counter[str] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for number in numbers:
        if number >= stop:
            break
        began = time.perf_counter()
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/invocations", bodies[number % len(bodies)], headers)
            answer = connection.getresponse()
            content = json.loads(answer.read())
            median = np.array(content["predictions"]["median"]) if answer.status == 200 else np.nan
            if not np.isfinite(median).all():
                failures[f"status {answer.status}"] += 1
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            failures[type(error).__name__] += 1
            connection.close()
        latencies.append(time.perf_counter() - began)
    connection.close()
    return latencies, failures


@contextlib.contextmanager
def server(arguments: Sequence[str], folder: Path, path: str, **variables: str) -> Iterator[tuple[int, int]]:
    """A server of MLflow's on the loopback, ended with all its processes: (port, process id)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    scripts = str(Path(sys.executable).parent)
    variables["PATH"] = os.pathsep.join([scripts, os.environ["PATH"]])
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(folder, **variables), stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        ends_at = time.monotonic() + 300
        while not answers(port, path):
            if process.poll() is not None or time.monotonic() > ends_at:
                raise RuntimeError(f"{' '.join(command)}: does not answer\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield port, process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def print_rest(found: Answers, clients: int) -> None:
    ms = 1000 * np.array(found.latencies)
    print(
        "\n| questions | clients | failures | median, ms | p99, ms | a second | server, MB before | after |"
    )
    print("|---|---|---|---|---|---|---|---|")
    failed = ", ".join(f"{n} {kind}" for kind, n in found.failures.items()) or "0"
    print(
        f"| {len(ms):,} | {clients} | {failed} | {np.median(ms):.0f} | {np.quantile(ms, 0.99):.0f} | "
        f"{len(ms) / found.seconds:.0f} | {found.memory_before / MB:.0f} | {found.memory_after / MB:.0f} |",
        flush=True,
    )


# Loggers


@dataclasses.dataclass(frozen=True)
class Logged:
    """Points that all loggers measured, and what the server has of them."""

    sent: int
    missing: int
    doubled: int
    running: int
    seconds: float


def measure_loggers(loggers: int, steps: int, database: str | None, folder: Path) -> Logged:
    """As many processes at once as `loggers` log curves through journals to one MLflow server."""
    project = start_project(folder / "loggers", {"tracking": {"system_metrics": False, "patience_s": 300}})
    uri = database or f"sqlite:///{project / 'runs.db'}"
    command = ["-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "2"]
    command += ["--artifacts-destination", str(project / "artifacts")]
    with server(command, project, "/health", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as (port, _):
        os.environ |= {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "MLFLOW_DISABLE_TELEMETRY": "true"}
        # The modules are imported once, and every logger is a copy of that process.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mlflow", "darkarc.tracking"])
        began = time.monotonic()
        workers = [context.Process(target=log_curves, args=(n, steps, project)) for n in range(loggers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.monotonic() - began
        if wrong := [worker.exitcode for worker in workers if worker.exitcode]:
            raise RuntimeError(f"{len(wrong)} loggers died: {wrong}")
        return count_points(loggers, steps, project, seconds)


def log_curves(number: int, steps: int, project: Path) -> None:
    """One logger: a run with some curves, a call a step."""
    from darkarc import config
    from darkarc.tracking import start_run

    settings = config.load(project / "params.yaml")
    with start_run(settings, name=f"logger {number}", journal=project / f"{number}.jsonl") as tracker:
        for step in range(steps):
            tracker.log_metrics({key: point(number, key, step) for key in CURVES}, step)
        tracker.set_tags({"logger": number})


def point(number: int, key: str, step: int) -> float:
    return number + CURVES.index(key) / 10 + 1 / (1 + step)


def count_points(loggers: int, steps: int, project: Path, seconds: float) -> Logged:
    from darkarc import config
    from darkarc.tracking import open_client

    client = open_client()
    name = config.load(project / "params.yaml").tracking.experiment
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id], max_results=10 * loggers + 10)
    there: Counter[tuple[int, str, int, float]] = Counter()
    for run, key in itertools.product(runs, CURVES):
        number = int(run.info.run_name.split()[-1])
        there.update((number, key, p.step, p.value) for p in client.get_metric_history(run.info.run_id, key))
    sent = {
        (number, key, step, point(number, key, step))
        for number, key, step in itertools.product(range(loggers), CURVES, range(steps))
    }
    return Logged(
        sent=len(sent),
        missing=len(sent - there.keys()),
        doubled=there.total() - len(there) + len(there.keys() - sent),
        running=sum(run.info.status == "RUNNING" for run in runs),
        seconds=seconds,
    )


def print_loggers(found: Logged, loggers: int, database: str | None) -> None:
    kind = (database or "sqlite").partition(":")[0]
    print("\n| loggers | database | points | missing | doubled | runs RUNNING | points a second |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {loggers} | {kind} | {found.sent:,} | {found.missing} | {found.doubled} | {found.running} | "
        f"{found.sent / found.seconds:.0f} |",
        flush=True,
    )


def main() -> int:
    if sys.argv[1:2] == ["--stage"]:
        run_stage(int(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 30_000], help="of each store")
    parser.add_argument("--requests", type=int, default=1000, help="questions over REST, by all clients")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--loggers", type=int, default=8, help="processes that log at once")
    parser.add_argument("--steps", type=int, default=100, help="points of each of a logger's curves")
    parser.add_argument("--database", help="an empty one for the loggers' server [default: SQLite]")
    asked = parser.parse_args()
    fine = True
    with tempfile.TemporaryDirectory(prefix="darkarc-load-") as name:
        folder = Path(name)
        if rows := [n for n in asked.rows if n]:
            print_rows(measure_rows(rows, folder))
        if asked.requests:
            answered = measure_rest(asked.requests, asked.clients, folder)
            print_rest(answered, asked.clients)
            fine &= not answered.failures
        if asked.loggers:
            logged = measure_loggers(asked.loggers, asked.steps, asked.database, folder)
            print_loggers(logged, asked.loggers, asked.database)
            fine &= (logged.missing, logged.doubled, logged.running) == (0, 0, 0)
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
