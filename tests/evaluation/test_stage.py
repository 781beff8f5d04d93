"""The stage against a real MLflow database: the evaluation belongs to the run that trained."""

import hashlib
import json
from pathlib import Path

import pytest

from darkarc.config import Config, parse
from darkarc.data.store import Store
from darkarc.evaluation.stage import evaluate_stage
from darkarc.models import Regressor, RegressorSpec, save_regressor
from darkarc.tracking import open_client, start_run
from tests.evaluation.conftest import SIDE, make_store


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(folder: Path, config: Config) -> Path:
    spec = RegressorSpec(
        targets={"log10_axion_mass_ev": (-24.0, -22.0)},
        shape=(SIDE, SIDE),
        model=config.model.model_dump(),
        statistics={"mean": 0.0, "std": 1.0, "background": 0.0, "noise_level": 1.0},
        instrument="model_iii",
    )
    return save_regressor(Regressor(spec), folder)


def test_evaluation_joins_the_run_of_the_training(project: Path) -> None:
    config = parse({"tracking": {"system_metrics": False}, "evaluate": {"mass_bins": 2, "examples": 1}})
    store: Store = make_store(project / "prepared", per_class={"axion": 40, "cdm": 10, "no_sub": 10})
    with start_run(config, name="train", journal=project / "train.jsonl") as tracker:
        tracker.log_metrics({"val_loss": 1.0}, step=1)
        run_id = tracker.run_id
    assert run_id is not None
    record = {"run_id": run_id, "experiment_id": tracker.experiment_id, "training_digest": "0" * 64}
    (project / "run.json").write_text(json.dumps(record))
    metrics = evaluate_stage(
        config,
        store.path,
        trained=trained(project / "trained", config),
        run_file=project / "run.json",
        out=project / "reports",
        progress=False,
    )
    assert json.loads((project / "reports/metrics.json").read_text()) == metrics
    manifest = (project / "trained/manifest.json").read_bytes()
    assert metrics["regressor"] == [{"sha256": hashlib.sha256(manifest).hexdigest()}]
    client = open_client()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val_loss"] == 1.0
    assert run.data.metrics["test/mae_dex"] == pytest.approx(metrics["mae_dex"])
    assert len(client.search_runs([run.info.experiment_id])) == 1
    listed = {item.path for item in client.list_artifacts(run_id, "evaluation")}
    assert {"evaluation/report.html", "evaluation/figures", "evaluation/metrics.json"} <= listed
    figures = [item.path for item in client.list_artifacts(run_id, "evaluation/figures")]
    assert "evaluation/figures/error_by_mass.png" in figures
    contexts = [tag.value for entry in run.inputs.dataset_inputs for tag in entry.tags]
    assert "evaluation" in contexts
