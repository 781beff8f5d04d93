"""Label smoothing, mixup, weights of targets, dropout: each changes training, none touches evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from darkarc.config import OBJECTIVE_HEADS, Config
from darkarc.data.batches import Batch, ImageSource
from darkarc.data.store import Store
from darkarc.models import Regressor
from darkarc.tracking.tracker import NullTracker
from darkarc.training import TrainResult, new_regressor, train
from darkarc.training.objectives import (
    label_counts,
    mixed,
    objective,
    smoothed_losses,
    target_losses,
    target_nll,
    validate,
)
from darkarc.training.recalibrate import recalibrate
from tests.training.conftest import write_prepared

Settings = Callable[..., Config]


def run(config: Config, prepared: Store, workdir: Path) -> TrainResult:
    return train(config, prepared, workdir=workdir, tracker=NullTracker(), progress=False)


def shaken(config: Config, prepared: Store) -> Regressor:
    """A regressor that answers differently to different images."""
    torch.manual_seed(3)
    regressor = new_regressor(config, prepared)
    for layer in (regressor.target_layer, regressor.class_layer):
        nn.init.normal_(layer.weight, std=2.0)
    return regressor.eval()


PLAIN: dict[str, Any] = {"dropout": 0.0, "stochastic_depth": 0.0}
POINT = {"model": PLAIN | {"head": "point"}, "objective": "huber"}
CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"label_smoothing": 0.2}),
    ({}, {"mixup": 0.5}),
    ({}, {"objective": "crps"}),
    ({}, {"target_weight": {"log10_axion_mass_ev": 3.0}}),
    ({}, {"model": PLAIN | {"dropout": 0.5}}),
    ({}, {"model": PLAIN | {"stochastic_depth": 0.5}}),
    ({}, {"model": PLAIN | {"drop_block": 0.3}}),
    ({}, {"model": PLAIN | {"norm": "group"}}),
    ({"model": PLAIN | {"head": "gaussian"}}, {"objective": "beta_nll"}),
    ({"model": PLAIN | {"head": "gaussian"}, "objective": "beta_nll"}, {"beta": 0.9}),
    (POINT, {"huber_delta": 0.5}),
    (POINT, {"objective": "mae"}),
    ({"model": PLAIN | {"head": "mixture"}}, {"model": PLAIN | {"head": "mixture", "components": 3}}),
    ({"model": PLAIN | {"head": "spline"}}, {"model": PLAIN | {"head": "spline", "knots": 5}}),
    (
        {"model": PLAIN | {"head": "quantile"}, "objective": "pinball"},
        {"model": PLAIN | {"head": "quantile", "quantiles": 9}},
    ),
]


@pytest.mark.parametrize(("base", "change"), CHANGES, ids=lambda value: str(value)[:60])
def test_each_key_changes_the_training(
    prepared: Store, settings: Settings, tmp_path: Path, base: dict[str, Any], change: dict[str, Any]
) -> None:
    base = {"epochs": 1, "model": PLAIN} | base
    plain, changed = (run(settings(**one), prepared, tmp_path) for one in (base, base | change))
    assert plain.digest != changed.digest
    states = [result.regressor.backbone.state_dict() for result in (plain, changed)]
    weights = dict(plain.regressor.backbone.named_parameters()).keys()
    assert any(not torch.equal(states[0][name], states[1][name]) for name in weights)


@pytest.mark.parametrize("change", [{"label_smoothing": 0.3}, {"mixup": 0.5}])
def test_in_evaluation_nothing_is_smoothed_or_mixed(
    prepared: Store, settings: Settings, change: dict[str, Any]
) -> None:
    plain, changed = settings(model=PLAIN), settings(model=PLAIN, **change)
    regressor = shaken(plain, prepared)
    source = ImageSource(prepared, "validation", plain.targets)
    assert validate(regressor, source, plain.train) == validate(regressor, source, changed.train)
    batch = source.batch(torch.arange(20))
    losses = [objective(regressor, batch, config.train).item() for config in (plain, changed)]
    assert losses[0] == losses[1]
    for module in regressor.modules():
        if not isinstance(module, nn.BatchNorm2d):
            module.training = True  # of training mode, all but the batch statistics
    losses = [objective(regressor, batch, config.train).item() for config in (plain, changed)]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize(("objective_name", "head"), [(o, h[0]) for o, h in OBJECTIVE_HEADS.items()])
def test_every_objective_learns(
    prepared: Store, settings: Settings, tmp_path: Path, objective_name: str, head: str
) -> None:
    model = PLAIN | {"head": head, "bins": 32}
    config = settings(epochs=4, learning_rate=1e-2, model=model, objective=objective_name)
    history = run(config, prepared, tmp_path).history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert all(np.isfinite(value) for row in history for value in row.values())


def test_mixup_mixes_images_and_losses_as_seed_and_step_say(prepared: Store, settings: Settings) -> None:
    config = settings(model=PLAIN, mixup=0.7)
    source = ImageSource(prepared, "train", config.targets)
    batch = source.batch(torch.arange(12))
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        draws.append(mixed(batch, config.train))
    images, labels = draws[0]
    assert torch.equal(images, draws[1][0]) and not torch.equal(images, draws[2][0])
    (share, own), (rest, other) = labels
    assert 0 < share < 1 and share + rest == 1 and own is batch
    assert sorted(other.classes.tolist()) == sorted(batch.classes.tolist())
    assert torch.allclose(images, share * batch.images + rest * other.images)
    regressor = shaken(config, prepared)
    for module in regressor.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    torch.manual_seed(5)
    found = objective(regressor, batch, config.train)
    outputs, logits = regressor.head_outputs(images)
    expected = torch.zeros(())
    known = batch.truth.isfinite().sum()
    for weight, part in labels:
        loss = target_nll(regressor, outputs, part.truth, config.train).sum() / known
        class_loss = functional.cross_entropy(logits, part.classes)
        expected = expected + weight * (loss + config.train.class_weight * class_loss)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_mixup_of_a_histogram_is_the_loss_of_the_mixed_histogram(prepared: Store, settings: Settings) -> None:
    config = settings(model=PLAIN)
    regressor = shaken(config, prepared)
    images, truth = torch.randn(6, 1, 12, 12), torch.linspace(-23.9, -22.1, 6)[:, None]
    outputs, _ = regressor.head_outputs(images)
    (grid,) = regressor.grids
    sigma = config.train.label_sigma_dex
    labels = [grid.soft_histogram(column[:, 0], sigma) for column in (truth, truth.flip(0))]
    mixture = 0.3 * labels[0] + 0.7 * labels[1]
    expected = functional.cross_entropy(outputs[:, 0], mixture, reduction="none") + np.log(grid.width)
    losses = [target_losses(regressor, outputs, column, config.train) for column in (truth, truth.flip(0))]
    assert torch.allclose((0.3 * losses[0] + 0.7 * losses[1])[:, 0], expected, rtol=1e-5)


def test_a_smoothed_label_is_mixed_with_its_share_of_the_prior(prepared: Store, settings: Settings) -> None:
    config = settings(model=PLAIN, label_smoothing=0.1)
    regressor = shaken(config, prepared)
    truth = torch.linspace(-23.9, -22.1, 6)[:, None]
    outputs, _ = regressor.head_outputs(torch.randn(6, 1, 12, 12))
    (grid,) = regressor.grids
    label = grid.soft_histogram(truth[:, 0], config.train.label_sigma_dex)
    mixture = 0.9 * label + 0.1 / grid.bins
    expected = functional.cross_entropy(outputs[:, 0], mixture, reduction="none") + np.log(grid.width)
    found = smoothed_losses(regressor, outputs, truth, config.train)
    assert torch.allclose(found[:, 0], expected, rtol=1e-5)


def test_the_shares_of_mixup_are_beta_distributed(settings: Settings) -> None:
    from scipy.stats import beta, kstest

    nothing = torch.zeros(2, 1)
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), nothing, nothing)
    for a in (0.2, 2.0):
        settings_now = settings(mixup=a).train
        shares = []
        for step in range(150):
            torch.manual_seed(step)
            shares.append(mixed(batch, settings_now)[1][0][0])
        assert kstest(shares, beta(a, a).cdf).pvalue > 1e-3


def test_parts_of_a_batch_sum_to_the_whole(prepared: Store, settings: Settings) -> None:
    config = settings(model=PLAIN, auxiliary_weight=0.5)
    regressor = shaken(config, prepared)
    regressor.attach_auxiliary(4)
    batch = ImageSource(prepared, "train", config.targets).batch(torch.arange(20))
    batch = batch._replace(auxiliary=torch.randn(20, 4))
    whole = objective(regressor, batch, config.train)
    counts = label_counts(batch)
    parts = [
        Batch(*(column[rows] for column in batch)) for rows in (slice(0, 5), slice(5, 13), slice(13, 20))
    ]
    total = sum(objective(regressor, part, config.train, counts).item() for part in parts)
    assert total == pytest.approx(whole.item(), rel=1e-5)


def test_a_point_loss_alone_moves_the_estimate_and_the_likelihood_the_width(
    prepared: Store, settings: Settings
) -> None:
    config = settings(**POINT, class_weight=0.0)
    regressor = shaken(config, prepared)
    batch = ImageSource(prepared, "train", config.targets).batch(torch.arange(30))
    loss = objective(regressor, batch, config.train)
    outputs, _ = regressor.head_outputs(batch.images)
    known = batch.truth[:, 0].isfinite()
    estimate = regressor.head.estimate(outputs[:, 0], regressor.grids[0])[known]
    expected = functional.smooth_l1_loss(estimate, batch.truth[known, 0], beta=config.train.huber_delta)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    slopes = [p.grad.clone() for p in regressor.parameters() if p.grad is not None]
    names = [name for name, p in regressor.named_parameters() if p.grad is not None]
    regressor.zero_grad()
    expected.backward()
    for name, slope in zip(names, slopes, strict=True):
        alone = regressor.get_parameter(name).grad
        if name.startswith("target_layer"):
            assert torch.allclose(slope[0], alone[0], rtol=1e-4, atol=1e-7)
            assert (slope[1] != 0).any() and (alone[1] == 0).all()
        elif not name.startswith("class_layer"):
            assert torch.allclose(slope, alone, rtol=1e-3, atol=1e-6), name


def test_a_regression_by_a_point_loss_has_a_posterior_that_the_calibration_split_mends(
    settings: Settings, tmp_path: Path
) -> None:
    splits = {"train": 70, "validation": 30, "calibration": 200, "test": 200}
    prepared = write_prepared(tmp_path / "prepared", splits=splits)
    model = PLAIN | {"head": "point", "bins": 64, "recalibration": "conformal"}
    config = settings(epochs=15, learning_rate=1e-2, model=model, objective="mse")
    regressor = run(config, prepared, tmp_path).regressor
    source = ImageSource(prepared, "test", config.targets)
    truth = source.truth[:, 0].numpy()
    axion = np.isfinite(truth)
    outputs, _ = regressor.head_outputs(source.resident)
    estimate = regressor.head.estimate(outputs[:, 0], regressor.grids[0]).detach().numpy()
    posterior = regressor.predict(source.resident)
    assert posterior.median == pytest.approx(np.clip(estimate, -24.0, -22.0), abs=2.0 / 64)
    assert np.abs(posterior.median - truth)[axion].mean() < 0.35  # a constant guess scores 0.5
    recalibrate(config, regressor, prepared)
    mended = regressor.predict(source.resident)
    low, high = mended.interval(0.68)[axion].T
    inside = ((truth[axion] > low) & (truth[axion] < high)).mean()
    assert inside == pytest.approx(0.68, abs=0.15)  # 3 deviations of 120 truths, twice
