"""`darkarc train --profile` and `darkarc lr-range` from the command line, and curves for TensorBoard."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from darkarc.cli import app
from darkarc.config import Config
from darkarc.training import profiling
from tests.training.conftest import write_prepared


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Callable[..., Config]) -> Path:
    """A folder with small parameters and a prepared store, the place of every command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    write_prepared(tmp_path / "data/prepared", splits={"train": 70, "validation": 30, "calibration": 60})
    tree = settings(model={"novelty": "none"}, epochs=2).dump()
    tree["tracking"] |= {"system_metrics": False, "tensorboard": True}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def test_train_with_a_profile_and_curves_for_tensorboard(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(profiling, "SKIPPED", 1)
    monkeypatch.setattr(profiling, "TIMED", 2)
    result = CliRunner().invoke(app, ["train", "--reports", "told", "--profile", "--quiet"])
    assert result.exit_code == 0, result.output
    names = {
        event.get("name") for event in json.loads((project / "told/trace.json").read_text())["traceEvents"]
    }
    assert names >= set(profiling.PARTS)
    rows = (project / "told/history.csv").read_text().splitlines()
    (folder,) = (project / ".darkarc/tensorboard").iterdir()
    assert folder.name == json.loads((project / "data/run.json").read_text())["run_id"]
    curves = EventAccumulator(str(folder))
    curves.Reload()
    losses = [event.value for event in curves.Scalars("val_loss")]
    place = rows[0].split(",").index("val_loss")
    assert losses == pytest.approx([float(row.split(",")[place]) for row in rows[1:]])


def test_lr_range_between_the_rates_that_are_given(project: Path) -> None:
    words = ["lr-range", "--reports", "told", "--low", "1e-4", "--high", "0.1", "--steps", "30", "--quiet"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    document = json.loads((project / "told/lr_range.json").read_text())
    assert document["rates"][0] == pytest.approx(1e-4)
    assert document["rates"][-1] <= 0.1 * (1 + 1e-9) and len(document["rates"]) <= 30
    assert document["rates"][1] / document["rates"][0] == pytest.approx(1e3 ** (1 / 29))
    assert (project / "told/lr_range.png").read_bytes().startswith(b"\x89PNG")
    assert f"train.learning_rate={document['suggestion']:.1e}" in result.output
