"""Policies against torch's own schedulers."""

import pytest
import torch
from torch import nn

from darkarc.config import TrainConfig
from darkarc.training.optimisers import Plateau, build_optimiser, learning_rate


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_one_cycle_is_torchs(warmup: float) -> None:
    settings = TrainConfig(learning_rate=3e-3, warmup=warmup)
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-3, total_steps=50, pct_start=warmup or 1e-9, div_factor=25, final_div_factor=80
    )
    for step in range(50):
        if warmup or step > 0:
            expected = optimiser.param_groups[0]["lr"]
            assert learning_rate(settings, step, 50, Plateau()) == pytest.approx(
                expected, rel=1e-9 if warmup else 0.1
            )
        optimiser.step()
        if step < 49:
            schedule.step()
    assert learning_rate(settings, 49, 50, Plateau()) == pytest.approx(3e-3 / 2000)


def test_reduce_on_plateau_is_torchs() -> None:
    settings = TrainConfig(learning_rate=1.0, policy="plateau", plateau_factor=0.5, plateau_patience=2)
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=2, threshold=0)
    ours = Plateau()
    rates = []
    for val_loss in [5, 4, 4, 4, 4, 3, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 2, 1]:
        theirs.step(val_loss)
        ours.observe(val_loss, settings.plateau_patience)
        rates.append(learning_rate(settings, 0, 1, ours))
        assert rates[-1] == pytest.approx(optimiser.param_groups[0]["lr"])
    assert len(set(rates)) == 4


def test_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimiser = build_optimiser(model, TrainConfig(weight_decay=0.5, learning_rate=0.1))
    assert isinstance(optimiser, torch.optim.AdamW)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for old, new in zip(before, model.parameters(), strict=True):
        factor = 1 - 0.1 * 0.5 if old.ndim > 1 else 1.0
        assert new.detach() == pytest.approx(old * factor)
