"""Processors, memory and disks."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from darkarc.doctor.findings import NOTE, OK, WRONG, Finding, Findings

GB = 10**9
LEAST_DISK_GB, GOOD_DISK_GB = 2.0, 10.0
LEAST_MEMORY_GB, GOOD_MEMORY_GB = 1.0, 4.0


def check_gpu(device: str) -> Findings:
    """torch sees the GPU that is there. `device` is that of the parameters."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        yield Finding("gpu", OK, ", ".join(names))
    elif device == "cuda":
        yield Finding(
            "gpu", WRONG, "params.yaml says device: cuda, and torch finds no GPU", "set device: auto or cpu"
        )
    elif shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        yield Finding(
            "gpu", WRONG, f"a GPU is there, and torch {torch.__version__} cannot use it",
            "update NVIDIA's driver, or install the torch that fits it; then `darkarc doctor` again",
        )  # fmt: skip
    else:
        yield Finding("gpu", OK, "none; everything runs on the CPU")


def check_cores(environment: Mapping[str, str], cores: int) -> Findings:
    """Threads do not outnumber the cores."""
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > cores:
        yield Finding(
            "cores", NOTE, f"{cores}, and OMP_NUM_THREADS={threads} asks for more, which only wait",
            "unset OMP_NUM_THREADS",
        )  # fmt: skip
    else:
        yield Finding("cores", OK, str(cores))


def check_memory(available_bytes: float) -> Findings:
    """There is memory to train in."""
    gigabytes = available_bytes / GB
    said = f"{gigabytes:.1f} GB available"
    if gigabytes < LEAST_MEMORY_GB:
        yield Finding("memory", WRONG, said, "end other programs; torch and MLflow alone take a gigabyte")
    elif gigabytes < GOOD_MEMORY_GB:
        yield Finding("memory", NOTE, said, "keep data.memory_gb and tune's `concurrent` small")
    else:
        yield Finding("memory", OK, said)


def available_memory() -> float:
    """Bytes; of a container, what its limit leaves."""
    import psutil

    free = float(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(0.0, int(limit) - used))


def check_disk(root: Path, least_gb: float = LEAST_DISK_GB, good_gb: float = GOOD_DISK_GB) -> Findings:
    """The project's disk and that of temporary files have room, and the project's can be written to."""
    for name, folder in (("disk", root), ("temporary files", Path(tempfile.gettempdir()))):
        gigabytes = shutil.disk_usage(folder).free / GB
        said = f"{gigabytes:.1f} GB free in {folder}"
        if gigabytes < least_gb:
            remedy = "make room: `dvc gc --workspace` drops data sets that no longer count"
            yield Finding(
                name, WRONG, said, remedy if name == "disk" else "make room, or set TMPDIR elsewhere"
            )
        elif gigabytes < good_gb:
            yield Finding(name, NOTE, said, "a large data set will not fit")
        else:
            yield Finding(name, OK, said)
    if not os.access(root, os.W_OK):
        yield Finding("disk", WRONG, f"{root} cannot be written to", "work in a folder of your own")
