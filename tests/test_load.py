"""The load benchmark measures what it says: memory of children, slopes, points lost or doubled."""

import sys
from pathlib import Path

import pytest

from benchmarks.load import MB, Used, count_points, log_curves, slope, start_project, watched

CHILD = "import time; held = b'x' * 120_000_000; time.sleep(1)"


def test_the_memory_of_children_counts(tmp_path: Path) -> None:
    calls = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)"
    used = watched([sys.executable, "-c", calls], tmp_path)
    assert 120 < used.own / MB < 250
    assert used.own <= used.resident
    assert used.seconds > 1


def test_a_stage_that_fails_is_an_error_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such lens"):
        watched([sys.executable, "-c", "raise SystemExit('no such lens')"], tmp_path)


def test_the_slope_is_for_a_hundred_thousand_rows() -> None:
    found = {n: Used(0.0, own=500_000_000 + 80 * n, resident=0) for n in (100_000, 300_000, 1_000_000)}
    assert slope(found, "own") == pytest.approx(8e6)
    assert slope(found, "resident") == pytest.approx(0)


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three loggers, one after the other, in a project with a database of its own."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    project = start_project(tmp_path / "project", {"tracking": {"system_metrics": False}})
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(project)
    for number in range(3):
        log_curves(number, 4, project)
    return project


@pytest.mark.slow
def test_all_points_are_found(logged: Path) -> None:
    found = count_points(3, 4, logged, 1.0)
    assert (found.sent, found.missing, found.doubled, found.running) == (36, 0, 0, 0)


@pytest.mark.slow
def test_points_that_are_missing_or_doubled_are_counted(logged: Path) -> None:
    from darkarc.tracking import open_client

    client = open_client()
    experiment = client.get_experiment_by_name("darkarc")
    run = client.search_runs([experiment.experiment_id], max_results=1)[0]
    (first,) = (p for p in client.get_metric_history(run.info.run_id, "loss") if p.step == 0)
    client.log_metric(run.info.run_id, "loss", first.value, timestamp=first.timestamp + 1, step=0)
    found = count_points(3, 5, logged, 1.0)
    assert (found.missing, found.doubled) == (9, 1)
