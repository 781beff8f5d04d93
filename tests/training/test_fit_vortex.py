"""The vortex's weight as the stage `train` learns it: on simulated lenses, into what is saved."""

import numpy as np
import pytest
import torch

from darkarc import config
from darkarc.data.batches import BatchError, ImageSource
from darkarc.data.generate import generate
from darkarc.data.prepare import prepare
from darkarc.models import Grid, load_regressor, save_regressor
from darkarc.models.vortex_fit import VortexFit
from darkarc.training import new_regressor
from darkarc.training.recalibrate import recalibrate
from tests.training.conftest import write_prepared

BLUR_DEX = 0.01
MODEL = {"vortex_fit": True, "lens_residual": "none", "novelty": "none", "width": 0.25, "bins": 512}


class Oracle:
    """Features of a split's images: where source and vortex are, and the mass to `BLUR_DEX`."""

    def __init__(self, source: ImageSource, n_features: int) -> None:
        batch = source.batch(torch.arange(len(source)))
        generator = torch.Generator().manual_seed(len(source))

        def blurred(truth: torch.Tensor, by: float) -> torch.Tensor:
            return (truth + by * torch.randn(truth.shape, generator=generator)).nan_to_num(0)

        offset = blurred(batch.truth + 23, BLUR_DEX)
        self.images = batch.images.flatten(1)
        self.features = torch.zeros(len(source), n_features)
        self.features[:, :6] = torch.cat([blurred(batch.auxiliary, 0.04), offset, offset**2], dim=1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.features[torch.cdist(images.flatten(1), self.images).argmin(dim=1)]


@pytest.fixture(scope="module")
def settings():
    sections = {
        "simulate": {"preset": "model_iii", "noise": "physical", "n_axion": 480, "n_cdm": 20, "n_no_sub": 20},
        "prepare": {"train": 0.05, "validation": 0.05, "calibration": 0.7, "test": 0.2},
        "model": MODEL,
    }
    return config.parse(sections)


@pytest.fixture(scope="module")
def store(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    return prepare(generate(settings, folder / "raw", progress=False), folder / "prepared", settings)


@pytest.fixture(scope="module")
def regressor(settings, store):
    """Its network answers with a normal of width `BLUR_DEX` around a mass that is as far off."""
    torch.manual_seed(0)
    made = new_regressor(settings, store).eval()
    made.standardise.look = lambda images: (images.float(), None)
    grid, layer = made.grids[0], made.target_layer
    assert isinstance(grid, Grid)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, 4] = grid.offsets / BLUR_DEX**2
        layer.weight[:, 5] = -1 / (2 * BLUR_DEX**2)
        layer.bias.copy_(-grid.offsets.square() / (2 * BLUR_DEX**2))
    return made


def see(regressor, settings, store, split: str) -> ImageSource:
    source = ImageSource(store, split, settings.targets)
    regressor.backbone.forward = Oracle(source, regressor.backbone.n_features)
    return source


def test_light_particles_are_told_sharper_than_by_the_network(regressor, settings, store, tmp_path):
    source = see(regressor, settings, store, "calibration")
    logged = recalibrate(settings, regressor, store)
    assert logged["vortex_fit/gain_nats"] > 0.3
    test = see(regressor, settings, store, "test")
    light = (test.truth[:, 0] < -22.9).nonzero().squeeze(1)
    images, truth = test.batch(light).images.numpy()[:, 0], test.truth[light, 0].numpy()
    assert len(light) > 30
    fitted = regressor.predict(images, batch_size=32)
    fit, regressor.vortex_fit = regressor.vortex_fit, None
    alone = regressor.predict(images, batch_size=32)
    regressor.vortex_fit = fit
    assert np.median(np.abs(fitted.median - truth)) < 0.5 * np.median(np.abs(alone.median - truth))
    assert np.median(fitted.std) < 0.5 * np.median(alone.std)
    low, high = fitted.quantile([0.16, 0.84]).T
    assert 0.5 < np.mean((truth >= low) & (truth <= high)) < 0.88
    save_regressor(regressor, tmp_path / "saved")
    kept = load_regressor(tmp_path / "saved").state_dict()
    assert all(torch.equal(kept[name], value) for name, value in regressor.state_dict().items())
    assert len(source) > 300


def test_too_few_lenses_are_named(tmp_path):
    store = write_prepared(tmp_path / "prepared", splits={"train": 60, "validation": 20, "calibration": 100})
    settings = config.parse({"model": {"width": 0.25, "bins": 32}})
    regressor = new_regressor(settings, store).eval()
    grid = Grid(-24.0, -22.0, 32)
    form = {"preset": "model_iii", "noise": "physical", "distances": "deeplense"}
    regressor.vortex_fit = VortexFit(regressor.n_features, form, (64, 64), grid)
    with pytest.raises(BatchError, match=r"found 0: raise prepare\.calibration, or set model\.vortex_fit"):
        recalibrate(settings, regressor, store)
