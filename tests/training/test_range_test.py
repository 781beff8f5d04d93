"""The range test: what it reads from curves that are known, and that it leaves nothing behind."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.training import TrainingError
from darkarc.training.range_test import analyse, range_test, range_test_stage

Settings = Callable[..., Config]


def curve(rates: list[float]) -> list[float]:
    """Flat, a fall around 1e-3 that ends at 1e-2, a rise from 1e-1 on."""
    falls = [1.0 / (1.0 + math.exp(4 * (math.log10(rate) + 3))) for rate in rates]
    rises = [max(0.0, math.log10(rate) + 1) * 3 for rate in rates]
    return [fall + rise for fall, rise in zip(falls, rises, strict=True)]


def ramp(steps: int = 400, low: float = 1e-6, high: float = 1.0) -> list[float]:
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def test_it_reads_the_steepest_fall_and_a_tenth_of_the_least_loss() -> None:
    rates = ramp()
    result = analyse(rates, curve(rates))
    assert math.log10(result.steepest) == pytest.approx(-3, abs=0.25)  # the average lags by ten steps
    assert math.log10(result.tenth) == pytest.approx(-1 - 1, abs=0.25)
    assert result.suggestion == result.tenth


def test_only_the_finite_beginning_counts() -> None:
    rates = ramp()
    losses = curve(rates)
    broken = [*losses[:300], math.nan, *losses[301:]]
    result = analyse(rates, broken)
    assert len(result.rates) == len(result.losses) == len(result.smoothed) == 300
    assert result.tenth <= rates[299] / 10


def test_a_loss_that_only_rises_is_said() -> None:
    rates = ramp()
    with pytest.raises(TrainingError, match=r"the loss rises from the first steps on.*begin lower"):
        analyse(rates, [float(k) for k in range(len(rates))])


def test_a_range_that_is_none_is_refused(prepared: Store, settings: Settings) -> None:
    with pytest.raises(TrainingError, match=r"expected 0 < low < high"):
        range_test(settings(), prepared, low=1.0, high=0.1, progress=False)


def test_it_is_repeatable_follows_the_parameters_and_ends_where_the_loss_leaves(
    prepared: Store, settings: Settings
) -> None:
    config = settings(optimiser="sgd", gradient_clip=0.0)
    options = {"low": 1e-4, "high": 1e4, "steps": 80, "progress": False}
    first = range_test(config, prepared, **options)
    assert first == range_test(config, prepared, **options)
    assert len(first.rates) < 80 and first.rates[0] == pytest.approx(1e-4)
    other = range_test(settings(optimiser="lion", gradient_clip=0.0), prepared, **options)
    assert other.losses[:1] == first.losses[:1] and other.losses[:10] != first.losses[:10]


def test_the_stage_writes_numbers_figure_and_a_run_and_no_checkpoint(
    prepared: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    from darkarc.tracking import open_client

    config = settings()
    config = config.model_copy(
        update={"tracking": config.tracking.model_copy(update={"system_metrics": False})}
    )
    out, figure = tmp_path / "reports/lr_range.json", tmp_path / "reports/lr_range.png"
    result = range_test_stage(
        config,
        prepared.path,
        out=out,
        figure=figure,
        low=1e-5,
        high=1.0,
        steps=40,
        work=tmp_path / "work",
        progress=False,
    )
    document = json.loads(out.read_text())
    assert document["suggestion"] == result.suggestion and document["losses"] == result.losses
    assert figure.read_bytes().startswith(b"\x89PNG")
    client = open_client()
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.run_name == "lr-range" and run.info.status == "FINISHED"
    assert run.data.metrics["range/suggestion_rate"] == pytest.approx(result.suggestion)
    assert len(client.get_metric_history(run.info.run_id, "range/loss")) == len(result.losses)
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"lr_range.json", "lr_range.png"}
    assert not list(tmp_path.rglob("step-*")) and not (tmp_path / "work").exists()
