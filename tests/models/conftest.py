from collections.abc import Callable
from typing import Any

import pytest

from darkarc.config import ModelConfig
from darkarc.models import Regressor, RegressorSpec

STATISTICS = {"mean": 0.4, "std": 1.3}


@pytest.fixture
def spec() -> Callable[..., RegressorSpec]:
    def make(shape: tuple[int, int] = (16, 16), targets: Any = None, **model: Any) -> RegressorSpec:
        targets = targets or {"log10_axion_mass_ev": (-24.0, -22.0)}
        section = ModelConfig(**{"width": 0.25, **model}).model_dump(mode="json")
        return RegressorSpec(targets, shape, section, STATISTICS, "test camera")

    return make


@pytest.fixture
def regressor(spec: Callable[..., RegressorSpec]) -> Callable[..., Regressor]:
    """A regressor with random last layers, so that it answers differently to different images."""

    def make(**options: Any) -> Regressor:
        import torch

        torch.manual_seed(5)
        made = Regressor(spec(**options))
        for layer in (made.target_layer, made.class_layer):
            torch.nn.init.normal_(layer.weight, std=0.5)
        return made.eval()

    return make
