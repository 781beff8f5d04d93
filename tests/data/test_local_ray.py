"""Our own Ray: nobody but this machine reaches it, and it asks nobody."""

import ipaddress
import os
import subprocess
import sys

import pytest

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


def _loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
