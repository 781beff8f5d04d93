"""The end of a study whose budget is seconds, whatever becomes of the time of day meanwhile."""

import time
from typing import Any

from ray.tune import Stopper


class TimeLimit(Stopper):
    """Stops all trials at a moment of `time.monotonic`; Ray's own `time_budget_s` goes by the time of day."""

    def __init__(self, ends_at: float) -> None:
        self._ends_at = ends_at

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return time.monotonic() >= self._ends_at
