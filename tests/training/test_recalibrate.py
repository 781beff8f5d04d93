"""Recalibration as the stage does it: on the calibration split, into what is saved and exported."""

import numpy as np
import pytest
import torch

from darkarc import config
from darkarc.data.batches import BatchError
from darkarc.models import load_regressor, save_regressor
from darkarc.training import new_regressor
from darkarc.training.fit_novelty import fit_novelty
from darkarc.training.recalibrate import check_calibration, recalibrate
from darkarc.training.stage import train_stage
from tests.training.conftest import write_prepared


@pytest.fixture
def store(tmp_path):
    return write_prepared(tmp_path / "prepared", splits={"train": 60, "validation": 20, "calibration": 200})


@pytest.mark.parametrize("method", ["temperature", "isotonic", "conformal", "local"])
def test_it_changes_the_answers_and_survives_saving(store, tmp_path, method):
    settings = config.parse(
        {"model": {"recalibration": method, "width": 0.5, "bins": 32, "smooth_bins": False}}
    )
    torch.manual_seed(0)
    regressor = new_regressor(settings, store)
    torch.nn.init.normal_(regressor.target_layer.bias, std=4.0)  # overconfident nonsense
    images = store.images(slice(0, 8))
    before = regressor.predict(images)
    logged = recalibrate(settings, regressor, store)
    after = regressor.predict(images)
    assert logged["recalibration/n"] >= 30
    assert logged["recalibration/temperature"] > 1.5
    assert np.all(after.std > before.std)
    save_regressor(regressor, tmp_path / "saved")
    np.testing.assert_array_equal(load_regressor(tmp_path / "saved").predict(images).density, after.density)


def test_what_local_learnt_of_the_novelty_is_in_the_answers(store):
    settings = config.parse({"model": {"width": 0.5, "bins": 32, "smooth_bins": False}})
    torch.manual_seed(0)
    regressor = new_regressor(settings, store)
    torch.nn.init.normal_(regressor.target_layer.weight, std=0.02)
    fit_novelty(settings, regressor, store)
    recalibrate(settings, regressor, store)
    recalibration = regressor.recalibrations[0]
    assert not torch.equal(recalibration.by_novelty[1], torch.ones(3))
    images = torch.from_numpy(store.images(slice(0, 8)))[:, None]
    with torch.inference_mode():
        answer = regressor(images)
        logits = regressor.network_logits(regressor.head_outputs(images)[0])[0]
        told, blind = recalibration(logits, answer.novelty), recalibration(logits)
    torch.testing.assert_close(answer.density[:, 0], told / regressor.grids[0].width)
    assert not torch.allclose(told, blind)


def test_smoothing_knows_the_novelty_too(store, monkeypatch):
    settings = config.parse({"model": {"width": 0.5, "bins": 32}})
    regressor = new_regressor(settings, store)
    fit_novelty(settings, regressor, store)
    given = []
    monkeypatch.setattr(
        "darkarc.training.recalibrate.smooth_bins", lambda *arguments: given.append(arguments[3])
    )
    recalibrate(settings, regressor, store)
    chosen = np.flatnonzero(np.array(store.samples["split"].to_pylist()) == "calibration")
    expected = regressor.predict(store.images(chosen)).novelty
    np.testing.assert_allclose(np.sort(given[0].numpy()), np.sort(expected), atol=1e-4)


def test_the_stage_fits_the_novelty_first(store, tmp_path, monkeypatch):
    """A recalibration that is done again, with the novelty as it is at the end, finds the same."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    settings = config.parse(
        {
            "model": {"width": 0.25, "bins": 32, "smooth_bins": False},
            "train": {"epochs": 1, "batch_size": 16, "sanity": False},
            "tracking": {"system_metrics": False, "patience_s": 0},
        }
    )
    train_stage(
        settings, store.path, out=tmp_path / "trained", run_file=tmp_path / "run.json",
        history=tmp_path / "history.csv", work=tmp_path / "work", progress=False,
    )  # fmt: skip
    regressor = load_regressor(tmp_path / "trained")
    before = regressor.recalibrations[0].by_novelty.clone()
    recalibrate(settings, regressor, store)
    torch.testing.assert_close(regressor.recalibrations[0].by_novelty, before, rtol=1e-4, atol=1e-4)
    assert not torch.equal(before[1], torch.ones(3))


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["temperature", "isotonic", "conformal", "local"])
def test_what_follows_a_training_runs_on_a_gpu(store, method):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    settings = config.parse({"model": {"recalibration": method, "width": 0.5, "bins": 32}})
    regressor = new_regressor(settings, store).to("cuda")
    fit_novelty(settings, regressor, store)
    assert recalibrate(settings, regressor, store)["recalibration/n"] >= 30
    assert np.isfinite(regressor.predict(store.images(slice(0, 8))).density).all()


def test_without_it_nothing_changes(store):
    settings = config.parse({"model": {"recalibration": "none", "width": 0.5}})
    regressor = new_regressor(settings, store)
    weights = {name: value.clone() for name, value in regressor.state_dict().items()}
    assert recalibrate(settings, regressor, store) == {}
    assert all(bool((value == weights[name]).all()) for name, value in regressor.state_dict().items())


def test_a_missing_calibration_split_is_named(tmp_path):
    store = write_prepared(tmp_path / "prepared", splits={"train": 60, "validation": 20})
    settings = config.parse({"model": {"width": 0.5}})
    with pytest.raises(BatchError, match=r"raise prepare\.calibration"):
        recalibrate(settings, new_regressor(settings, store), store)


@pytest.mark.parametrize(
    ("n", "model", "message"),
    [
        (0, {}, r"no samples in the calibration split; raise prepare\.calibration"),
        (0, {"recalibration": "none", "vortex_fit": True}, "no samples in the calibration split"),
        (1, {}, r"\(calibration\): no axion sample"),
        (1, {"recalibration": "none", "novelty": "mixture"}, r"\(calibration\): no axion sample"),
        (100, {"vortex_fit": True}, r"expected at least 300 .*found 60: raise prepare\.calibration, or set"),
    ],
    ids=["no_split", "no_split_for_the_fit", "no_axion", "no_axion_for_the_novelty", "few_lenses"],
)
def test_a_calibration_that_must_fail_is_named_before_the_training(tmp_path, monkeypatch, n, model, message):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    splits = {"train": 60, "validation": 22, "calibration": n}  # of one image that is cdm
    store = write_prepared(tmp_path / "prepared", splits=splits, auxiliary=True)
    settings = config.parse(
        {
            "model": {"width": 0.25, "bins": 32, "novelty": "none"} | model,
            "train": {"epochs": 1, "batch_size": 16, "sanity": False},
            "tracking": {"system_metrics": False, "patience_s": 0},
        }
    )
    with pytest.raises(BatchError, match=message):
        train_stage(
            settings, store.path, out=tmp_path / "trained", run_file=tmp_path / "run.json",
            history=tmp_path / "history.csv", work=tmp_path / "work", progress=False,
        )  # fmt: skip
    assert not (tmp_path / "work").exists(), "something was trained"


def test_what_needs_no_calibration_is_trained_without_one(tmp_path):
    store = write_prepared(tmp_path / "none", splits={"train": 60, "validation": 20})
    check_calibration(config.parse({"model": {"recalibration": "none"}}), store)
    enough = write_prepared(
        tmp_path / "enough", splits={"train": 60, "validation": 20, "calibration": 500}, auxiliary=True
    )
    check_calibration(config.parse({"model": {"vortex_fit": True}}), enough)
