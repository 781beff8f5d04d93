"""A small untrained regressor whose answers depend on the image, and simulated lenses to hold it against."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkarc.config import CLASSES, DEFAULT_TARGET, ModelConfig
from darkarc.data.prepare import REFERENCE_QUANTILES
from darkarc.data.quality import image_statistics
from darkarc.models import Regressor, RegressorSpec
from darkarc.serving import export_onnx
from darkarc.simulation import draw_scenes, get_preset, render

TARGETS = {DEFAULT_TARGET: (-24.0, -22.0)}


def simulated(preset: str, noise: str, n: int, seed: int) -> np.ndarray:
    """(n, H, W) float32 images, the classes in turn."""
    images = []
    for k, name in enumerate(CLASSES):
        indices = np.arange(len(range(k, n, len(CLASSES))))
        scenes = draw_scenes(preset, name, seed, indices)
        images.append(render(get_preset(preset), scenes, noise=noise, seed=seed, indices=indices).numpy())
    mixed = np.empty((n, *images[0].shape[1:]), np.float32)
    for k, of_class in enumerate(images):
        mixed[k :: len(CLASSES)] = of_class
    return mixed


def fitted_statistics(images: np.ndarray) -> dict[str, Any]:
    """What `prepare` writes into statistics.json, of these images."""
    measured = image_statistics(images)
    reference = {
        name: {key: float(np.quantile(values, q)) for key, q in REFERENCE_QUANTILES.items()}
        for name, values in measured.items()
    }
    return {"mean": float(images.mean()), "std": float(images.std()), "reference": reference}


@pytest.fixture(scope="session", name="simulated")
def _simulated() -> Callable[..., np.ndarray]:
    return simulated


@pytest.fixture(scope="session", name="fitted_statistics")
def _fitted_statistics() -> Callable[[np.ndarray], dict[str, Any]]:
    return fitted_statistics


@pytest.fixture(scope="session")
def train_images() -> np.ndarray:
    return simulated("model_iii", "physical", 1500, seed=0)


@pytest.fixture(scope="session")
def lenses() -> np.ndarray:
    """Model III images with noise that no statistic was fitted on."""
    return simulated("model_iii", "physical", 900, seed=1)


@pytest.fixture(scope="session")
def statistics(train_images: np.ndarray) -> dict[str, Any]:
    return fitted_statistics(train_images)


MakeRegressor = Callable[..., Regressor]


@pytest.fixture(scope="session")
def make_regressor(statistics: dict[str, Any], train_images: np.ndarray) -> MakeRegressor:
    def make(
        targets: dict[str, tuple[float, float]] | None = None,
        seed: int = 0,
        form: dict[str, str] | None = None,
        **model: Any,
    ) -> Regressor:
        section = ModelConfig(**{"width": 0.25, "bins": 64, **model}).model_dump()
        spec = RegressorSpec(targets or TARGETS, (64, 64), section, statistics, "model_iii", form)
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            regressor = Regressor(spec)
        with torch.no_grad():
            # Everything that starts at nought or one would hide a mistake in its export.
            for module in regressor.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.1, generator=generator)
                    module.momentum = None  # the running statistics become those of the images below
            regressor.train()
            regressor.backbone(regressor.standardise(torch.from_numpy(train_images[:32, None])))
            for layer in (regressor.target_layer, regressor.class_layer):
                layer.weight.normal_(0, 1, generator=generator)
                layer.bias.normal_(0, 1, generator=generator)
        return regressor.eval()

    return make


@pytest.fixture(scope="session")
def regressor(make_regressor: MakeRegressor) -> Regressor:
    return make_regressor()


@pytest.fixture(scope="session")
def wary(make_regressor: MakeRegressor, train_images: np.ndarray) -> Regressor:
    """The regressor with a novelty fitted on the training images."""
    regressor = make_regressor(bins=32)
    assert regressor.novelty is not None
    seen = []
    for part in (train_images[:800], train_images[800:]):
        images = torch.from_numpy(part[:, None])
        with torch.inference_mode():
            seen.append(regressor.novelty.measure(images, *regressor.seen(images)))
    regressor.novelty.fit(*seen)
    return regressor


@pytest.fixture(scope="session")
def onnx_path(regressor: Regressor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(regressor, tmp_path_factory.mktemp("export") / "model.onnx")
