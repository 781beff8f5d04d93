"""The Ray that trials run in: one that is there, a cluster, or one of our own on the loopback."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator

from darkarc.tuning.study import Study, StudyError

OBJECT_STORE_BYTES = 256 * 2**20
"""Trials map their pixels from the disk, so that Ray's object store holds next to nothing."""

PATIENCE_S = 300.0
"""Ray gives its own processes 30 seconds to start, whatever else the machine is doing: it may try so long."""


@contextlib.contextmanager
def a_ray(study: Study, address: str | None) -> Iterator[None]:
    """Inside, Ray is there. Raises `StudyError` where this machine has too few cores for a trial."""
    import ray

    if ray.is_initialized():
        yield
        return
    if address is not None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if study.resources.cpus > cores:
            raise StudyError(
                f"resources.cpus: a trial wants {study.resources.cpus:g} cores, this machine has {cores}; "
                "lower it, or give --ray ADDRESS of a cluster"
            )
        start_ray(min(cores, math.ceil(study.concurrent * study.resources.cpus)))
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(n_cpus: int) -> None:
    """A Ray on the loopback, started again if a busy machine did not let it come up in time."""
    import psutil
    import ray

    give_up_at = time.monotonic() + PATIENCE_S
    before = psutil.Process().children()
    while True:
        try:
            ray.init(
                address="local",  # never one that runs here already
                num_cpus=n_cpus,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:
            ray.shutdown()
            for left in psutil.Process().children():
                if left not in before:
                    left.kill()
            if time.monotonic() > give_up_at or "timed out during startup" not in str(error):
                raise
