"""A Ray of our own: for this process alone, on the loopback alone, asking nothing of the network."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE_S = 300.0
"""Ray gives its own processes 30 seconds to start, whatever else the machine is doing: it may try so long."""

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def start_local_ray(n_cpus: int, object_store_bytes: int | None = None) -> None:
    """Start a Ray that only this machine reaches, again if a busy machine did not let it come up in time.

    Ray runs code for whoever reaches it. Told `_node_ip_address="127.0.0.1"` alone, its servers still listen
    on every address; only where Ray thinks that clusters are off, as on macOS, do they keep to the loopback.

    Args:
        n_cpus: cores that it hands out.
        object_store_bytes: shared memory for its objects; Ray's default if None.

    Raises:
        Exception: what Ray raises when it cannot start; after `PATIENCE_S` also that it did not in time.
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
    give_up_at = time.monotonic() + PATIENCE_S
    before = psutil.Process().children()
    while True:
        try:
            with _on_the_loopback(), _without_dashboard():
                ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            for left in psutil.Process().children():
                if left not in before:
                    left.kill()
            if time.monotonic() > give_up_at or "timed out during startup" not in str(error):
                raise


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
def _without_dashboard() -> Iterator[None]:
    """`include_dashboard=False` still starts the process that asks three clouds whether it is in one."""
    from ray._private.node import Node

    kept = Node.start_api_server
    Node.start_api_server = lambda *_, **__: None
    try:
        yield
    finally:
        Node.start_api_server = kept
