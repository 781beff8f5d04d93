"""The curves of a run for TensorBoard, beside whatever else records them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from darkarc.config import Config
from darkarc.tracking.run_tracker import RunTracker
from darkarc.tracking.tracker import Tracker

TENSORBOARD = Path(".darkarc/tensorboard")


@contextmanager
def with_curves(tracker: RunTracker, config: Config, folder: Path = TENSORBOARD) -> Iterator[Tracker]:
    """The tracker, which with `tracking.tensorboard` also writes metrics below `folder`, a folder a run.

    The folder is named by the run's id, or by its token while no store has given it one.
    """
    if not config.tracking.tensorboard:
        yield tracker
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / (tracker.run_id or tracker.token))) as writer:
        yield _Both(tracker, writer)


class _Both:
    """A `Tracker` whose metrics go to a `SummaryWriter` too."""

    def __init__(self, tracker: Tracker, writer: Any) -> None:
        self._tracker, self._writer = tracker, writer

    @property
    def run_id(self) -> str | None:
        return self._tracker.run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._tracker.log_params(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._tracker.log_metrics(metrics, step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self._tracker.set_tags(tags)

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        self._tracker.log_artifact(path, folder)

    def log_dict(self, data: Mapping[str, Any], name: str) -> None:
        self._tracker.log_dict(data, name)
