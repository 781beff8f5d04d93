"""A tracking server on the loopback that goes away during a run and comes back."""

import csv
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.faults import VERBS, contents, environment, run_to_its_end, start_project
from darkarc import config
from darkarc.tracking import TrackingError, open_client, start_run
from darkarc.tracking.registration import register_onnx
from darkarc.tracking.registry import download_model
from darkarc.tracking.ui import ui_command, ui_environment

pytestmark = pytest.mark.slow


@contextmanager
def _server(folder: Path, port: int, log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--allowed-hosts", f"127.0.0.1:{port}", "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "served")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=folder, start_new_session=True
        )
    try:
        _wait_until_it_answers(port, process, log)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(port: int, process: subprocess.Popen, log: Path) -> None:
    for _ in range(1800):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_training_outlives_its_server(
    project: Path, tmp_path: Path, make_onnx: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    port = _free_port()
    log = tmp_path / "server.log"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    settings = config.parse({"tracking": {"system_metrics": False, "patience_s": 60}})
    figure = project / "figure.png"
    figure.write_bytes(b"picture")

    with ExitStack() as servers:
        servers.enter_context(_server(project, port, log))
        with start_run(settings, name="train", journal="journal") as tracker:
            run_id = str(tracker.run_id)
            tracker.log_metrics({"loss": 1.0}, 0)
            servers.close()  # killed, not asked
            started = time.monotonic()
            for epoch in range(1, 20):
                tracker.log_metrics({"loss": 1.0 / (1 + epoch)}, epoch)
            tracker.log_artifact(figure)
            assert time.monotonic() - started < 20
            servers.enter_context(_server(project, port, log))

        client = open_client()
        history = client.get_metric_history(run_id, "loss")
        assert client.get_run(run_id).info.status == "FINISHED"
        assert [(point.step, point.value) for point in history] == [(e, 1.0 / (1 + e)) for e in range(20)]
        (served,) = (project / "served").rglob("figure.png")
        assert served.read_bytes() == b"picture"

        path = make_onnx()
        example = np.ones((1, 1, 8, 8), np.float32)
        version = register_onnx(path, name="axion", run_id=run_id, input_example=example)
        assert download_model(version.uri).read_bytes() == path.read_bytes()


@pytest.mark.drill
@pytest.mark.timeout(1500)
def test_a_training_whose_server_is_gone_for_good_ends_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The real stage: the same weights, and the next run of the project sends its curves exactly once."""
    calm, alone = tmp_path / "calm", tmp_path / "alone"
    start_project(calm)
    for verb in ("simulate", "prepare"):
        run_to_its_end(calm, VERBS[verb].arguments)
    shutil.copytree(calm, alone)
    training = ("train", "-S", "train.epochs=8", "-S", "tracking.patience_s=1")
    run_to_its_end(calm, training)

    port, log = _free_port(), tmp_path / "server.log"
    served = tmp_path / "served"
    served.mkdir()
    uri = f"http://127.0.0.1:{port}"
    with _server(served, port, log):
        process = subprocess.Popen(
            [sys.executable, "-m", "darkarc", *training, "--quiet"],
            cwd=alone,
            env=environment(alone) | {"MLFLOW_TRACKING_URI": uri},
            stderr=subprocess.PIPE,
            text=True,
        )
        while not _points(served / "mlflow.db", "val_loss"):
            assert process.poll() is None, "the training was over before its server could go"
            time.sleep(0.02)
    told = process.communicate(timeout=600)[1]
    assert process.returncode == 0, told
    assert "does not take records" in told and "Traceback" not in told
    assert contents(alone, ("data/trained",)) == contents(calm, ("data/trained",))
    before = _points(served / "mlflow.db", "val_loss")
    assert 0 < len(before) < 8
    assert list((alone / ".darkarc/unsent").iterdir())

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("DVC_ROOT", str(alone))
    monkeypatch.chdir(alone)
    settings = config.parse({"tracking": {"system_metrics": False, "patience_s": 60}})
    with _server(served, port, log):
        for number in range(2):  # the second finds nothing left to send
            with start_run(settings, name="next", journal=f"next-{number}.jsonl"):
                pass
        client = open_client()
        (trained,) = client.search_runs(["1"], "attributes.run_name = 'train'")
        history = client.get_metric_history(trained.info.run_id, "val_loss")
        assert trained.info.status == "FINISHED"
    with (alone / "reports/history.csv").open() as file:
        expected = [(int(row["epoch"]), float(row["val_loss"])) for row in csv.DictReader(file)]
    assert [(p.step, p.value) for p in history] == expected
    assert len(_points(served / "mlflow.db", "val_loss")) == len(expected) == 8
    assert not list((alone / ".darkarc/unsent").iterdir())


def _points(database: Path, key: str) -> list[tuple[int, float]]:
    """Rows of a curve in a server's database; none while there is no table."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT step, value FROM metrics WHERE key = ?", (key,)).fetchall()
    return []


def test_the_ui_answers_to_its_own_name_only(project: Path, tmp_path: Path):
    port = _free_port()
    log = tmp_path / "ui.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ui_command(port), env=ui_environment(), stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_until_it_answers(port, process, log)
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
        with urllib.request.urlopen(address) as answer:
            assert json.load(answer)["experiments"]
        stranger = urllib.request.Request(address, headers={"Host": "example.org"})
        with pytest.raises(urllib.error.HTTPError) as refusal, urllib.request.urlopen(stranger):
            pass
        assert refusal.value.code == 403
        refusal.value.close()
        listening = {
            connection.laddr.ip
            for child in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for connection in child.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_the_ui_leaves_no_process(how: signal.Signals, project: Path, tmp_path: Path):
    """A service manager tells `darkarc ui` alone; MLflow's server below it must not go on."""
    port = _free_port()
    log = tmp_path / "ui.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "darkarc", "ui", "--port", str(port)],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    family: list[psutil.Process] = []
    try:
        _wait_until_it_answers(port, process, log)
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        process.send_signal(how)
        assert process.wait(60) == 0, log.read_text()
        assert psutil.wait_procs(family, timeout=20)[1] == []
    finally:
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        if process.poll() is None:
            process.kill()
            process.wait()


def test_runs_on_a_server_have_their_ui_there(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://someone:secret@mlflow.example.org")
    with pytest.raises(TrackingError, match=r"kept by https://mlflow\.example\.org") as refusal:
        ui_command()
    assert "secret" not in str(refusal.value)
