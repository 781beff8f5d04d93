"""What a training stores about populations of lenses."""

import pyarrow.compute as pc
import pytest
import torch

from darkarc import config
from darkarc.data.generate import generate
from darkarc.data.prepare import prepare
from darkarc.models import PopulationErrors, load_regressor, save_regressor
from darkarc.training import fit_population as fit_population_module
from darkarc.training.engine import new_regressor
from darkarc.training.fit_population import fit_population
from tests.training.conftest import write_prepared


def test_share_and_correlation_travel_with_the_regressor(tmp_path):
    store = write_prepared(tmp_path / "prepared", splits={"train": 60, "validation": 20, "calibration": 500})
    settings = config.parse({"model": {"width": 0.25, "bins": 32}})
    torch.manual_seed(0)
    regressor = new_regressor(settings, store)
    torch.nn.init.normal_(regressor.target_layer.bias, std=3.0)  # the same wrong answer for every lens
    logged = fit_population(settings, regressor, store)
    train = store.samples.filter(pc.equal(store.samples["split"], "train"))
    share = sum(name == "axion" for name in train["class"].to_pylist()) / len(train)
    assert logged["population/axion_share"] == pytest.approx(share)
    save_regressor(regressor, tmp_path / "saved")
    known = load_regressor(tmp_path / "saved").spec.statistics["population"]
    assert known["axion_share"] == pytest.approx(share)
    if known.get("n", 0):
        assert known["correlation"] > 0.5


def test_a_small_calibration_split_stores_the_share_alone(tmp_path):
    store = write_prepared(tmp_path / "prepared", splits={"train": 60, "validation": 20, "calibration": 30})
    settings = config.parse({"model": {"width": 0.25, "bins": 32}})
    logged = fit_population(settings, new_regressor(settings, store), store)
    assert set(logged) == {"population/axion_share"}


def test_lenses_of_single_masses_are_simulated_where_the_form_is_known(tmp_path, monkeypatch):
    settings = config.parse(
        {
            "simulate": {"n_axion": 120, "n_cdm": 10, "n_no_sub": 10},
            "model": {"width": 0.25, "bins": 32, "novelty": "none"},
        }
    )
    raw = generate(settings, tmp_path / "raw", progress=False)
    store = prepare(raw, tmp_path / "prepared", settings)
    torch.manual_seed(0)
    regressor = new_regressor(settings, store)
    monkeypatch.setattr(fit_population_module, "MASSES", 4)
    monkeypatch.setattr(fit_population_module, "LEAST_LENSES", 10)
    monkeypatch.setattr(fit_population_module, "MOST_LENSES", 16)
    with torch.no_grad():  # every lens is read as the same mass, whatever it is
        regressor.target_layer.bias[8] = 4.0
    logged = fit_population(settings, regressor, store)
    known = regressor.spec.statistics["population"]
    assert logged["population/n"] == 64 and known["correlation"] > 0.05
    assert known["mass"] == pytest.approx([-23.75, -23.25, -22.75, -22.25])
    assert known["read_as"] == pytest.approx([-24 + 8.5 / 16] * 4, abs=0.05)
    assert PopulationErrors.of(known).power(10) < 0.7
