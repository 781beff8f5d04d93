"""The published results' parameters, and the script that runs them, small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from darkarc import config

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "published"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_names_its_preset_and_noise_and_has_the_published_scale(path: Path) -> None:
    parameters = config.load(path)
    simulate = parameters.simulate
    assert f"{simulate.preset}_{simulate.noise}" == path.stem
    assert simulate.n_axion * parameters.prepare.train == pytest.approx(29_000, rel=0.02)
    assert simulate.n_axion * parameters.prepare.test == pytest.approx(5_000, rel=0.02)
    assert not parameters.tune.search


def test_all_presets_in_both_forms_are_there() -> None:
    names = {
        f"{preset}_{noise}"
        for preset in ("model_i", "model_ii", "model_iii")
        for noise in ("published", "physical")
    }
    assert {path.stem for path in FILES} == names


def test_the_table_has_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    def table() -> subprocess.CompletedProcess[str]:
        call = [sys.executable, str(FOLDER / "table.py"), str(tmp_path)]
        return subprocess.run(call, capture_output=True, text=True)

    empty = table()
    assert empty.returncode == 2 and "no NAME-SEED/metrics.json" in empty.stderr
    for name, seed, error in (("big", 0, 0.1), ("big", 2, 0.3), ("alone", 11, 0.25)):
        folder = tmp_path / f"{name}-{seed}"
        folder.mkdir()
        found = {"mae_dex": error, "standard_error": {"mae_dex": 0.01}, "coverage_68": 0.7}
        (folder / "metrics.json").write_text(json.dumps(found))
    (tmp_path / "unfinished-0").mkdir()
    alone, big = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table().stdout.splitlines()[2:]
    )
    assert alone[:7] == ["alone", "–", "11", "0.2500", "–", "0.0100", "0.2500"]
    assert big[:7] == ["big", "–", "0, 2", "0.2000", "0.1414", "0.0100", "0.1000 0.3000"]
    assert big[7:] == ["0.700", "–", "–", "–"]


@pytest.mark.slow
@pytest.mark.drill
def test_the_script_runs_and_goes_on(tmp_path: Path) -> None:
    """With a copy of the script beside small parameters: every stage once, and not again."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "run.sh").write_text((FOLDER / "run.sh").read_text())
    tree = yaml.safe_load((FOLDER / "model_ii_published.yaml").read_text())
    tree["simulate"] |= {"n_axion": 90, "n_cdm": 20, "n_no_sub": 20}
    tree["prepare"] = {"train": 0.5, "validation": 0.1, "calibration": 0.2, "test": 0.2}
    tree["model"] = {"width": 0.25, "novelty": "none"}
    tree["train"]["epochs"] = 1
    tree["tracking"] = {"system_metrics": False}
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_ROOT": str(tmp_path)}

    def run() -> str:
        ended = subprocess.run(
            ["bash", str(folder / "run.sh"), "small", "3"],
            cwd=tmp_path,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert ended.returncode == 0, ended.stderr[-2000:]
        return ended.stdout

    assert "images of 64x64 pixels" in run()
    assert (tmp_path / "data/published/small-3/metrics.json").is_file()
    assert "images of 64x64 pixels" not in run()
    unknown = subprocess.run(
        ["bash", str(folder / "run.sh"), "none"], cwd=tmp_path, capture_output=True, text=True
    )
    assert unknown.returncode == 2 and "no such file" in unknown.stderr
