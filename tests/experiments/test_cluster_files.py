"""The cluster files against Ray's own schema, and against what they must never do."""

import copy
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
EXPERIMENTS = PROJECT / "experiments"
CLUSTERS = ("cluster.yaml", "cluster-onprem.yaml")
FROM_THE_LAPTOP = ("~/.ray/auth_token",)


def _load(name: str) -> dict[str, Any]:
    return yaml.safe_load((EXPERIMENTS / name).read_text())


def _validate(tree: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` does: defaults of the provider filled in, then the schema and the rules beyond it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(tree))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_accepts_it(name: str):
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(_load(name), schema)
    prepared = _validate(_load(name))
    assert prepared["max_workers"] == {"cluster.yaml": 16, "cluster-onprem.yaml": 2}[name]


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_would_refuse_a_mistake(name: str):
    misspelt = {"setup_comands": ["true"], **_load(name)}
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        _validate(misspelt)


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_code_travels_and_nothing_that_the_project_makes(name: str):
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    mounts = _load(name)["file_mounts"]
    assert mounts["~/darkarc/src"] == "src" and mounts["~/darkarc/experiments"] == "experiments"
    for remote, local in mounts.items():
        if local in FROM_THE_LAPTOP:
            assert remote == local
            continue
        assert remote == f"~/darkarc/{local}"
        # Ray reads all that lies below a mount, again and again: no data, no .venv.
        assert local == "dvc.lock" or any(file == local or file.startswith(f"{local}/") for file in tracked)
    needed = {"pyproject.toml", "requirements.lock", "params.yaml", "README.md", "LICENSE"}
    assert needed <= set(mounts.values())


@pytest.mark.parametrize("name", CLUSTERS)
def test_nobody_gets_in_without_the_token(name: str):
    tree = _load(name)
    starts = [line for line in tree["head_start_ray_commands"] if "--head" in line]
    assert len(starts) == 1 and "--dashboard-host=127.0.0.1" in starts[0]
    for line in tree["head_start_ray_commands"] + tree["worker_start_ray_commands"]:
        assert line.startswith(". ~/darkarc/experiments/node.sh;")
    exported = subprocess.run(
        ["bash", "-c", f". {EXPERIMENTS / 'node.sh'}; env"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "RAY_AUTH_MODE=token" in exported
    quiet = (
        "RAY_USAGE_STATS_ENABLED=0 DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true ORT_DISABLE_TELEMETRY=1"
    )
    assert {*quiet.split(), "ORT_DISABLE_TELEMETRY=1"} <= set(exported)
    assert "0.0.0.0" not in (EXPERIMENTS / name).read_text()


def test_a_spot_machine_may_vanish():
    tree = _load("cluster.yaml")
    assert tree["provider"]["cache_stopped_nodes"] is False
    types = tree["available_node_types"]
    head, gpu = types[tree["head_node_type"]], types["gpu"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"]
    # No trial is placed on the head, and nothing runs while there is no study.
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert gpu["min_workers"] == 0
    paper = yaml.safe_load((EXPERIMENTS / "paper.yaml").read_text())
    workers = tree["max_workers"]
    assert workers * gpu["resources"]["CPU"] >= paper["concurrent"] * paper["resources"]["cpus"]
    assert workers * gpu["resources"]["GPU"] >= paper["concurrent"] * paper["resources"]["gpus"]


@pytest.mark.parametrize("name", ["node.sh", "setup_node.sh", "slurm.sh"])
def test_the_scripts_parse(name: str):
    subprocess.run(["bash", "-n", str(EXPERIMENTS / name)], check=True)


def test_a_job_carries_the_code_alone(tmp_path: Path):
    """What `ray job submit --working-dir .` would send, of a project where everything has run."""
    from ray._private.runtime_env.packaging import create_package
    from ray._private.runtime_env.validation import parse_and_validate_excludes

    project = tmp_path / "project"
    sent = ["src/darkarc/cli.py", "src/darkarc/data/store.py", "src/darkarc/models/heads.py", "params.yaml"]
    sent += ["experiments/paper.yaml", "dvc.yaml"]
    kept = [
        "data/prepared/images-00000.npy",
        "reports/metrics.json",
        ".dvc/cache/files/md5/00/1",
        "mlflow.db",
    ]
    kept += ["mlruns/0/meta.yaml", "mlartifacts/1/model.onnx", "mlserver/admin_password", ".venv/bin/python"]
    kept += [".git/HEAD", ".darkarc/tune/book.jsonl", "tests/test_cli.py", "mlflow.db-wal", "site/index.html"]
    for name in sent + kept:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("content")
    excludes = parse_and_validate_excludes(_load("job.yaml")["excludes"])
    # The project's .gitignore would help; whoever has another one must be safe as well.
    create_package(str(project), tmp_path / "package.zip", include_gitignore=False, excludes=excludes)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = {name for name in package.namelist() if not name.endswith("/")}
    assert names == set(sent)
