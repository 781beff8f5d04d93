"""Equal seconds: how many epochs of a configuration fit into them, known before its schedule begins."""

import itertools
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from darkarc.config import Config
from darkarc.tracking.tracker import NullTracker
from darkarc.tuning.data_view import SearchView
from darkarc.tuning.study import Study, resolve

TIMING_SHARE = 0.1
"""A timing ends after this share of the budget, but not before one epoch is over."""

TIMING_EPOCHS = 4
"""What a timing takes at most."""

WARM_UP_BATCHES = 2


def clock(study: Study) -> float:
    """Seconds of a trial's own cores (CPU time over its threads), so that other programs on the machine
    do not count; on a GPU, which is the trial's alone, of the wall."""
    if study.resources.gpus > 0:
        return time.perf_counter()
    return time.process_time() / threads(study)


def threads(study: Study) -> int:
    """Of a trial on the CPU."""
    return max(1, int(study.resources.cpus))


def planned_epochs(config: Config, view: SearchView, study: Study, scratch: Path) -> int:
    """Epochs, validation and checkpoints included, that take `budget.trial_seconds`: at least one, at most
    `budget.epochs`.

    Trains the first epochs and throws them away; before that an epoch of a few batches, for all that happens
    only once in a process.
    """
    assert study.budget.trial_seconds is not None
    n_images = sum(split == "train" for split in view.samples["split"].to_pylist())
    share = WARM_UP_BATCHES * config.train.batch_size / n_images
    if share < 0.5:
        _durations(config, SearchView.of(view, view.share * share, view.seed), 1, 0.0, study, scratch)
    enough = TIMING_SHARE * study.budget.trial_seconds
    durations = _durations(config, view, TIMING_EPOCHS, enough, study, scratch)
    each = statistics.median(durations[1:] or durations)
    return min(study.budget.epochs, max(1, int(study.budget.trial_seconds / each)))


def _durations(
    config: Config, view: SearchView, n_epochs: int, enough: float, study: Study, scratch: Path
) -> list[float]:
    """Seconds of each of the first epochs: as many as take `enough` together, but no more than `n_epochs`."""
    from darkarc.training import train

    ends = [clock(study)]

    def stop(end: Any) -> bool:
        ends.append(clock(study))
        return ends[-1] - ends[0] >= enough

    train(
        resolve(config, {"train.epochs": n_epochs}),
        view,
        workdir=scratch / "timing",
        tracker=NullTracker(),
        progress=False,
        on_epoch=stop,
    )
    shutil.rmtree(scratch / "timing")
    return [after - before for before, after in itertools.pairwise(ends)]
