"""What a training stores about populations of lenses."""

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

import darkarc
from darkarc import config
from darkarc.data.generate import generate
from darkarc.data.prepare import prepare
from darkarc.models import PopulationErrors, load_regressor, save_regressor
from darkarc.training import fit_population as fit_population_module
from darkarc.training import new_regressor
from darkarc.training.fit_population import MASSES, fit_population
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
    assert known["n"] == 300  # axion-like ones of the 500
    assert known["correlation"] > 0.5


def test_a_small_calibration_split_stores_the_share_alone(tmp_path):
    store = write_prepared(tmp_path / "prepared", splits={"train": 60, "validation": 20, "calibration": 30})
    settings = config.parse({"model": {"width": 0.25, "bins": 32}})
    logged = fit_population(settings, new_regressor(settings, store), store)
    assert set(logged) == {"population/axion_share"}


@pytest.mark.parametrize(("seed", "drawn_with"), [(0, 2**40), (2**63 - 1, 2**40 - 1)])
def test_where_the_form_is_known_lenses_of_single_masses_are_simulated(
    tmp_path, monkeypatch, seed, drawn_with
):
    monkeypatch.setattr(fit_population_module, "LEAST_LENSES", 3)
    settings = config.parse(
        {
            "seed": seed,
            "simulate": {
                "preset": "model_iii",
                "noise": "published",
                "n_axion": 200,
                "n_cdm": 4,
                "n_no_sub": 4,
            },
            "model": {"width": 0.25, "bins": 32, "lens_residual": "none", "novelty": "none"},
        }
    )
    store = prepare(generate(settings, tmp_path / "raw", progress=False), tmp_path / "prepared", settings)
    train = store.samples.filter(pc.equal(store.samples["split"], "train"))
    lenses = train["class"].to_pylist().count("axion") // MASSES
    assert lenses >= 3
    torch.manual_seed(0)
    regressor = new_regressor(settings, store)
    seen, predict = [], regressor.predict
    monkeypatch.setattr(
        regressor, "predict", lambda images, **asked: seen.append(images) or predict(images, **asked)
    )
    fit_population(settings, regressor, store)
    known = regressor.spec.statistics["population"]
    # Untrained it answers the prior: nothing is wrong in common.
    assert known["correlation"] == 0 and known["n"] == MASSES * lenses

    low, high = settings.targets["log10_axion_mass_ev"]
    middles = low + (np.arange(MASSES) + 0.5) / MASSES * (high - low)
    np.testing.assert_allclose(known["correlation_mass"], middles)
    expected = darkarc.simulate(
        "model_iii", log10_mass_ev=np.full(lenses, middles[0]), noise="published", seed=drawn_with
    )
    assert len(seen) == MASSES and all(len(pool) == lenses for pool in seen)
    np.testing.assert_allclose(seen[0], expected, rtol=1e-4, atol=1e-4 * expected.max())

    torch.nn.init.normal_(regressor.target_layer.bias, std=3.0)  # the same wrong answer for every lens
    logged = fit_population(settings, regressor, store)
    assert logged["population/correlation"] > 0.5
    save_regressor(regressor, tmp_path / "saved")
    known = load_regressor(tmp_path / "saved").spec.statistics["population"]
    assert PopulationErrors.of(known).correlations(3, middles).min() > 0.2
