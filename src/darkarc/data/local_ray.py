"""A Ray of our own: for this process alone, on the loopback alone, asking nothing of the network."""

import gc
import itertools
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

PATIENCE_S = 300.0
"""Ray gives its own processes 30 seconds to start, whatever else the machine is doing: it may try so long."""

PORT_PATIENCE_S = "120"
"""Of these seconds for its first server Ray lets the environment have a say."""

SLOW = ("timed out", "Failed to start GCS")
"""What Ray says where its processes did not come up in time."""

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class LocalRayError(RuntimeError):
    """Ray did not come up on this machine; the message says what to do."""


def start_local_ray(n_cpus: int, object_store_bytes: int | None = None) -> None:
    """Start a Ray that only this machine reaches, again if a busy machine did not let it come up in time.

    Ray runs code for whoever reaches it. Told `_node_ip_address="127.0.0.1"` alone, its servers still listen
    on every address; only where Ray thinks that clusters are off, as on macOS, do they keep to the loopback.

    Args:
        n_cpus: cores that it hands out.
        object_store_bytes: shared memory for its objects; Ray's default if None.

    Raises:
        LocalRayError: it did not come up in time, tried again and again for `PATIENCE_S`.
        Exception: what Ray raises when it cannot start for another reason.
    """
    import psutil
    import ray

    options: dict[str, Any] = {
        "address": "local",  # never one that runs here already
        "num_cpus": n_cpus,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "object_store_memory": object_store_bytes,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    began = time.monotonic()
    before = psutil.Process().children()
    for attempt in itertools.count(1):
        try:
            with _on_the_loopback(), _bare(), _patient():
                ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            left = [child for child in psutil.Process().children() if child not in before]
            for child in left:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(left, timeout=10)
            _forget({child.pid for child in left})
            if not any(words.lower() in str(error).lower() for words in SLOW):
                raise
            waited = time.monotonic() - began
            if waited > PATIENCE_S:
                raise LocalRayError(
                    f"Ray did not start on this machine within {waited:.0f} s, tried {attempt} times "
                    f"({str(error).strip().splitlines()[0]}); the machine is very busy or short of memory: "
                    "end other programs and try again, or use a cluster that runs already"
                ) from error


def _forget(gone: set[int]) -> None:
    """Let Ray's handles of processes that are gone know it, or each complains when it is collected."""
    for handle in gc.get_objects():
        if issubclass(type(handle), subprocess.Popen) and handle.pid in gone:
            handle.poll()


@contextmanager
def _patient() -> Iterator[None]:
    """Wait longer for Ray's first server, unless the user has said how long."""
    name = "RAY_gcs_server_port_wait_time_s"
    mine = name not in os.environ
    os.environ.setdefault(name, PORT_PATIENCE_S)
    try:
        yield
    finally:
        if mine:
            del os.environ[name]


@contextmanager
def _on_the_loopback() -> Iterator[None]:
    """Ray's processes start as where clusters are off; afterwards this one can join a cluster as before."""
    from ray._private import ray_constants

    kept = os.environ.get(_LOOPBACK), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_LOOPBACK], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        if kept[0] is None:
            del os.environ[_LOOPBACK]
        else:
            os.environ[_LOOPBACK] = kept[0]
        ray_constants.ENABLE_RAY_CLUSTER = kept[1]


@contextmanager
def _bare() -> Iterator[None]:
    """Without what one machine has no use for, and Ray has no option against.

    `include_dashboard=False` still starts the process that asks three clouds whether it is in one; the
    autoscaler has no machine to start, and nobody reads what the log monitor would pass on. Each takes
    seconds of a core to start.
    """
    from ray._private.node import Node

    unwanted = ("start_api_server", "start_monitor", "start_log_monitor")
    kept = {name: getattr(Node, name) for name in unwanted}
    for name in unwanted:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in kept.items():
            setattr(Node, name, start)
