"""CPU, memory, disk, network and GPU use of the machine, as curves `system/…` of a run."""

import logging
import threading
from typing import Any

from darkarc.tracking.tracker import Tracker

_logger = logging.getLogger(__name__)


class SystemMetrics:
    """A thread that samples MLflow's own monitors every `interval_s` and logs through a tracker.

    MLflow's own thread would talk to the server by itself and give up on its first silence; this one
    writes into the journal like everything else. The step counts samples, from `first_step` on.
    """

    def __init__(self, tracker: Tracker, *, interval_s: float, first_step: int = 0) -> None:
        self._tracker = tracker
        self._interval_s = interval_s
        self._step = first_step
        self._ended = threading.Event()
        self._monitors = _monitors()
        self._thread = threading.Thread(target=self._watch, name="system-metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        while True:
            try:
                self._sample()
            except Exception as error:  # a sensor that fails must not disturb the run
                _logger.warning("system metrics stop: %s", error)
                return
            if self._ended.wait(self._interval_s):
                return

    def _sample(self) -> None:
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        self._tracker.log_metrics(values, self._step)
        self._step += 1


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except Exception:  # no NVIDIA driver, or no reader for it: there is no GPU curve then
        _logger.debug("no GPU monitor", exc_info=True)
    return monitors
