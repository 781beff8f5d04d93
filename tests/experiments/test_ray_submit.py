"""`ray up`, `ray submit` and `ray job submit` for real, over ssh on the loopback, to trials in MLflow."""

import copy
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback_machine import HEAD, PROJECT, WORKER, Machine, free_port, loopback_machine

from darkarc import config
from darkarc.data.generate import generate
from darkarc.data.prepare import prepare
from darkarc.tracking import open_client

pytestmark = [pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(590)]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SETTINGS = {
    "simulate": {"n_axion": 40, "n_cdm": 10, "n_no_sub": 10},
    "prepare": {"train": 0.5, "validation": 0.3, "calibration": 0.1, "test": 0.1, "mass_bins": 1},
    "model": {"width": 0.25, "bins": 16},
    "tracking": {"system_metrics": False},
}


@dataclass(frozen=True)
class Cluster:
    machine: Machine
    file: Path
    dashboard: str
    log: str

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, env=self.machine.laptop, cwd=PROJECT, capture_output=True, text=True, timeout=200
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0 or not check, output
        return output


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """`ray up` of cluster-onprem.yaml: a head and a worker, both of them this machine."""
    folder = Path(tempfile.mkdtemp(prefix="dk-", dir="/tmp"))  # sockets have short names
    try:
        with loopback_machine(folder, secrets.token_hex(32)) as machine:
            tree, dashboard = _on_the_loopback(machine)
            file = folder / "cluster.yaml"
            file.write_text(yaml.safe_dump(tree))
            _put_data(folder / "shared")
            cluster = Cluster(machine, file, f"http://127.0.0.1:{dashboard}", "")
            log = cluster.run("ray", "up", "--yes", "--no-config-cache", str(file))
            yield Cluster(machine, file, cluster.dashboard, log)
            if machine.isolated:  # `ray stop` ends every Ray that it sees
                cluster.run("ray", "down", "--yes", str(file))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _on_the_loopback(machine: Machine) -> tuple[dict[str, Any], int]:
    """The file as it ships, with these machines, and ports that nobody else here uses."""
    tree = yaml.safe_load((PROJECT / "experiments" / "cluster-onprem.yaml").read_text())
    tree["cluster_name"] = machine.folder.name
    tree["provider"] = {"type": "local", "head_ip": HEAD, "worker_ips": [WORKER]}
    tree["auth"] = {"ssh_user": machine.user, "ssh_private_key": str(machine.key)}
    gcs, dashboard = free_port(), free_port()
    size = "--num-cpus=1 --object-store-memory=100000000"

    def adapt(line: str, address: str, more: str = "") -> str:
        if "ray start" in line:
            own = f"--node-ip-address={address} --dashboard-agent-listen-port={free_port()} {size} {more}"
            return f"{line.replace('6379', str(gcs))} {own}"
        return line

    head = [adapt(line, HEAD, f"--dashboard-port={dashboard}") for line in tree["head_start_ray_commands"]]
    # The worker is the same machine as the head, and must not stop that.
    worker = [adapt(tree["worker_start_ray_commands"][-1], WORKER, f"--temp-dir={machine.folder}/w")]
    tree["head_start_ray_commands"] = head if machine.isolated else head[-1:]
    tree["worker_start_ray_commands"] = worker
    return tree, dashboard


def _put_data(shared: Path) -> None:
    """A prepared store and studies in a folder that all nodes see."""
    settings = config.parse(copy.deepcopy(SETTINGS))
    raw = generate(settings, shared / "raw", progress=False)
    prepare(raw, shared / "prepared", settings, None, progress=False)
    (shared / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    for name in ("by-submit", "by-job"):
        study = {
            "name": name,
            "budget": {"trials": 3, "epochs": 2},
            "algorithm": "random",
            "space": {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
            "concurrent": 2,
        }
        (shared / f"{name}.yaml").write_text(yaml.safe_dump(study))


def _arguments(shared: Path, name: str) -> list[str]:
    return [
        str(shared / f"{name}.yaml"),
        *("--params", str(shared / "params.yaml")),
        *("--prepared", str(shared / "prepared")),
        *("--storage", str(shared / "studies")),
        *("--work", str(shared / "work")),
        *("--out", str(shared / f"{name}-winner.yaml")),
    ]


def _check_runs(shared: Path, name: str) -> None:
    """The study and its trials are in MLflow, complete, and the winner is written."""
    client = open_client(f"sqlite:///{shared / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (parent,) = client.search_runs(
        experiments, f"tags.`darkarc.study` = '{name}' and tags.`darkarc.kind` = 'study'"
    )
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["darkarc.git_commit"] == f"{COMMIT}+dirty"
    trials = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert [run.info.status for run in trials] == ["FINISHED"] * 3
    for run in trials:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "val_mae_dex")]
        assert steps == [1, 2]
    winner = yaml.safe_load((shared / f"{name}-winner.yaml").read_text())
    assert winner["study"] == name
    assert winner["searched"] == ["train.learning_rate"]


def test_ray_up_starts_head_and_worker(cluster: Cluster):
    assert "Ray runtime started" in cluster.log
    for _ in range(40):
        status = cluster.run("ray", "exec", str(cluster.file), "ray status")
        if "0.0/2.0 CPU" in status:
            break
        time.sleep(2)
    assert "0.0/2.0 CPU" in status
    home = cluster.machine.home
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    assert (home / "darkarc" / "src" / "darkarc" / "cli.py").is_file()
    assert sorted(path.name for path in (home / "darkarc").iterdir() if path.is_dir()) == [
        ".venv",
        "experiments",
        "src",
    ]


def test_ray_submit_ends_in_trials(cluster: Cluster):
    shared = cluster.machine.folder / "shared"
    output = cluster.run(
        *("ray", "submit", str(cluster.file), "experiments/submit_tune.py", "--"),
        *_arguments(shared, "by-submit"),
        *("--tracking-uri", f"sqlite:///{shared / 'mlflow.db'}", "--commit", f"{COMMIT}+dirty"),
    )
    assert re.search(r"3 trials to the end", output), output
    _check_runs(shared, "by-submit")


def test_ray_job_submit_ends_in_trials(cluster: Cluster):
    shared = cluster.machine.folder / "shared"
    output = cluster.run(
        *("ray", "job", "submit", "--address", cluster.dashboard),
        *("--runtime-env", "experiments/job.yaml", "--working-dir", ".", "--"),
        *(
            "env",
            f"MLFLOW_TRACKING_URI=sqlite:///{shared / 'mlflow.db'}",
            f"DARKARC_GIT_COMMIT={COMMIT}+dirty",
        ),
        *("python", "-m", "darkarc", "tune", *_arguments(shared, "by-job"), "--ray", "auto"),
    )
    assert "succeeded" in output
    _check_runs(shared, "by-job")
    # It ran the code that was sent, and only that was sent.
    (sent,) = (cluster.machine.folder / "t").glob("ray/session_latest/runtime_resources/working_dir_files/*/")
    names = {path.name for path in sent.iterdir()}
    assert {"src", "experiments", "params.yaml"} <= names
    assert not names & {"data", "reports", "tests", ".venv", ".git", "mlartifacts", "mlflow.db"}
    assert list((sent / "src" / "darkarc").rglob("__pycache__/cli*.pyc"))


def test_without_the_token_nobody_is_let_in(cluster: Cluster):
    stranger = {**cluster.machine.laptop, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = subprocess.run(
        ["ray", "job", "list", "--address", cluster.dashboard],
        env=stranger,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "403" in done.stdout + done.stderr or "nvalid" in done.stdout + done.stderr
