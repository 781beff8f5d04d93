"""`train.members`: other seeds, one regressor, and a kill that costs at most one member's epoch."""

import json

import numpy as np
import pytest

from darkarc.evaluation.context import describe_regressor
from darkarc.models import Ensemble, load_regressor
from darkarc.tracking import NullTracker
from darkarc.training.engine import train
from darkarc.training.members import member_config, train_members
from darkarc.training.recalibrate import recalibrate
from tests.training.conftest import write_prepared


class Curves(NullTracker):
    def __init__(self) -> None:
        self.names: list[str] = []

    def log_metrics(self, metrics, step):
        self.names += metrics


def test_members_are_trainings_with_seeds_of_their_own(tmp_path, settings):
    store = write_prepared(tmp_path / "prepared", splits={"train": 64, "validation": 30, "calibration": 60})
    config = settings(epochs=2, members=2, seed=5)
    curves = Curves()
    result = train_members(config, store, workdir=tmp_path / "work", tracker=curves, progress=False)
    assert isinstance(result.regressor, Ensemble)
    assert {"member_0/val_loss", "member_1/val_loss"} <= set(curves.names)
    single = [
        train(
            member_config(config, k), store, workdir=tmp_path / "alone", tracker=NullTracker(), progress=False
        )
        for k in range(2)
    ]
    assert member_config(config, 1).seed == 6
    for row, first, second in zip(result.history, *(one.history for one in single), strict=True):
        assert row["val_loss"] == pytest.approx((first["val_loss"] + second["val_loss"]) / 2)
    images = store.images(slice(0, 6))
    expected = np.mean([one.regressor.predict(images).density for one in single], axis=0)
    np.testing.assert_allclose(result.regressor.predict(images).density, expected, atol=1e-4)

    again = Curves()
    resumed = train_members(config, store, workdir=tmp_path / "work", tracker=again, progress=False)
    assert again.names == [], "what is trained is not trained again"
    np.testing.assert_array_equal(
        resumed.regressor.predict(images).density, result.regressor.predict(images).density
    )
    assert resumed.digest == result.digest != single[0].digest

    before = result.regressor.predict(images).density
    recalibrate(config, result.regressor, store)
    assert np.any(result.regressor.predict(images).density != before), "the mixture is recalibrated"


def test_after_the_last_seed_comes_the_first(tmp_path, settings):
    store = write_prepared(tmp_path / "prepared", splits={"train": 32, "validation": 20, "calibration": 20})
    config = settings(epochs=1, members=2, seed=2**63 - 1)
    assert [member_config(config, k).seed for k in range(2)] == [2**63 - 1, 0]
    result = train_members(config, store, workdir=tmp_path / "work", tracker=NullTracker(), progress=False)
    assert isinstance(result.regressor, Ensemble)
    assert describe_regressor(config, result.regressor)["Ensemble"] == f"2 members, seeds {2**63 - 1} to 0"


def test_the_stage_writes_an_ensemble(tmp_path, settings, monkeypatch):
    from darkarc.training.stage import train_stage

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    store = write_prepared(tmp_path / "prepared", splits={"train": 64, "validation": 30, "calibration": 60})
    config = settings(epochs=1, members=2)
    config = config.model_copy(
        update={"tracking": config.tracking.model_copy(update={"system_metrics": False})}
    )
    train_stage(
        config, store.path, out=tmp_path / "trained", run_file=tmp_path / "run.json",
        history=tmp_path / "history.csv", progress=False,
    )  # fmt: skip
    assert json.loads((tmp_path / "trained/regressor.json").read_text())["members"] == 2
    regressor = load_regressor(tmp_path / "trained")
    posterior = regressor.predict(store.images(slice(0, 3)))
    assert posterior.std_between is not None and posterior.novelty is not None
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2
