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


def test_cosine_with_warm_up_is_torchs() -> None:
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

    settings = TrainConfig(learning_rate=2.0, policy="cosine", warmup=0.2)
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    rise = LinearLR(optimiser, 1 / 25, total_iters=9)
    fall = CosineAnnealingLR(optimiser, 40, eta_min=2.0 / 2000)
    schedule = SequentialLR(optimiser, [rise, fall], milestones=[9])
    for step in range(50):
        expected = optimiser.param_groups[0]["lr"]
        assert learning_rate(settings, step, 50, Plateau()) == pytest.approx(expected, rel=1e-6), step
        optimiser.step()
        schedule.step()


def test_cyclic_is_torchs() -> None:
    settings = TrainConfig(learning_rate=2.0, policy="cyclic", cycles=5)
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    theirs = torch.optim.lr_scheduler.CyclicLR(optimiser, 2.0 / 25, 2.0, step_size_up=5, cycle_momentum=False)
    for step in range(50):
        expected = optimiser.param_groups[0]["lr"]
        assert learning_rate(settings, step, 50, Plateau()) == pytest.approx(expected, rel=1e-9)
        optimiser.step()
        theirs.step()


def test_constant_is_constant() -> None:
    settings = TrainConfig(learning_rate=0.3, policy="constant")
    assert {learning_rate(settings, step, 9, Plateau(cuts=2)) for step in range(9)} == {0.3}


def test_muon_orthogonalises_kernels_as_torchs_does_matrices() -> None:
    """A kernel's step is that of torch's Muon on the kernel as a matrix; what is thinner goes by NAdamW."""
    from timm.optim import NAdamW

    torch.manual_seed(3)
    kernel, bias = nn.Parameter(torch.randn(16, 8, 3, 3)), nn.Parameter(torch.randn(16))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    settings = TrainConfig(optimiser="muon", learning_rate=0.1, weight_decay=0.2, momentum=0.8)
    ours = build_optimiser(nn.ParameterList([kernel, bias]), settings)
    other = nn.Parameter(bias.detach().clone())
    adamw = NAdamW([other], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    theirs = torch.optim.Muon(
        [matrix], lr=0.1, weight_decay=0.2, momentum=0.8, nesterov=True, adjust_lr_fn="match_rms_adamw",
        ns_coefficients=(3.4445, -4.7750, 2.0315),
    )  # fmt: skip
    before = kernel.detach().flatten(1).clone()
    for _ in range(3):
        kernel.grad, bias.grad = torch.randn_like(kernel), torch.randn_like(bias)
        matrix.grad, other.grad = kernel.grad.flatten(1), bias.grad.clone()
        for optimiser in (ours, theirs, adamw):
            optimiser.step()
    assert torch.allclose(bias, other)
    # Newton and Schulz's coefficients differ, and five steps of either leave singular values near 1.
    steps = kernel.detach().flatten(1) - before, matrix.detach() - before
    assert nn.functional.cosine_similarity(steps[0].flatten(), steps[1].flatten(), dim=0) > 0.97
    assert steps[0].norm() / steps[1].norm() == pytest.approx(1.0, abs=0.15)


def test_lion_follows_its_formula() -> None:
    """Algorithm 2 of arXiv:2302.06675, in its own words, with betas that differ from each other."""
    torch.manual_seed(4)
    weight = nn.Parameter(torch.randn(4, 3))
    settings = TrainConfig(optimiser="lion", learning_rate=0.01, weight_decay=0.5, betas=(0.6, 0.9))
    optimiser = build_optimiser(nn.ParameterList([weight]), settings)
    theta, m = weight.detach().clone(), torch.zeros(4, 3)
    turned = 0
    for _ in range(5):
        weight.grad = g = torch.randn(4, 3)
        optimiser.step()
        c = 0.6 * m + 0.4 * g
        theta = theta - 0.01 * (c.sign() + 0.5 * theta)
        turned += int((c.sign() != g.sign()).sum())
        m = 0.9 * m + 0.1 * g
        assert torch.allclose(weight.detach(), theta, atol=1e-6)
    assert turned > 0, "momentum has decided a sign"


def test_lamb_and_sgd_follow_their_formulas() -> None:
    """LAMB (arXiv:1904.00962, algorithm 2): a weight moves by the rate times its own norm, whatever the
    gradient's size; SGD with Nesterov's momentum is torch's."""
    start = torch.full((4, 4), 0.5)
    for scale in (1.0, 1e4):
        weight = nn.Parameter(start.clone())
        settings = TrainConfig(optimiser="lamb", learning_rate=0.01, weight_decay=1e-12)
        optimiser = build_optimiser(nn.ParameterList([weight]), settings)
        weight.grad = scale * torch.ones_like(weight)
        optimiser.step()
        assert (weight - start).norm().item() == pytest.approx(0.01 * start.norm().item(), rel=1e-3)
    weight = nn.Parameter(start.clone())
    settings = TrainConfig(optimiser="sgd", learning_rate=0.1, weight_decay=0.0, momentum=0.5)
    optimiser = build_optimiser(nn.ParameterList([weight]), settings)
    weight.grad = torch.ones_like(weight)
    optimiser.step()  # buffer 1, step 1 + 0.5
    optimiser.step()  # buffer 1.5, step 1 + 0.75
    assert weight.detach() == pytest.approx(start - 0.1 * (1.5 + 1.75))


def test_lamb_does_not_clip_gradients_once_more() -> None:
    """Two steps of algorithm 2 of arXiv:1904.00962 with gradients of very different size, both above 1."""
    torch.manual_seed(5)
    weight = nn.Parameter(torch.randn(4, 3))
    settings = TrainConfig(optimiser="lamb", learning_rate=0.01, weight_decay=1e-12, betas=(0.6, 0.9))
    optimiser = build_optimiser(nn.ParameterList([weight]), settings)
    theta, m, v = weight.detach().clone(), torch.zeros(4, 3), torch.zeros(4, 3)
    for step, size in enumerate((100.0, 5.0), start=1):
        weight.grad = g = size * torch.randn(4, 3)
        optimiser.step()
        m, v = 0.6 * m + 0.4 * g, 0.9 * v + 0.1 * g**2
        r = (m / (1 - 0.6**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
        theta = theta - 0.01 * theta.norm() / r.norm() * r
        assert torch.allclose(weight.detach(), theta, atol=1e-6), step
