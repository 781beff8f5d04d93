"""The Slurm script on one node, with Slurm's two commands played by scripts: Ray and the study are real."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from loopback_machine import HEAD, MARK, PROJECT, end_processes, executable, install_environment

from darkarc import config
from darkarc.data.generate import generate
from darkarc.data.prepare import prepare
from darkarc.tracking import open_client

pytestmark = [pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(590)]

# srun runs what follows its own options on the nodes it is given; here that is always this one.
SRUN = f"""\
echo "$@" >> "$SLURM_SUBMIT_DIR/srun.log"
while case "$1" in --*) true;; *) false;; esac; do shift; done
[ "$1" = hostname ] && echo {HEAD} && exit
exec "$@"
"""
SETTINGS = {
    "simulate": {"n_axion": 40, "n_cdm": 10, "n_no_sub": 10},
    "prepare": {"train": 0.5, "validation": 0.3, "calibration": 0.1, "test": 0.1, "mass_bins": 1},
    "model": {"width": 0.25, "bins": 16},
    "tracking": {"system_metrics": False},
}


@pytest.fixture
def submitted() -> Iterator[tuple[Path, dict[str, str]]]:
    """A project on a shared filesystem, and the environment that Slurm gives to a job."""
    folder = Path(tempfile.mkdtemp(prefix="dk-", dir="/tmp"))
    try:
        install_environment(folder)
        (folder / "bin").mkdir()
        (folder / "home").mkdir()
        executable(folder / "bin" / "srun", SRUN)
        executable(folder / "bin" / "scontrol", "echo node1")
        (folder / "src").symlink_to(PROJECT / "src")
        (folder / "experiments").symlink_to(PROJECT / "experiments")
        settings = config.parse(SETTINGS)
        prepare(
            generate(settings, folder / "raw", progress=False),
            folder / "data" / "prepared",
            settings,
            None,
            progress=False,
        )
        (folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
        job = _job_with_free_ports()
        environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_NODELIST": "node1",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_GPUS_ON_NODE": "0",
            MARK: str(folder),
        }
        yield folder, environment
        shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)
    finally:
        end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _job_with_free_ports() -> int:
    for _ in range(100):
        job = secrets.randbelow(1_000_000)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("", 20000 + job % 20000))
                second.bind(("", 40000 + job % 20000))
            except OSError:
                continue
        return job
    raise AssertionError("no free ports")


def _study(folder: Path, trials: int, epochs: int) -> Path:
    path = folder / "study.yaml"
    tree = {
        "name": "slurm",
        "budget": {"trials": trials, "epochs": epochs},
        "algorithm": "random",
        "space": {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def _start(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            ["bash", str(PROJECT / "experiments" / "slurm.sh"), str(folder / "study.yaml"), *arguments],
            env=environment,
            stdout=log,
            stderr=log,
            cwd="/",
        )


def _check_that_nothing_is_left(folder: Path) -> None:
    assert not list(folder.glob(".darkarc-token*"))
    left = [p for p in psutil.process_iter() if _mark(p) == str(folder)]
    psutil.wait_procs(left, timeout=60)
    assert not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except psutil.Error:
        return None


def test_a_job_stops_before_its_time_is_over_and_the_next_goes_on(submitted: tuple[Path, dict[str, str]]):
    folder, environment = submitted
    _study(folder, trials=2, epochs=150)
    job = _start(folder, environment, "--resume")
    give_up_at = time.monotonic() + 200
    while not any(
        '"kind":"report"' in book.read_text() for book in folder.glob(".darkarc/tune/*/book.jsonl")
    ):
        assert job.poll() is None and time.monotonic() < give_up_at, (folder / "log").read_text()
        time.sleep(0.2)
    job.send_signal(signal.SIGINT)  # as #SBATCH --signal asks for
    assert job.wait(150) == 130, (folder / "log").read_text()
    assert "--resume" in (folder / "log").read_text(), (folder / "log").read_text()
    _check_that_nothing_is_left(folder)

    assert _start(folder, environment, "--resume").wait(240) == 0, (folder / "log").read_text()
    _check_that_nothing_is_left(folder)
    client = open_client(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 3
    assert yaml.safe_load((folder / "reports" / "winner.yaml").read_text())["study"] == "slurm"
    starts = [line for line in (folder / "srun.log").read_text().splitlines() if "ray start" in line]
    assert len(starts) == 2 and all("--nodelist=node1" in line and "--num-cpus=1" in line for line in starts)


def test_outside_of_slurm_it_says_so(tmp_path: Path):
    done = subprocess.run(
        ["bash", str(PROJECT / "experiments" / "slurm.sh")],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert "start this with sbatch" in done.stderr
