"""Our own Ray: nobody but this machine reaches it, and it asks nobody."""

import ipaddress
import os
import subprocess
import sys

import psutil
import pytest

from darkarc.data import local_ray
from darkarc.data.local_ray import LocalRayError, start_local_ray

pytestmark = pytest.mark.slow

LISTENERS = """
import psutil, ray
from darkarc.data.local_ray import start_local_ray

start_local_ray(1)
task = ray.remote(lambda: 1)
assert ray.get(task.remote()) == 1
for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
    try:
        for socket in process.net_connections():
            if socket.status == psutil.CONN_LISTEN:
                print(process.name(), socket.laddr.ip)
    except psutil.NoSuchProcess:
        pass
print("processes", *[" ".join(p.cmdline()[-40:]) for p in psutil.Process().children(recursive=True)])
ray.shutdown()
import os
from ray._private import ray_constants
assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ and ray_constants.ENABLE_RAY_CLUSTER
"""


def test_every_server_of_it_listens_on_the_loopback_alone():
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LISTENERS],
        env=kept,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    *listeners, processes = done.stdout.splitlines()
    names = {line.split()[0] for line in listeners}
    assert {"gcs_server", "raylet"} <= names, "the servers of Ray that must be there to be judged"
    open_to_others = [line for line in listeners if not _loopback(ipaddress.ip_address(line.split()[1]))]
    assert open_to_others == []
    assert "dashboard.py" not in processes, "the dashboard's process asks clouds whether it runs in them"
    assert "monitor.py" not in processes, "neither an autoscaler nor a reader of logs has anything to do here"


def _starts(monkeypatch: pytest.MonkeyPatch, *messages: str) -> list[subprocess.Popen[bytes]]:
    """Ray's start fails with these messages, one after the other, each time leaving a process behind."""
    import ray

    waiting, left = list(messages), []

    def init(**options: object) -> None:
        if waiting:
            left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
            raise Exception(waiting.pop(0))

    monkeypatch.setattr(ray, "init", init)
    return left


def test_a_busy_machine_gets_another_try_and_no_process_stays_behind(monkeypatch: pytest.MonkeyPatch):
    slow = "The current node timed out during startup.", "Timed out waiting for file gcs_server_port"
    left = _starts(monkeypatch, *slow)
    start_local_ray(1)
    assert len(left) == 2 and not any(_is_there(process) for process in left)
    assert "RAY_gcs_server_port_wait_time_s" not in os.environ


def test_a_machine_that_stays_busy_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local_ray, "PATIENCE_S", 0.0)
    left = _starts(monkeypatch, "The current node timed out during startup. The GCS is overloaded.")
    with pytest.raises(LocalRayError, match=r"tried 1 times .*timed out.* end other programs and try again"):
        start_local_ray(1)
    assert len(left) == 1 and not _is_there(left[0])


def test_what_time_does_not_mend_is_not_tried_again(monkeypatch: pytest.MonkeyPatch):
    left = _starts(monkeypatch, "/dev/shm is not there", "never reached")
    with pytest.raises(Exception, match="/dev/shm is not there"):
        start_local_ray(1)
    assert len(left) == 1 and not _is_there(left[0])


def _is_there(process: subprocess.Popen[bytes]) -> bool:
    there = psutil.pid_exists(process.pid)
    if there:
        process.kill()
    process.wait(20)
    return there


def _loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
