"""What a training stores about populations of lenses."""

import pyarrow.compute as pc
import pytest
import torch

from darkarc import config
from darkarc.models import load_regressor, save_regressor
from darkarc.training import new_regressor
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
