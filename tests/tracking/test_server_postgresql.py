"""The team's server on a real PostgreSQL: four workers at once, a study, and who may see what."""

import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psutil
import pytest

from darkarc import config
from darkarc.tracking import open_client, start_run
from darkarc.tracking.server import DATABASE, PASSWORD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

WORKERS = 4
STEPS = 150
ADMIN_PASSWORD = "100% made for this test: €"
USER, USER_PASSWORD = "astronomer", "lenses and their arcs"


@dataclass(frozen=True)
class Running:
    uri: str
    database: str
    home: Path
    process: subprocess.Popen

    def call(
        self, path: str, login: str = f"admin:{ADMIN_PASSWORD}", host: str = "", **body: Any
    ) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/{path}",
            data=json.dumps(body).encode() if body else None,
            headers={"Content-Type": "application/json"},
        )
        if host:
            request.add_header("Host", host)
        if login:
            request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binary(name: str) -> str:
    """Debian keeps PostgreSQL's server out of the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = shutil.which(name) or (str(found[-1]) if found else None)
    if path is None:
        pytest.skip(f"PostgreSQL is not here ({name}): apt-get install postgresql")
    return path


@dataclass
class Postgres:
    """A PostgreSQL that listens on the loopback and asks for a password."""

    url: str
    command: list[str]
    owner: dict[str, Any]
    folder: Path
    process: subprocess.Popen | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, cwd=self.folder, **self.owner
            )

    def stop(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(60)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    initdb, binary = _binary("initdb"), _binary("postgres")
    # It refuses to run as root, and a user `postgres` cannot enter pytest's folders.
    owner: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="darkarc-postgresql-"))
    try:
        (folder / "password").write_text("p%ss/word")
        if owner:
            for path in (folder, folder / "password"):
                shutil.chown(path, **owner)
        make = [initdb, "-D", str(folder / "data"), "-U", "mlflow", "-A", "scram-sha-256", "-N", "-E", "UTF8"]
        make += ["--locale=C", f"--pwfile={folder / 'password'}"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, **owner)
        port = _free_port()
        run = [binary, "-D", str(folder / "data"), "-p", str(port), "-k", str(folder)]
        run += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        server = Postgres(f"postgresql://mlflow:p%25ss%2Fword@127.0.0.1:{port}", run, owner, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)  # at once, with all connections
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    """URL of an empty database on it."""
    assert postgres.process is not None
    return _new_database(postgres.url, postgres.process, postgres.folder / "log")


def _new_database(server: str, process: subprocess.Popen, log: Path) -> str:
    import psycopg2

    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            connection = psycopg2.connect(f"{server}/postgres")
            break
        except psycopg2.OperationalError:
            time.sleep(0.1)
    else:
        raise AssertionError(log.read_text())
    connection.autocommit = True
    connection.cursor().execute("create database runs")
    connection.close()
    return f"{server}/runs"


@pytest.fixture(scope="module")
def running(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`darkarc server`, as a user starts it."""
    folder = tmp_path_factory.mktemp("team")
    port = _free_port()
    command = [sys.executable, "-m", "darkarc", "server", "--port", str(port), "--home", str(folder / "home")]
    environment = os.environ | {DATABASE: database, PASSWORD: ADMIN_PASSWORD}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--workers", "2"],
            env=environment,
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    running = Running(f"http://127.0.0.1:{port}", database, folder / "home", process)
    try:
        for _ in range(900):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{running.uri}/health", timeout=1):
                break
            time.sleep(0.1)
        running.call("users/create", username=USER, password=USER_PASSWORD)
        running.call("users/create", username="colleague", password=USER_PASSWORD)
        yield running
        assert process.poll() is None, log.read_text()
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()  # this process alone, as a service manager does
        process.wait(60)
        left = psutil.wait_procs(family, timeout=20)[1]
        for child in left:
            child.kill()
    assert not left


