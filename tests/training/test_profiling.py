"""The profile of a training's steps."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.tracking.tracker import NullTracker
from darkarc.training import profiling, train
from darkarc.training.profiling import PARTS, SKIPPED, TIMED, StepProfile

Settings = Callable[..., Config]


def test_times_are_booked_under_their_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "TIMED", 4)
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    said: list[str] = []

    def loaded() -> object:
        nonlocal now
        for item in range(SKIPPED + 4):
            now += 0.001
            yield item

    profile = StepProfile(tmp_path / "trace.json", torch.device("cpu"), said.append)
    for item in profile.iterate("loading", loaded()):
        with profile.part("forward"):
            now += 0.004 if item >= SKIPPED else 1.0  # the first steps warm up
        now += 0.005
        profile.step()
    profile._profiler = None  # no trace of a clock that stands still
    assert profile.timed_steps == 4
    assert profile.seconds["loading"] == pytest.approx(4 * 0.001)
    assert profile.seconds["forward"] == pytest.approx(4 * 0.004)
    assert profile.total_seconds == pytest.approx(4 * 0.010)
    assert "a step, mean of 4: 10.00 ms" in said[0]
    assert "everything else      5.000 ms  50.0%" in said[0]


def test_a_training_says_its_parts_and_writes_a_trace(
    prepared: Store,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(profiling, "TIMED", 3)
    monkeypatch.setattr(profiling, "TRACED", 2)
    config = settings(epochs=3)
    trace = tmp_path / "reports/trace.json"
    profiled = train(
        config, prepared, workdir=tmp_path / "a", tracker=NullTracker(), progress=False, profile=trace
    )
    said = capfd.readouterr().err
    assert "a step, mean of 3:" in said and str(trace) in said
    assert all(f"  {part}" in said for part in (*PARTS, "everything else"))
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert names >= set(PARTS)
    plain = train(config, prepared, workdir=tmp_path / "b", tracker=NullTracker(), progress=False)
    assert plain.history == profiled.history, "watching changes nothing"


def test_too_few_steps_are_said(
    prepared: Store, settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.json"
    train(
        settings(epochs=1),
        prepared,
        workdir=tmp_path / "a",
        tracker=NullTracker(),
        progress=False,
        profile=trace,
    )
    assert f"no profile: fewer than {SKIPPED + 1} steps" in capfd.readouterr().err
    assert not trace.exists() and TIMED > 0
