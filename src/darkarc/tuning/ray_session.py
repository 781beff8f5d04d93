"""The Ray that trials run in: one that is there, a cluster, or one of our own on the loopback."""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from typing import Any

from darkarc.data.local_ray import start_local_ray
from darkarc.tuning.study import Study, StudyError

OBJECT_STORE_BYTES = 256 * 2**20
"""Trials map their pixels from the disk, so that Ray's object store holds next to nothing."""

MACHINE_PATIENCE_S = 60.0
"""An autoscaler that can start a machine for a trial says so within this time; other clusters never do."""

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def a_ray(study: Study, address: str | None) -> Iterator[None]:
    """Inside, Ray is there, with a machine that can hold a trial.

    Raises `StudyError` where no machine can: else Ray would let the study wait for ever. A cluster whose
    autoscaler is starting machines is waited for. Also raises it where no cluster answers at `address`.
    """
    import ray

    if ray.is_initialized():
        _await_machine(study)
        yield
        return
    try:
        if address is not None:
            _connect(address)
            _await_machine(study)
        else:
            _start_own(study)
        yield
    finally:
        ray.shutdown()


def start_ray(n_cpus: int) -> None:
    """A Ray for trials on this machine's loopback."""
    start_local_ray(n_cpus, OBJECT_STORE_BYTES)


def _start_own(study: Study) -> None:
    wanted = study.resources
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted.cpus > cores:
        raise StudyError(
            f"resources.cpus: a trial wants {wanted.cpus:g} cores, this machine has {cores}; lower it, or "
            "give --ray ADDRESS of a cluster"
        )
    start_ray(min(cores, math.ceil(study.concurrent * wanted.cpus)))
    if not _has_room(study):
        there = sum(node.get("GPU", 0.0) for node in _nodes())
        raise StudyError(
            f"resources.gpus: a trial wants {wanted.gpus:g} of a GPU, and Ray finds {there:g} on this "
            "machine; lower it (0: trials run on the CPU), check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or "
            "give --ray ADDRESS of a cluster"
        )


def _connect(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise StudyError(
            f"--ray {address}: no Ray cluster answers there ({str(error).strip().splitlines()[0]}); check it "
            "with `ray status`, see docs/clusters.md to start one, or leave --ray away to search on this "
            "machine"
        ) from error


def _await_machine(study: Study) -> None:
    """Wait for a machine that can hold a trial, as long as the cluster's autoscaler is starting any."""
    import ray

    if _has_room(study):
        return
    wanted = study.resources
    shown = f"{wanted.cpus:g} cores" + (f" and {wanted.gpus:g} of a GPU" if wanted.gpus else "")
    _logger.warning("no machine of the Ray cluster has %s for a trial; waiting for its autoscaler", shown)
    # What an autoscaler starts machines for: a task that would take a trial's place.
    demand = ray.remote(num_cpus=wanted.cpus, num_gpus=wanted.gpus, max_retries=0)(lambda: None).remote()
    last_sign = time.monotonic()
    try:
        while not _has_room(study):
            if _is_growing():
                last_sign = time.monotonic()
            elif time.monotonic() - last_sign >= MACHINE_PATIENCE_S:
                raise StudyError(
                    f"resources: a trial wants {shown} on one machine, and no machine of the Ray cluster has "
                    f"them ({_machines()}), nor is one being started; lower resources in the study, or add "
                    "such a machine (docs/clusters.md)"
                )
            time.sleep(min(1.0, MACHINE_PATIENCE_S / 10))
    finally:
        with contextlib.suppress(Exception):
            ray.cancel(demand)


def _has_room(study: Study) -> bool:
    """Whether a machine that is there could hold a trial, be it busy now or not."""
    wanted = study.resources
    return any(
        node.get("CPU", 0.0) >= wanted.cpus and node.get("GPU", 0.0) >= wanted.gpus for node in _nodes()
    )


def _nodes() -> list[dict[str, float]]:
    """Resources of each machine of the cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _machines() -> str:
    kinds = {f"{node.get('CPU', 0.0):g} cores and {node.get('GPU', 0.0):g} GPUs" for node in _nodes()}
    return "there are machines of " + ", of ".join(sorted(kinds))


def _is_growing() -> bool:
    """Whether the cluster's autoscaler, of Ray's first or second kind, says that machines are starting."""
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.experimental.internal_kv import _internal_kv_get

    second = get_cluster_status(ray.get_runtime_context().gcs_address)
    if second.pending_launches or second.pending_nodes:
        return True
    first: dict[str, Any] = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}")
    report = first.get("autoscaler_report") or {}
    return bool(report.get("pending_launches") or report.get("pending_nodes"))
