"""The Ray that trials run in: one that is there, a cluster, or one of our own on the loopback."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator

from darkarc.data.local_ray import start_local_ray
from darkarc.tuning.study import Study, StudyError

OBJECT_STORE_BYTES = 256 * 2**20
"""Trials map their pixels from the disk, so that Ray's object store holds next to nothing."""


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
    """A Ray for trials on this machine's loopback."""
    start_local_ray(n_cpus, OBJECT_STORE_BYTES)
