"""Curves for TensorBoard."""

from pathlib import Path

import pytest

from darkarc.config import parse
from darkarc.tracking import start_run
from darkarc.tracking.tensorboard import with_curves


@pytest.mark.parametrize("wanted", [True, False])
def test_metrics_go_to_both_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from darkarc.tracking import open_client

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    config = parse({"tracking": {"tensorboard": wanted, "system_metrics": False}})
    folder = tmp_path / "tensorboard"
    with start_run(config, name="train", journal=tmp_path / "journal.jsonl") as tracker:
        with with_curves(tracker, config, folder) as curves:
            for epoch in (1, 2):
                curves.log_metrics({"val_loss": 1.5 / epoch}, step=epoch)
        run_id = tracker.run_id
    history = open_client().get_metric_history(run_id, "val_loss")
    assert [point.value for point in history] == [1.5, 0.75]
    assert folder.exists() == wanted
    if wanted:
        events = EventAccumulator(str(folder / str(run_id)))
        events.Reload()
        assert [(e.step, e.value) for e in events.Scalars("val_loss")] == [(1, 1.5), (2, 0.75)]
