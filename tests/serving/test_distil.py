"""`darkarc distill`: a small student learns a teacher's densities, and the two are held side by side."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from darkarc.cli import app
from darkarc.config import DEFAULT_TARGET, parse
from darkarc.data.store import Store
from darkarc.evaluation.predictions import split_rows, true_values
from darkarc.models import Regressor, load_regressor, save_regressor
from darkarc.serving import distil
from darkarc.serving.comparison import Trial, try_out
from darkarc.serving.distil import MOST_PARAMETERS, DistillError, distill_stage
from darkarc.tracking import open_client
from darkarc.training import new_regressor
from tests.training.conftest import write_prepared

SETTINGS: dict[str, Any] = {
    "model": {"width": 0.25, "bins": 32, "novelty": "none"},
    "train": {"epochs": 1, "batch_size": 16, "sanity": False},
    "tracking": {"system_metrics": False, "patience_s": 0},
}
SPLITS = {"train": 60, "validation": 20, "calibration": 20, "test": 40}


def size(regressor: Regressor) -> int:
    return sum(weight.numel() for weight in regressor.parameters())


@pytest.fixture
def store(project: Path) -> Store:
    store = write_prepared(project / "data/prepared", splits=SPLITS)
    teacher = parse({**SETTINGS, "model": {**SETTINGS["model"], "width": 1.0, "recalibration": "none"}})
    save_regressor(new_regressor(teacher, store), project / "data/trained")
    (project / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    return store


def test_the_student_is_trained_and_compared_on_the_test_split(store: Store) -> None:
    result = CliRunner().invoke(app, ["distill", "--quiet"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(Path("reports/student/distilled.json").read_text())
    teacher, student = load_regressor("data/trained"), load_regressor("data/student")
    assert size(student) < MOST_PARAMETERS < size(teacher)
    assert f"{size(student):,} parameters" in result.output
    rows = split_rows(store, "test")
    truth = true_values(store, rows, DEFAULT_TARGET)
    known = np.isfinite(truth)
    errors = {}
    for name, regressor in (("teacher", teacher), ("student", student)):
        posterior = regressor.predict(store.images(rows[known]))
        errors[name] = np.abs(posterior.median - truth[known])
        low, high = posterior.interval(0.68).T
        said = found[name]
        assert said["parameters"] == size(regressor)
        assert said["mae_dex"] == pytest.approx(errors[name].mean(), abs=1e-4)
        assert said["nll"] == pytest.approx(-posterior.log_prob(truth[known]).mean(), abs=2e-3)
        inside = np.mean((low <= truth[known]) & (truth[known] <= high))
        assert said["coverage_68"] == pytest.approx(inside, abs=0.05)
        assert said["images_per_second"] > 0
    low, high = found["mae_difference_dex"]
    assert low < errors["student"].mean() - errors["teacher"].mean() < high
    assert found["n_test"] == known.sum()
    run = json.loads(Path("data/student_run.json").read_text())["run_id"]
    assert open_client().get_run(run).data.params["cfg.train.teacher"] == "data/trained"


def test_a_number_that_is_not_finite_is_null(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*asked: Any) -> Trial:
        return replace(try_out(*asked), nll=float("inf"))  # a truth without any density

    monkeypatch.setattr(distil, "train_stage", lambda *_, **__: None)
    monkeypatch.setattr(distil, "try_out", lost)
    config = parse(SETTINGS)
    save_regressor(new_regressor(config, store), "data/student")
    distill_stage(
        config, Path("data/prepared"), teacher=Path("data/trained"), out=Path("data/student"),
        run_file=Path("data/student_run.json"), reports=Path("reports/student"), progress=False,
    )  # fmt: skip
    text = Path("reports/student/distilled.json").read_text()
    student = json.loads(text, parse_constant=pytest.fail)["student"]
    assert student["nll"] is None and student["parameters"] == size(load_regressor("data/student"))


def test_a_student_of_too_many_parameters_is_refused_before_training(store: Store) -> None:
    config = parse({**SETTINGS, "model": {**SETTINGS["model"], "width": 0.7}})
    exact = size(new_regressor(config, store))
    assert 300_000 > exact > MOST_PARAMETERS == 200_000
    with pytest.raises(DistillError, match=rf"would have {exact:,} parameters, more than 200,000: lower"):
        distill_stage(
            config, Path("data/prepared"), teacher=Path("data/trained"), out=Path("data/student"),
            run_file=Path("data/student_run.json"), reports=Path("reports/student"), progress=False,
        )  # fmt: skip
    assert not Path("data/student").exists() and not Path("reports").exists()
