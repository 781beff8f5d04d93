"""A training whose parameters change between epochs: what a population found, replayed exactly.

Each stretch of epochs with one set of parameters is a training of its own that goes on from the
checkpoint of the stretch before, just as the trials of the population did.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from darkarc.config import Config, without_schedule
from darkarc.data.store import Store
from darkarc.durable import write_file
from darkarc.tracking.tracker import Tracker
from darkarc.training.checkpoints import epochs_done, newest_checkpoint
from darkarc.training.fingerprint import training_digest

if TYPE_CHECKING:
    from darkarc.models import Regressor
    from darkarc.training.engine import TrainResult


@dataclass(frozen=True)
class EpochEnd:
    """An epoch that is over: its row of the history, its checkpoint (a sealed folder), the regressor as
    it stands (for reading), and whether training ends here by itself, early or not."""

    row: dict[str, float]
    checkpoint: Path
    regressor: "Regressor"
    is_last: bool
    stopped_early: bool


EpochHook = Callable[[EpochEnd], bool]
"""Called after an epoch's checkpoint is on disk; True ends the training there."""


def replay(
    train: Callable[..., "TrainResult"],
    config: Config,
    prepared: Store,
    *,
    workdir: Path,
    tracker: Tracker,
    progress: bool,
    on_epoch: EpochHook | None,
    profile: Path | None,
) -> "TrainResult":
    """Train by `train.schedule`. After a kill it goes on in the stretch that was interrupted."""
    digest = training_digest(config, prepared)
    before: Path | None = None
    for k, (end, settings) in enumerate(_stretches(config)):
        workdir_of_stretch = Path(workdir) / digest[:16] / f"stretch-{k:03d}"
        folder = workdir_of_stretch / training_digest(settings, prepared)[:16]
        if before is not None and newest_checkpoint(folder) is None:
            hand_over(before, folder)
        before = folder
        if end < config.train.epochs and epochs_done(folder) >= end:
            continue
        ended = workdir_of_stretch / "ended"
        ended.unlink(missing_ok=True)
        result = train(
            settings,
            prepared,
            workdir=workdir_of_stretch,
            tracker=tracker,
            progress=progress,
            on_epoch=_until(end, on_epoch, ended),
            profile=profile,
        )
        if ended.exists() or len(result.history) < end:
            break
    return replace(result, digest=digest)


def hand_over(before: Path, after: Path) -> None:
    """Copy the newest checkpoint in `before` to `after`: complete or absent."""
    newest = newest_checkpoint(before)
    assert newest is not None, before
    partial = after.with_name(f"{after.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(newest, partial / newest.name)
    after.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(after)


def _stretches(config: Config) -> list[tuple[int, Config]]:
    """(last epoch, configuration without a schedule) of each stretch."""
    starts = [0, *(step.epoch for step in config.train.schedule)]
    ends = [*starts[1:], config.train.epochs]
    return [(end, without_schedule(config, start)) for start, end in zip(starts, ends, strict=True)]


def _until(end: int, on_epoch: EpochHook | None, ended: Path) -> EpochHook:
    """Ends a stretch after `end`, or where the hook ends all: said by a file, for it may run in a worker."""

    def hook(epoch: EpochEnd) -> bool:
        if on_epoch is not None and on_epoch(epoch):
            write_file(ended, "")
            return True
        return int(epoch.row["epoch"]) >= end

    return hook
