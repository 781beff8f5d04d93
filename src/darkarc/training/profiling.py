"""Where the time of a training step goes: timed parts, and a trace of torch's profiler."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

PARTS = ("loading", "augmentation", "forward", "backward", "optimiser")
SKIPPED, TIMED, TRACED = 5, 40, 5
"""Steps of a training that warm up, that are timed, and that the trace shows, one after the other."""

Item = TypeVar("Item")


class Clock(Protocol):
    """Told what a step is doing."""

    def part(self, name: str) -> AbstractContextManager[None]:
        """Around one of `PARTS`."""

    def iterate(self, name: str, items: Iterable[Item]) -> Iterable[Item]:
        """The items, with the time until each is there booked under `name`."""

    def step(self) -> None:
        """A step is over."""


class NoClock:
    """Times nothing and costs next to nothing."""

    def part(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def iterate(self, name: str, items: Iterable[Item]) -> Iterable[Item]:
        return items

    def step(self) -> None:
        pass


class StepProfile:
    """Times the parts of `TIMED` steps and says them as a table, then writes a trace of `TRACED` more.

    The two do not overlap: the profiler slows down what it watches. On a GPU each part waits for the device,
    so that what a part has started is not booked under the next one.
    """

    def __init__(self, trace: Path, device: torch.device, say: Callable[[str], None]) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.total_seconds = 0.0
        self.timed_steps = 0
        self._trace, self._device, self._say = Path(trace), device, say
        self._steps_done = 0
        self._began = 0.0
        self._profiler: Any = None

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *exception: object) -> None:
        """A training may have fewer steps than the profile wants: what is there is shown."""
        if self._profiler is not None:
            self._write_trace()
        elif self._steps_done < SKIPPED + TIMED:
            self._say(self.table() if self.timed_steps else f"no profile: fewer than {SKIPPED + 1} steps")

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        with torch.profiler.record_function(name):
            began = self._now()
            yield
            if self._is_timing:
                self.seconds[name] += self._now() - began

    def iterate(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        iterator, missing = iter(items), object()
        while True:
            with self.part(name):
                item = next(iterator, missing)
            if item is missing:
                return
            yield item  # type: ignore[misc]  # the sentinel has left above

    def step(self) -> None:
        self._steps_done += 1
        now = self._now()
        if SKIPPED < self._steps_done <= SKIPPED + TIMED:
            self.total_seconds += now - self._began
            self.timed_steps += 1
        if self._steps_done == SKIPPED + TIMED:
            self._say(self.table())
            self._start_trace()
        elif self._steps_done == SKIPPED + TIMED + TRACED:
            self._write_trace()
        self._began = self._now()

    def table(self) -> str:
        """Milliseconds and share of a step for each part."""
        step = self.total_seconds / self.timed_steps
        rows = [(name, seconds / self.timed_steps) for name, seconds in self.seconds.items()]
        rows.append(("everything else", step - sum(seconds for _, seconds in rows)))
        lines = [f"a step, mean of {self.timed_steps}: {1e3 * step:.2f} ms"]
        lines += [f"  {name:16s} {1e3 * seconds:9.3f} ms {seconds / step:6.1%}" for name, seconds in rows]
        return "\n".join(lines)

    @property
    def _is_timing(self) -> bool:
        return SKIPPED <= self._steps_done < SKIPPED + TIMED

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _start_trace(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.__enter__()

    def _write_trace(self) -> None:
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        self._trace.parent.mkdir(parents=True, exist_ok=True)
        aside = self._trace.with_name(f"{self._trace.name}.partial")
        profiler.export_chrome_trace(str(aside))
        aside.replace(self._trace)
        self._say(f"{self._trace}: trace of {TRACED} steps at most, for chrome://tracing or ui.perfetto.dev")
