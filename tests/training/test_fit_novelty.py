"""The novelty as the stage fits it: on the train split, with the scale of the calibration split."""

import numpy as np
import pytest
import torch

from darkarc.models import RARE, VERY_RARE
from darkarc.training import new_regressor
from darkarc.training.fit_novelty import fit_novelty
from tests.training.conftest import blobs, write_prepared


@pytest.mark.parametrize("third", ["calibration", "validation"])
def test_it_is_scaled_by_images_that_nothing_was_fitted_on(tmp_path, settings, third):
    store = write_prepared(tmp_path / "prepared", splits={"train": 300, third: 200})
    config = settings()
    torch.manual_seed(0)
    regressor = new_regressor(config, store).eval()
    fit_novelty(config, regressor, store)
    splits = np.array(store.samples["split"].to_pylist())
    held_out = regressor.predict(store.images(np.flatnonzero(splits == third))).novelty
    assert np.mean(held_out > RARE) == pytest.approx(0.01, abs=0.006)
    assert np.mean(held_out > 1) == pytest.approx(0.1, abs=0.006)
    fresh, _ = blobs(300, 7)
    assert np.mean(regressor.predict(fresh).novelty > VERY_RARE) < 0.03
    noise = 0.02 * np.random.default_rng(0).normal(size=fresh.shape)
    assert np.mean(regressor.predict(fresh + 2 * noise).novelty > VERY_RARE) > 0.5


def test_without_it_nothing_is_fitted(tmp_path, settings):
    store = write_prepared(tmp_path / "prepared")
    config = settings(model={"novelty": "none"})
    regressor = new_regressor(config, store)
    fit_novelty(config, regressor, store)
    assert regressor.novelty is None
    assert regressor.predict(store.images(slice(0, 2))).novelty is None
