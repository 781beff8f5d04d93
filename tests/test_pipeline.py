"""The whole pipeline through DVC and MLflow, small: what runs, what is skipped, what ends in the registry."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from darkarc import config

PROJECT = Path(__file__).resolve().parents[1]
PARTS = (
    "dvc.yaml",
    "sources",
    "src",
    "experiments",
    "MLproject",
    "python_env.yaml",
    ".dvcignore",
    ".gitignore",
)
SMALL = {
    "simulate": {"n_axion": 360, "n_cdm": 60, "n_no_sub": 60},
    "prepare": {"train": 0.5, "validation": 0.15, "calibration": 0.15, "test": 0.2, "mass_bins": 3},
    "model": {"width": 0.5, "bins": 32},
    "train": {"epochs": 2},
    "tune": {"study": "experiments/small.yaml"},
    "evaluate": {"floor_images": 2, "ood_images": 20},
    "tracking": {"system_metrics": False},
}
STUDY = {
    "name": "small",
    "objectives": {"val_mae_dex": "min"},
    "budget": {"trials": 2, "epochs": 1},
    "algorithm": {"name": "random"},
    "space": {"train.weight_decay": {"log_uniform": [1e-3, 1e-1]}},
    "resources": {"cpus": 1},
    "concurrent": 2,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A clone in miniature, run once."""
    folder = tmp_path_factory.mktemp("project")
    for part in PARTS:
        source = PROJECT / part
        ignore = shutil.ignore_patterns("__pycache__", "dvc.lock", "*.egg-info")
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=ignore)
        else:
            shutil.copy(source, folder / part)
    (folder / "params.yaml").write_text(whole(SMALL))
    (folder / "experiments/small.yaml").write_text(yaml.safe_dump(STUDY))
    run("git", "init", "-q", cwd=folder)
    run("dvc", "init", "-q", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "start", cwd=folder)
    run("dvc", "repro", cwd=folder)
    return folder


def whole(tree: dict[str, Any]) -> str:
    """params.yaml with every key: DVC reads some of them itself."""
    return yaml.safe_dump(config.parse(tree).dump())


def run(*words: str, cwd: Path) -> str:
    """A command in the project, as a user types it; fails with all it said."""
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(cwd / "src"),
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@localhost",
        "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@localhost",
    }  # fmt: skip
    environment.pop("MLFLOW_TRACKING_URI", None)
    result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=580)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    return said


def ran(said: str) -> list[str]:
    """Names of the stages that DVC ran."""
    quoted = [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]
    return [name.rpartition(":")[2] for name in quoted]


def test_it_ends_with_a_registered_model_and_its_evidence(project):
    registered = json.loads((project / "reports/registered.json").read_text())
    run_record = json.loads((project / "data/run.json").read_text())
    metrics = json.loads((project / "reports/metrics.json").read_text())
    assert registered["name"] == "axion-mass-regressor"
    assert metrics["mae_dex"] > 0
    for path in (
        "data/exported/model.onnx",
        "data/exported/README.md",
        "reports/report.html",
        "reports/winner.yaml",
    ):
        assert (project / path).is_file(), path
    facts = (
        "import json, sys; from mlflow import MlflowClient; from darkarc.tracking import tracking_uri;"
        "c = MlflowClient(tracking_uri()); r = c.get_run(sys.argv[1]);"
        "e = c.search_runs([r.info.experiment_id]);"
        "print(json.dumps({'status': r.info.status, 'metrics': r.data.metrics, 'params': r.data.params,"
        "'data': [d.dataset.digest for d in r.inputs.dataset_inputs], 'tags': r.data.tags,"
        "'nested': sum('mlflow.parentRunId' in x.data.tags for x in e),"
        "'running': sum(x.info.status == 'RUNNING' for x in e)}))"
    )
    found = json.loads(run(sys.executable, "-c", facts, run_record["run_id"], cwd=project).splitlines()[-1])
    assert found["status"] == "FINISHED"
    assert found["running"] == 0
    assert found["nested"] == 2, "each trial is a nested run"
    assert found["params"]["cfg.train.epochs"] == "2"
    assert found["metrics"]["test/mae_dex"] == pytest.approx(metrics["mae_dex"], rel=1e-6)
    tags = found["tags"]
    assert found["data"] and "darkarc.git_commit" in tags
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["prepare"]["outs"]
    assert tags["darkarc.dvc_data_md5"] in [out["md5"] for out in lock if out["path"] == "data/prepared"]
    assert tags["darkarc.study"] == "small" and tags["darkarc.trial"] in ("0", "1")
    card = (project / "data/exported/README.md").read_text()
    for value in (
        tags["darkarc.git_commit"].removesuffix("+dirty"),
        tags["darkarc.dvc_data_md5"],
        "| small, best trial",
    ):
        assert value in card


def test_a_second_run_does_nothing_within_seconds(project):
    start = time.monotonic()
    said = run("dvc", "repro", cwd=project)
    assert ran(said) == []
    assert "up to date" in said
    assert time.monotonic() - start < 30  # 5 s on a machine that does nothing else


def test_parameters_run_again_what_they_concern_and_nothing_before(project):
    said = run("dvc", "repro", "--dry", cwd=project)
    assert ran(said) == []
    before = (project / "params.yaml").read_text()
    try:
        (project / "params.yaml").write_text(whole({**SMALL, "train": {"epochs": 3}}))
        assert ran(run("dvc", "repro", "--dry", cwd=project)) == ["train"]
        (project / "params.yaml").write_text(whole({**SMALL, "export": {"error_tolerance": 0.1}}))
        assert ran(run("dvc", "repro", "--dry", cwd=project)) == ["export"]
        changed = {**SMALL, "simulate": {**SMALL["simulate"], "n_axion": 361}}
        (project / "params.yaml").write_text(whole(changed))
        assert ran(run("dvc", "repro", "--dry", cwd=project))[0] == "simulate"
    finally:
        (project / "params.yaml").write_text(before)


def test_experiments_metrics_and_plots_of_dvc(project):
    run("git", "add", "-A", cwd=project)
    run("git", "commit", "-qm", "first results", cwd=project)
    said = run("dvc", "exp", "run", "-S", "train.learning_rate=0.001", cwd=project)
    assert ran(said) == ["train", "evaluate", "register", "export"]
    difference = json.loads(run("dvc", "metrics", "diff", "--json", cwd=project))
    assert "mae_dex" in json.dumps(difference)
    run("dvc", "plots", "show", "-o", "plots-page", cwd=project)
    assert (project / "plots-page/index.html").stat().st_size > 10_000


def test_mlflow_runs_a_stage_as_its_own_run(project):
    said = run("mlflow", "run", ".", "--env-manager", "local", "-e", "train", cwd=project)
    number = said.partition("(ID '")[2].partition("')")[0] or said.partition("Run ID: ")[2][:32]
    record = json.loads((project / "data/run.json").read_text())
    assert record["run_id"] in said, (number, said)
