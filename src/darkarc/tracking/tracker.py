"""What training and evaluation need of an experiment tracker, and nothing of MLflow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Records of one run. No method raises because the store is out of reach."""

    @property
    def run_id(self) -> str | None:
        """Id of the run; None while the store has never been reached."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Settings of the run; one that is already there keeps its value."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """One point for each curve, at `step` (an epoch)."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Labels of the run; the last value counts."""

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """A file, or a folder with all it holds, put under `folder` of the run's artifacts."""

    def log_dict(self, data: Mapping[str, Any], name: str) -> None:
        """A mapping as a `.json` or `.yaml` artifact called `name`."""


class NullTracker:
    """Tracks nothing: for tests, notebooks and quick looks."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, Any]) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        pass

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        pass

    def log_dict(self, data: Mapping[str, Any], name: str) -> None:
        pass
