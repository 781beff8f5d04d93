"""Simulate a data set into a store: in this process, over processes, or over a Ray cluster.

Images come in chunks that are written in the order of their numbers as they are ready, so memory does
not grow with their number, and a killed run goes on where its store ends. What is written depends on
neither the workers nor the chunks: every image has random streams of its own.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from darkarc.config import CLASSES, Config, SimulateConfig
from darkarc.data.local_ray import start_local_ray
from darkarc.data.store import Store, StoreWriter
from darkarc.simulation import Scenes, draw_scenes, get_preset, render, scene_columns

RECIPE = 1
"""Raised when the same parameters come to give other images: stores of another recipe start over."""

_CHUNK_BYTES = 4 * 2**20
_CHUNKS_A_WORKER = 2


class GenerateError(ValueError):
    """A data set that cannot be simulated as asked; the message says what to change."""


@dataclass(frozen=True)
class _Chunk:
    """Images `start ... stop - 1` of one class, and all that it takes to make them."""

    section: SimulateConfig
    seed: int
    class_name: str
    start: int
    stop: int
    device: str


_Made = tuple[np.ndarray, dict[str, np.ndarray | list[Any]]]


def generate(
    config: Config,
    out: Path | str,
    *,
    workers: int = 1,
    ray_address: str | None = None,
    progress: bool = True,
) -> Store:
    """Simulate `config.simulate` with `config.seed` into a store at `out`, in class order.

    `workers` processes of one core each. With `ray_address` ("local", "auto" or a cluster's address) the
    chunks are Ray tasks of one CPU each, `workers` at a time, or as many as the cluster has CPUs for
    workers = 1. A run that was killed goes on where it stopped. The store's bytes depend on the
    configuration alone (on one kind of machine and device).

    Raises `GenerateError` for workers or an address that cannot be used, `StoreError` if something
    stands at `out`.
    """
    if workers < 1:
        raise GenerateError(f"workers={workers}: expected at least 1")
    section, preset = config.simulate, get_preset(config.simulate.preset)
    device = _device(config.device)
    writer = StoreWriter(
        out,
        name=f"{preset.name}-{section.noise}",
        origin=_origin(section, config.seed),
        instrument=preset.instrument.name,
        shape=preset.instrument.shape,
        dtype=_stored_type(section).name,
        parameters=store_parameters(config),
    )
    total = sum(_class_sizes(section).values())
    with writer, _bar(progress, total) as advance:
        advance(writer.n_written)
        chunks = _chunks(section, config.seed, device, writer.n_written)
        with _made(chunks, workers, ray_address) as made:
            for images, rows in made:
                writer.append(images, rows)
                advance(len(images))
        return writer.commit()


def store_parameters(config: Config) -> dict[str, Any]:
    """All that fixes the images of a simulated store, for its manifest; neither workers nor device."""
    return {
        "simulate": config.simulate.model_dump(mode="json"),
        "seed": config.seed,
        "recipe": RECIPE,
        "preset": get_preset(config.simulate.preset).as_dict(),
    }


def _origin(section: SimulateConfig, seed: int) -> str:
    return f"darkarc:{section.preset}:{section.noise}:{seed}"


def _class_sizes(section: SimulateConfig) -> dict[str, int]:
    return {name: getattr(section, f"n_{name}") for name in CLASSES}


def _stored_type(section: SimulateConfig) -> np.dtype[Any]:
    """Counts are integers in Model I's published form, everything else is float32."""
    counts = section.noise == "published" and get_preset(section.preset).counts
    return np.dtype("int32" if counts else "float32")


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise GenerateError("device: cuda, but torch finds no CUDA device here; use device: auto or cpu")
    return wanted


def _chunks(section: SimulateConfig, seed: int, device: str, skip: int) -> Iterator[_Chunk]:
    """What is left to do after the first `skip` images of the store."""
    height, width = get_preset(section.preset).instrument.shape
    size = max(1, _CHUNK_BYTES // (height * width * 4))
    for class_name, number in _class_sizes(section).items():
        done = min(skip, number)
        skip -= done
        for start in range(done, number, size):
            yield _Chunk(section, seed, class_name, start, min(start + size, number), device)


def _simulate(chunk: _Chunk) -> _Made:
    """Images (n, H, W) of a chunk in the stored type, and their rows of the sample table."""
    section, numbers = chunk.section, np.arange(chunk.start, chunk.stop)
    scenes = draw_scenes(section.preset, chunk.class_name, chunk.seed, numbers)
    images = render(
        section.preset,
        scenes,
        noise=section.noise,
        distances=section.distances,
        seed=chunk.seed,
        indices=numbers,
        dtype=section.precision,
        device=chunk.device,
    )
    return images.numpy().astype(_stored_type(section)), _rows(chunk, scenes, numbers)


def _rows(chunk: _Chunk, scenes: Scenes, numbers: np.ndarray) -> dict[str, np.ndarray | list[Any]]:
    """Columns of the sample table; nan stands for null."""
    section, preset = chunk.section, get_preset(chunk.section.preset)
    exposed = section.noise == "physical" or (section.noise == "published" and preset.counts)
    rows: dict[str, np.ndarray | list[Any]] = {
        "sample_id": [f"{section.preset}-{chunk.class_name}-{i:08d}" for i in numbers],
        "class": [chunk.class_name] * len(numbers),
        **scene_columns(scenes, chunk.class_name),
        "group_id": [f"scene-{chunk.seed}-{chunk.class_name}-{i:08d}" for i in numbers],
        "origin": [_origin(section, chunk.seed)] * len(numbers),
    }
    if exposed:
        rows["exposure_s"] = scenes.exposure_s
    return rows


# Who makes the chunks; whoever it is, they come back in order


def _made(
    chunks: Iterator[_Chunk], workers: int, ray_address: str | None
) -> AbstractContextManager[Iterator[_Made]]:
    if ray_address is not None:
        return _over_ray(chunks, workers, ray_address)
    if workers > 1:
        return _over_processes(chunks, workers)
    return _in_this_process(chunks)


def _in_order(
    chunks: Iterator[_Chunk],
    submit: Callable[[_Chunk], Any],
    result: Callable[[Any], _Made],
    at_once: int,
) -> Iterator[_Made]:
    """Results in the order of `chunks`, at most `at_once` of them under way or waiting."""
    pending: deque[Any] = deque()
    for chunk in chunks:
        pending.append(submit(chunk))
        if len(pending) >= at_once:
            yield result(pending.popleft())
    while pending:
        yield result(pending.popleft())


@contextmanager
def _in_this_process(chunks: Iterator[_Chunk]) -> Iterator[Iterator[_Made]]:
    # The blocks are too small for several threads, which cost more than they bring on busy cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield map(_simulate, chunks)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _over_processes(chunks: Iterator[_Chunk], workers: int) -> Iterator[Iterator[_Made]]:
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)

    def result(future: "Future[_Made]") -> _Made:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise GenerateError(
                "a worker process died (out of memory?); run the same command again with fewer workers: "
                "it goes on where it stopped"
            ) from error

    try:
        yield _in_order(
            chunks, lambda chunk: pool.submit(_simulate, chunk), result, _CHUNKS_A_WORKER * workers
        )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def start_worker() -> None:
    """Keep to one core, and end with the parent even if that is killed."""
    torch.set_num_threads(1)
    parent = parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def end_with_parent() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextmanager
def _over_ray(chunks: Iterator[_Chunk], workers: int, address: str) -> Iterator[Iterator[_Made]]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ours = not ray.is_initialized()
    if ours:
        try:
            _connect(address, workers)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise GenerateError(
                f"no Ray cluster answers at {address!r} ({error}); "
                "start one with `ray start --head`, or use local"
            ) from error
    try:
        at_once = workers if workers > 1 else max(1, int(ray.cluster_resources().get("CPU", 1)))
        remote = ray.remote(num_cpus=1, max_retries=3)(_simulate_on_cluster)
        yield _in_order(chunks, remote.remote, ray.get, _CHUNKS_A_WORKER * at_once)
    finally:
        if ours:
            ray.shutdown()


def _simulate_on_cluster(chunk: _Chunk) -> _Made:
    torch.set_num_threads(1)
    return _simulate(chunk)


def _connect(address: str, workers: int) -> None:
    import ray

    if address == "local":
        start_local_ray(workers if workers > 1 else os.cpu_count() or 1)
    else:
        ray.init(address=address, log_to_driver=False, logging_level="warning")


@contextmanager
def _bar(show: bool, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of `total` images; yields what advances it."""
    columns = TextColumn("simulate"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not show) as bar:
        task = bar.add_task("simulate", total=total)
        yield lambda images: bar.advance(task, images)
