"""A tracking server on the loopback that goes away during a run and comes back."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

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
