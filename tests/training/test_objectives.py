from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from darkarc.config import CLASSES, Config
from darkarc.data.batches import Batch, ImageSource
from darkarc.data.store import Store
from darkarc.models import Regressor
from darkarc.training import new_regressor
from darkarc.training.objectives import label_counts, objective, parts_of, target_losses, validate

Settings = Callable[..., Config]


@pytest.fixture
def regressor(prepared: Store, settings: Settings) -> Regressor:
    made = new_regressor(settings(), prepared).eval()
    for layer in (made.target_layer, made.class_layer):
        torch.nn.init.normal_(layer.weight, std=3.0)
    return made


def test_only_samples_with_the_target_are_scored(regressor: Regressor, settings: Settings) -> None:
    images = torch.randn(4, 1, 12, 12)
    truth = torch.tensor([[-23.5], [torch.nan], [-22.2], [torch.nan]])
    classes = torch.tensor([0, 1, 0, 2])
    train = settings(class_weight=0.7).train
    outputs, logits = regressor.head_outputs(images)
    losses = target_losses(regressor, outputs, truth, train)
    assert losses.shape == (4, 1)
    assert losses[[1, 3]].tolist() == [[0.0], [0.0]] and (losses[[0, 2]] != 0).all()
    expected = losses[[0, 2]].mean() + 0.7 * functional.cross_entropy(logits, classes)
    total = objective(regressor, Batch(images, classes, truth, torch.full((4, 4), torch.nan)), train)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in regressor.parameters())


def test_a_broadcast_of_shapes_is_caught(regressor: Regressor, settings: Settings) -> None:
    outputs, _ = regressor.head_outputs(torch.randn(4, 1, 12, 12))
    with pytest.raises(AssertionError):
        target_losses(regressor, outputs, torch.zeros(4), settings().train)


def test_a_batch_without_any_target_trains_the_classes_alone(
    regressor: Regressor, settings: Settings
) -> None:
    nowhere = torch.full((2, 1), torch.nan)
    batch = Batch(torch.randn(2, 1, 12, 12), torch.tensor([1, 2]), nowhere, nowhere.expand(2, 4))
    loss = objective(regressor, batch, settings().train)
    loss.backward()
    assert loss.isfinite()
    assert regressor.target_layer.weight.grad.abs().sum() == 0
    assert regressor.class_layer.weight.grad.abs().sum() > 0


def test_validation_agrees_with_the_posterior(
    regressor: Regressor, prepared: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkarc.training.objectives.VALIDATION_BATCH", 7)
    config = settings(label_sigma_dex=1e-4, class_weight=0.0)
    source = ImageSource(prepared, "validation", config.targets)
    with torch.no_grad():  # so that no class wins every image
        regressor.class_layer.bias -= regressor.head_outputs(source.resident)[1].mean(dim=0)
    metrics = validate(regressor, source, config.train)
    posterior = regressor.predict(source.resident)
    truth = source.truth[:, 0].numpy()
    axion = np.isfinite(truth)
    assert 0 < axion.sum() < len(truth)
    mae = np.abs(posterior.median - truth)[axion].mean()
    assert metrics["val_mae_dex"] == pytest.approx(mae, abs=1e-5)
    # A label of no width asks for the density at the truth.
    known = posterior[axion].log_prob(truth[axion])
    assert metrics["val_loss"] == pytest.approx(-known.mean(), abs=1e-3)
    answered = posterior.class_probability.argmax(1)
    assert len(set(answered.tolist())) > 1
    correct = answered == source.classes.numpy()
    assert metrics["val_class_accuracy"] == pytest.approx(correct.mean())
    assert len(CLASSES) == posterior.class_probability.shape[1]


def test_a_target_counts_by_its_weight_in_training_and_validation(
    regressor: Regressor, prepared: Store, settings: Settings
) -> None:
    weights = {"log10_axion_mass_ev": 3.0}
    plain, heavy = (settings(class_weight=0.0, **more) for more in ({}, {"target_weight": weights}))
    source = ImageSource(prepared, "validation", plain.targets)
    batch = source.batch(torch.arange(20))
    losses = [objective(regressor, batch, config.train).item() for config in (plain, heavy)]
    watched = [validate(regressor, source, config.train)["val_loss"] for config in (plain, heavy)]
    assert losses[1] == pytest.approx(3 * losses[0]) and watched[1] == pytest.approx(3 * watched[0])


@pytest.mark.parametrize("n", [2, 3, 5])
def test_parts_of_a_batch_sum_to_the_whole_however_its_targets_are_spread(
    regressor: Regressor, settings: Settings, n: int
) -> None:
    truth = torch.tensor([-23.5, -22.2, -23.1, torch.nan, torch.nan, torch.nan, -22.9])[:, None]
    batch = Batch(torch.randn(7, 1, 12, 12), torch.tensor([0, 0, 0, 1, 2, 1, 0]), truth, truth.repeat(1, 4))
    train = settings(class_weight=0.7).train
    whole = objective(regressor, batch, train)
    whole.backward()
    gradients = [p.grad.clone() for p in regressor.parameters()]
    regressor.zero_grad()
    parts = [objective(regressor, part, train, label_counts(batch)) for part in parts_of(batch, n)]
    assert len(parts) == n
    sum(parts).backward()
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)
    for parameter, expected in zip(regressor.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, expected, rtol=1e-3, atol=1e-5)