@pytest.fixture
def as_user(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose runs go to the server."""
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", USER_PASSWORD)
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _work(number: int, together: Barrier, out: str, steps: int = STEPS, pause_s: float = 0.0) -> None:
    """One worker's run; what it was warned of goes to the file `out`."""
    warned = _Warnings()
    logging.getLogger("darkarc").addHandler(warned)
    settings = config.parse({"seed": number, "tracking": {"system_metrics": False, "patience_s": 120}})
    Path(f"note-{number}.txt").write_text(f"worker {number}\n" * 1000)
    together.wait(240)  # so that all of them find no experiment, and create it
    with start_run(settings, name=f"worker {number}", journal=Path(f"{number}.jsonl")) as tracker:
        run_id = tracker.run_id
        for step in range(steps):
            tracker.log_metrics({"loss": number + 1 / (1 + step), "coverage": step / steps}, step)
            time.sleep(pause_s)
        tracker.set_tags({"worker": number})
        tracker.log_artifact(f"note-{number}.txt", "notes")
    Path(out).write_text(json.dumps({"run_id": run_id, "token": tracker.token, "warnings": warned.messages}))


@contextlib.contextmanager
def _at_work(*arguments: Any) -> Iterator[list[dict[str, Any]]]:
    """Workers that log at once; after the block, which they outlive, what each of them reports."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(WORKERS)
    workers = [
        context.Process(target=_work, args=(number, together, f"{number}.json", *arguments))
        for number in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    told: list[dict[str, Any]] = []
    yield told
    for worker in workers:
        worker.join(400)
    assert [worker.exitcode for worker in workers] == [0] * WORKERS
    told += [json.loads(Path(f"{number}.json").read_text()) for number in range(WORKERS)]


def _assert_curves(client: Any, number: int, run_id: str, steps: int) -> None:
    loss = client.get_metric_history(run_id, "loss")
    assert [(p.step, p.value) for p in loss] == [(s, number + 1 / (1 + s)) for s in range(steps)]
    coverage = client.get_metric_history(run_id, "coverage")
    assert [(p.step, p.value) for p in coverage] == [(s, s / steps) for s in range(steps)]


def test_four_workers_log_at_once_and_nothing_is_missing(as_user: Path, running: Running):
    with _at_work() as told:
        pass
    assert [report["warnings"] for report in told] == [[]] * WORKERS

    client = open_client()
    (experiment,) = [e for e in client.search_experiments() if e.name == config.Config().tracking.experiment]
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {report["run_id"] for report in told}
    for number, report in enumerate(told):
        run = runs[report["run_id"]]
        assert run.info.status == "FINISHED"
        assert run.data.tags["worker"] == str(number)
        assert run.data.params["cfg.seed"] == str(number)
        _assert_curves(client, number, run.info.run_id, STEPS)
        # Artifacts go through the server, to its own folder: a client needs no key to their storage.
        (kept,) = (running.home / "artifacts").rglob(f"note-{number}.txt")
        assert kept.read_text() == Path(f"note-{number}.txt").read_text()
        found = client.download_artifacts(run.info.run_id, f"notes/note-{number}.txt", str(as_user))
        assert Path(found).read_text() == kept.read_text()


@pytest.mark.drill
def test_a_database_restarted_under_load_loses_and_doubles_nothing(
    as_user: Path, running: Running, postgres: Postgres
):
    """Two restarts while four workers log: at once with all connections, as after a crash, and asked to."""
    steps, restarts = 300, 0
    with _at_work(steps, 0.1) as told:
        for at_step, how in ((40, signal.SIGQUIT), (150, signal.SIGINT)):
            ends_at = time.monotonic() + 300
            while min(_recorded(number) for number in range(WORKERS)) < at_step:
                assert time.monotonic() < ends_at, "the workers do not log"
                time.sleep(0.1)
            assert min(_recorded(number) for number in range(WORKERS)) < steps - 20, "too late to disturb"
            postgres.stop(how)
            time.sleep(3)
            postgres.start()
            restarts += 1
    assert restarts == 2
    assert any("does not take records" in line for report in told for line in report["warnings"])
    assert not any("refuses to record" in line for report in told for line in report["warnings"])
    client = open_client()
    for number, report in enumerate(told):
        run = client.get_run(report["run_id"])
        same = client.search_runs([run.info.experiment_id], f"tags.`darkarc.journal` = '{report['token']}'")
        assert len(same) == 1
        assert run.info.status == "FINISHED"
        assert run.data.tags["worker"] == str(number)
        assert "darkarc.refused" not in run.data.tags
        _assert_curves(client, number, report["run_id"], steps)


def _recorded(number: int) -> int:
    """Steps in a worker's journal so far."""
    journal = Path(f"{number}.jsonl")
    return journal.read_text().count('"kind":"metrics"') if journal.exists() else 0


def test_a_study_logs_to_it(as_user: Path, running: Running):
    from darkarc.data.generate import generate
    from darkarc.data.prepare import prepare
    from darkarc.tuning import parse_study, run_study

    settings = config.parse(
        {
            "simulate": {"n_axion": 40, "n_cdm": 10, "n_no_sub": 10},
            "prepare": {"train": 0.5, "validation": 0.3, "calibration": 0.1, "test": 0.1, "mass_bins": 1},
            "model": {"width": 0.25, "bins": 16},
            "tracking": {"system_metrics": False},
        }
    )
    raw = generate(settings, as_user / "raw", progress=False)
    store = prepare(raw, as_user / "prepared", settings, None, progress=False)
    study = parse_study(
        {
            "name": "team",
            "budget": {"trials": 2, "epochs": 1},
            "algorithm": "random",
            "space": {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        },
        settings,
    )
    result = run_study(settings, study, store, work=as_user / "work", progress=False)
    assert result.finished == 2
    client = open_client()
    parent = client.get_run(str(result.run_id))
    trials = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.run_id}'")
    assert parent.info.status == "FINISHED"
    assert [run.info.status for run in trials] == ["FINISHED"] * 2
    assert all("val_mae_dex" in run.data.metrics for run in trials)


@contextlib.contextmanager
def _refused(status: int) -> Iterator[None]:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        yield
    assert refusal.value.code == status
    refusal.value.close()


def test_it_asks_who_is_there(running: Running):
    assert running.call("experiments/search?max_results=1")["experiments"]
    for login in ("", "admin:password1234", f"{USER}:wrong", "admin:"):
        with _refused(401):
            running.call("experiments/search?max_results=1", login=login)
    with _refused(403):
        running.call("experiments/search?max_results=1", host="example.org")


def test_colleagues_add_to_each_others_runs_and_cannot_delete_them(running: Running):
    mine, theirs = f"{USER}:{USER_PASSWORD}", f"colleague:{USER_PASSWORD}"
    experiment = running.call("experiments/create", login=mine, name="ours")["experiment_id"]
    run = running.call("runs/create", login=theirs, experiment_id=experiment)["run"]["info"]["run_id"]
    running.call("runs/log-metric", login=theirs, run_id=run, key="loss", value=1.0, timestamp=1, step=0)
    with _refused(403):
        running.call("experiments/delete", login=theirs, experiment_id=experiment)


def test_it_listens_on_the_loopback_and_keeps_its_secrets(running: Running):
    main = psutil.Process(running.process.pid)
    family = [main, *main.children(recursive=True)]
    listening = {
        connection.laddr.ip
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    visible = " ".join(word for process in family for word in process.cmdline())
    for secret in ("p%25ss", ADMIN_PASSWORD, (running.home / "secret_key").read_text().strip()):
        assert secret not in visible
    for path in (running.home, running.home / "secret_key", running.home / "basic_auth.ini"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_wrong_password_of_the_database_is_one_line(database: str, tmp_path: Path):
    wrong = database.replace("p%25ss%2Fword", "guessed")
    done = subprocess.run(
        [sys.executable, "-m", "darkarc", "server", "--home", str(tmp_path / "home")],
        env=os.environ | {DATABASE: wrong},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 2
    assert "password authentication failed" in done.stderr
    assert "guessed" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
