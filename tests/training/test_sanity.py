"""A long training first learns a few images by heart, or says why it cannot."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from darkarc.config import Config
from darkarc.data.batches import Batch
from darkarc.data.store import Store
from darkarc.models import Regressor
from darkarc.tracking.tracker import NullTracker
from darkarc.training import TrainingError, new_regressor, sanity, train

N = 16


@pytest.fixture
def base(settings: Callable[..., Config]) -> Config:
    return settings(epochs=1)


@pytest.fixture
def regressor(prepared: Store, base: Config) -> Regressor:
    torch.manual_seed(0)
    return new_regressor(base, prepared)


def batch(prepared: Store, labels: str = "own") -> Batch:
    from darkarc.data.batches import ImageSource

    source = ImageSource(prepared, "train", {"log10_axion_mass_ev": (-24.0, -22.0)})
    axion = (source.classes == 0).nonzero()[:N, 0]
    made = source.batch(axion)
    return made if labels == "own" else made._replace(truth=torch.full_like(made.truth, torch.nan))


def test_a_sound_model_passes_and_stays_as_it_was(
    prepared: Store, base: Config, regressor: Regressor
) -> None:
    before = {name: value.clone() for name, value in regressor.state_dict().items()}
    sanity.learn_one_batch(regressor, batch(prepared), base.train)
    after = regressor.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_dead_backbone_is_named(prepared: Store, base: Config, regressor: Regressor) -> None:
    class Dead(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), regressor.target_layer.in_features)

    regressor.backbone = Dead()
    regressor.target_layer.bias.requires_grad_(False)
    regressor.class_layer.bias.requires_grad_(False)
    with pytest.raises(TrainingError, match=r"learnt by heart.*train\.sanity"):
        sanity.learn_one_batch(regressor, batch(prepared), base.train)


def test_nothing_to_train_is_named(prepared: Store, base: Config, regressor: Regressor) -> None:
    with pytest.raises(TrainingError, match="no parameter asks for a gradient"):
        sanity.learn_one_batch(regressor.requires_grad_(False), batch(prepared), base.train)


@pytest.mark.parametrize("wanted", [True, False])
def test_it_runs_before_long_trainings_only_if_asked(
    prepared: Store,
    settings: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: bool,
) -> None:
    asked = []
    monkeypatch.setattr("darkarc.training.engine.LONG_TRAINING_STEPS", 1)
    monkeypatch.setattr("darkarc.training.engine.learn_one_batch", lambda *_: asked.append(1))
    config = settings(sanity=wanted, epochs=1)
    train(config, prepared, workdir=tmp_path, tracker=NullTracker(), progress=False)
    train(config, prepared, workdir=tmp_path, tracker=NullTracker(), progress=False)
    assert len(asked) == wanted, "once, and not again when the training goes on"
