"""Ray Train's part: the same loop in several processes, with rank 0's voice in this one."""

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from darkarc import config as configuration
from darkarc.config import Config
from darkarc.data.batches import BatchError
from darkarc.data.local_ray import start_local_ray
from darkarc.data.store import Store
from darkarc.models import Regressor
from darkarc.tracking.tracker import NullTracker, Tracker
from darkarc.training.assembly import TrainingError, choose_device, prepared_regressor
from darkarc.training.checkpoints import Progress, restore_checkpoint
from darkarc.training.display import Display, Silent
from darkarc.training.distribution import Workers
from darkarc.training.engine import (
    Session,
    answering_regressor,
    new_learner,
    train_here,
)
from darkarc.training.interruption import StopRequest
from darkarc.training.profiling import Clock, NoClock, StepProfile
from darkarc.training.schedule import EpochHook

MAX_FAILURES = 2
"""A lost worker is replaced so many times; training goes on from its last checkpoint."""

TALK_EVERY_S = 0.5
OBJECT_STORE_BYTES = 128 * 2**20
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60"}


@dataclass(frozen=True)
class _Work:
    """What a worker needs: plain values and paths that it can reach, never pixels."""

    config: dict[str, Any]
    prepared: str
    folder: str
    on_epoch: EpochHook | None
    profile: str | None


def train_in_workers(
    config: Config,
    prepared: Store,
    device: torch.device,
    folder: Path,
    tracker: Tracker,
    display: Display,
    on_epoch: EpochHook | None,
    profile: Path | None,
) -> tuple[Regressor, Progress]:
    """Train in `train.workers` processes; arguments as of `engine.train`, which calls this.

    Workers run on the Ray cluster that this process is connected to or `RAY_ADDRESS` names, else on this
    machine. The prepared store and `folder` must be reachable from all of its machines. Raises
    `TrainingError`, also where there are fewer cores, or GPUs, than workers.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    on_gpu = device.type == "cuda"
    with _ray(config.train.workers, on_gpu):
        mail = ray.remote(num_cpus=0)(_Mail).remote()
        trace = None if profile is None else os.path.abspath(profile)
        work = _Work(config.dump(), os.path.abspath(prepared.path), str(folder), on_epoch, trace)
        trainer = TorchTrainer(
            _worker(work, mail),
            scaling_config=ScalingConfig(num_workers=config.train.workers, use_gpu=on_gpu),
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            run_config=RunConfig(
                name=folder.name,
                storage_path=str(folder / "ray"),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        try:
            _listen(trainer, mail, tracker, display)
        finally:
            # Without it, workers on a cluster that is not ours fail and end when they next speak.
            ray.kill(mail)
            shutil.rmtree(folder / "ray", ignore_errors=True)
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        learner = new_learner(prepared_regressor(config, prepared, device), config.train)
    state = restore_checkpoint(folder, learner, display.say)
    if state is None:
        raise TrainingError(f"{folder}: the workers left no sound checkpoint; can all of them reach it?")
    return answering_regressor(learner), state


def _worker(work: _Work, mail: Any) -> Callable[[], None]:
    """What each worker runs."""

    def run() -> None:
        from ray.train import get_context
        from ray.train.torch import get_device

        config = configuration.parse(work.config)
        if config.device != "cpu" and torch.cuda.is_available():
            torch.cuda.set_device(get_device())
        device = choose_device(config.device)
        speaks = get_context().get_world_rank() == 0
        relay = _Relay(mail)
        tracker: Tracker = relay if speaks else NullTracker()
        display: Display = relay if speaks else Silent()
        clock: Clock = NoClock()
        with contextlib.ExitStack() as stack:
            if work.profile is not None and speaks:
                clock = stack.enter_context(StepProfile(Path(work.profile), device, display.say))
            session = Session(
                Path(work.folder), tracker, display, StopRequest(), work.on_epoch, clock, Workers(device)
            )
            try:
                train_here(config, Store.open(work.prepared), device, session)
            except (TrainingError, BatchError) as error:
                # Every worker ends with it; a failure that Ray sees would be tried again.
                if speaks:
                    relay.tell("error", str(error))

    return run


def _listen(trainer: Any, mail: Any, tracker: Tracker, display: Display) -> None:
    """Run the trainer in a thread, and pass on here what rank 0 says."""
    import ray

    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    errors: list[str] = []
    hear: dict[str, Callable[..., None]] = {
        "begin": display.begin,
        "advance": display.advance,
        "epoch": display.epoch,
        "say": display.say,
        "metrics": tracker.log_metrics,
        "error": errors.append,
    }
    # Not in this thread: Ray would take Ctrl-C for itself and keep it.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    alive = True
    while alive:
        alive = thread.is_alive()
        for kind, *content in ray.get(mail.take.remote()):
            hear[kind](*content)
        time.sleep(TALK_EVERY_S / 5 if alive else 0)
    if errors:
        raise TrainingError(errors[0])
    if failures:
        raise TrainingError(f"a worker failed {MAX_FAILURES + 1} times: {failures[0]}") from failures[0]


class _Mail:
    """An actor: what rank 0 says, in order, until this process takes it."""

    def __init__(self) -> None:
        self._items: list[tuple[Any, ...]] = []

    def put(self, *item: Any) -> None:
        self._items.append(item)

    def take(self) -> list[tuple[Any, ...]]:
        items, self._items = self._items, []
        return items


class _Relay(NullTracker):
    """Rank 0's display and tracker: both speak through the mail."""

    def __init__(self, mail: Any) -> None:
        self._mail = mail
        self._spoke = 0.0

    def tell(self, *item: Any) -> None:
        import ray

        ray.get(self._mail.put.remote(*item))

    def begin(self, n_steps: int) -> None:
        self.tell("begin", n_steps)

    def advance(self, step: int) -> None:
        if time.monotonic() - self._spoke >= TALK_EVERY_S:
            self._spoke = time.monotonic()
            self.tell("advance", step)

    def epoch(self, row: dict[str, float]) -> None:
        self.tell("epoch", row)

    def say(self, message: str) -> None:
        self.tell("say", message)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.tell("metrics", dict(metrics), step)


@contextlib.contextmanager
def _ray(workers: int, on_gpu: bool) -> Iterator[None]:
    """A Ray to run in: the one that is there, that of `RAY_ADDRESS`, or one of our own on the loopback."""
    import ray

    if ray.is_initialized():
        yield
        return
    mine = {key: value for key, value in ENVIRONMENT.items() if key not in os.environ}
    os.environ.update(mine)
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            if workers > cores:
                raise TrainingError(
                    f"train.workers is {workers}, but this machine has {cores} cores: lower it, or set "
                    "RAY_ADDRESS to that of a cluster"
                )
            # Ray would wait for the others without a word.
            if on_gpu and workers > torch.cuda.device_count():
                raise TrainingError(
                    f"train.workers is {workers}, but this machine has {torch.cuda.device_count()} GPUs, one "
                    "for each: lower it, set device to cpu, or set RAY_ADDRESS to that of a cluster"
                )
            start_local_ray(workers, OBJECT_STORE_BYTES)
        yield
    finally:
        ray.shutdown()
        for key in mine:
            os.environ.pop(key, None)
