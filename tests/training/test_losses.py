"""Objectives against closed forms, torch and numerical integration."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.nn import functional

from darkarc.config import OBJECTIVE_HEADS, Config, ConfigError, ModelConfig, TrainConfig, parse
from darkarc.models import HEADS, Grid, Head
from darkarc.training.losses import LOSSES, finish, prior_cross_entropy

LOW, HIGH = -24.0, -22.0
PAIRS = [(objective, head) for objective, heads in OBJECTIVE_HEADS.items() for head in heads]


@dataclass(frozen=True)
class Case:
    head: Head
    outputs: torch.Tensor
    truth: torch.Tensor
    grid: Grid

    def loss(self, objective: str, **train: float) -> torch.Tensor:
        settings = TrainConfig(objective=objective, **train)
        return LOSSES[objective](self.head, self.outputs, self.truth, self.grid, settings)


def case(head: str, bins: int = 64, n: int = 7, scale: float = 1.0) -> Case:
    generator = torch.Generator().manual_seed(3)
    made = HEADS[head](ModelConfig(head=head, bins=bins))
    outputs = (scale * torch.randn(n, made.n_outputs, generator=generator)).requires_grad_()
    truth = torch.tensor(np.random.default_rng(0).uniform(LOW, HIGH, n), dtype=torch.float32)
    return Case(made, outputs, truth, Grid(LOW, HIGH, bins))


def test_every_objective_has_a_loss_and_every_head_an_objective() -> None:
    assert set(LOSSES) == set(OBJECTIVE_HEADS)
    assert {head for _, head in PAIRS} == set(HEADS)


@pytest.mark.parametrize(("objective", "head"), PAIRS)
def test_losses_and_slopes_are_finite_at_extremes(objective: str, head: str) -> None:
    for scale in (1.0, 1e3):
        made = case(head, scale=scale)
        made.truth[:2] = torch.tensor([LOW, HIGH])
        loss = made.loss(objective)
        assert loss.shape == made.truth.shape and loss.isfinite().all()
        finish(objective, loss.mean()).backward()
        assert made.outputs.grad.isfinite().all() and made.outputs.grad.abs().sum() > 0


@pytest.mark.parametrize("head", OBJECTIVE_HEADS["crps"])
def test_crps_is_the_integral(head: str) -> None:
    made = case(head, bins=16)
    score = made.loss("crps")
    probability = made.head.logits(made.outputs, made.grid).softmax(1).detach().numpy()
    edges = made.grid.edges.numpy()
    for n, truth in enumerate(made.truth.tolist()):
        above = np.concatenate([[0], np.cumsum(probability[n])])

        def square(x: float, above: np.ndarray = above, truth: float = truth) -> float:
            return (np.interp(x, edges, above) - (x >= truth)) ** 2

        expected, _ = quad(square, LOW, HIGH, points=[*edges[1:-1], truth], limit=200)
        assert score[n].item() == pytest.approx(expected, rel=1e-4)


def test_crps_of_a_sharp_answer_is_the_distance() -> None:
    made = case("binned", bins=256)
    outputs = torch.full_like(made.outputs, -80.0)
    outputs[:, 100] = 80.0
    score = Case(made.head, outputs, made.truth, made.grid).loss("crps")
    distance = (made.truth - made.grid.centres[100]).abs()
    assert score.numpy() == pytest.approx(distance.numpy(), abs=made.grid.width)


def test_crps_of_a_gaussian_is_the_closed_form() -> None:
    from scipy.stats import norm

    made = case("gaussian", bins=512)
    outputs = torch.tensor([[0.02, -4.5]])
    mean, sigma = (float(x) for x in made.head.mean_and_sigma(outputs, made.grid))
    truth = -23.05
    z = (truth - mean) / sigma
    # Gneiting & Raftery 2007, eq. 21; the cut to the prior is 20 deviations away.
    expected = sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))
    score = Case(made.head, outputs, torch.tensor([truth]), made.grid).loss("crps")
    assert score.item() == pytest.approx(expected, rel=1e-3)


def test_beta_nll_is_seitzers_and_its_ends_are_nll_and_mse() -> None:
    made = case("gaussian", bins=256)
    mean, sigma = made.head.mean_and_sigma(made.outputs, made.grid)
    plain = made.loss("nll")
    for beta in (0.0, 0.3, 1.0):
        expected = (sigma.detach().squeeze(1) / (HIGH - LOW)) ** (2 * beta) * plain
        assert torch.allclose(made.loss("beta_nll", beta=beta), expected)

    # A narrow answer in the middle of the range, where the cut does not show.
    outputs = torch.tensor([[0.01, -5.0], [-0.02, -4.0]], requires_grad=True)
    truth = torch.tensor([-23.1, -22.8])
    inside = Case(made.head, outputs, truth, made.grid)
    inside.loss("beta_nll", beta=1.0).sum().backward()
    mean, sigma = (x.squeeze(1).detach() for x in made.head.mean_and_sigma(outputs, made.grid))
    span = HIGH - LOW
    # d/do of ((y - mean) / span)^2 / 2 with mean = centre + span o: what mse does, whatever the width.
    assert outputs.grad[:, 0].numpy() == pytest.approx(((mean - truth) / span).numpy(), rel=1e-3)
    # The width's slope is that of nll, times the weight.
    slope = outputs.grad[:, 1].clone()
    outputs.grad = None
    inside.loss("nll").sum().backward()
    assert slope.numpy() == pytest.approx(((sigma / span) ** 2 * outputs.grad[:, 1]).numpy(), rel=1e-4)


def test_pinball_is_scikit_learns() -> None:
    from sklearn.metrics import mean_pinball_loss

    made = case("quantile")
    quantiles = made.head.quantiles(made.outputs, made.grid).detach().double().numpy()
    expected = np.mean(
        [
            mean_pinball_loss(made.truth.numpy(), quantiles[:, q], alpha=level)
            for q, level in enumerate(made.head.levels.tolist())
        ]
    )
    assert made.loss("pinball").mean().item() == pytest.approx(expected, rel=1e-5)


def test_pinball_finds_the_quantiles_of_what_it_sees() -> None:
    made = HEADS["quantile"](ModelConfig(head="quantile", quantiles=9))
    truth = torch.tensor(np.random.default_rng(1).triangular(-23.8, -23.5, -22.5, 2000), dtype=torch.float32)
    outputs = torch.zeros(1, made.n_outputs, requires_grad=True)
    optimiser = torch.optim.Adam([outputs], lr=0.05)
    grid = Grid(LOW, HIGH, 64)
    for _ in range(400):
        optimiser.zero_grad()
        repeated = outputs.expand(len(truth), -1)
        LOSSES["pinball"](made, repeated, truth, grid, TrainConfig(objective="pinball")).mean().backward()
        optimiser.step()
    found = made.quantiles(outputs, grid)[0].detach().numpy()
    assert found == pytest.approx(np.quantile(truth.numpy(), made.levels.numpy()), abs=0.02)


def test_point_losses_are_torchs() -> None:
    made = case("point")
    estimate = made.head.estimate(made.outputs, made.grid)
    expected = {
        "mse": functional.mse_loss(estimate, made.truth),
        "mae": functional.l1_loss(estimate, made.truth),
        "huber": functional.huber_loss(estimate, made.truth, delta=0.3) / 0.3,
        "rmse": functional.mse_loss(estimate, made.truth).sqrt(),
    }
    for objective, value in expected.items():
        found = finish(objective, made.loss(objective, huber_delta=0.3).mean())
        assert found.item() == pytest.approx(value.item(), rel=1e-6)


def test_rmse_has_a_slope_where_every_error_is_nought() -> None:
    made = case("point")
    truth = made.head.estimate(made.outputs, made.grid).detach()
    perfect = Case(made.head, made.outputs, truth, made.grid)
    finish("rmse", perfect.loss("rmse").mean()).backward()
    assert made.outputs.grad.isfinite().all()


@pytest.mark.parametrize("head", ["binned", "mixture"])
def test_smoothing_is_the_cross_entropy_of_the_mixed_histogram(head: str) -> None:
    made = case(head)
    label = made.grid.soft_histogram(made.truth, 0.05)
    mixed = 0.9 * label + 0.1 / label.shape[1]
    logits = made.head.logits(made.outputs, made.grid)
    expected = functional.cross_entropy(logits, mixed, reduction="none") + math.log(made.grid.width)
    prior = prior_cross_entropy(made.head, made.outputs, made.grid)
    found = 0.9 * made.loss("nll", label_sigma_dex=0.05) + 0.1 * prior
    assert torch.allclose(found, expected, rtol=1e-5)


def settings(head: str, **train: object) -> Config:
    return parse({"model": {"head": head}, "train": train})


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("objective", list(OBJECTIVE_HEADS))
def test_pairs_that_do_not_fit_are_refused_with_the_way_out(objective: str, head: str) -> None:
    if (objective, head) in PAIRS:
        assert settings(head, objective=objective).train.objective == objective
        return
    with pytest.raises(ConfigError) as caught:
        settings(head, objective=objective)
    message = str(caught.value)
    assert f"train.objective: {objective} does not train model.head: {head}" in message
    assert OBJECTIVE_HEADS[objective][0] in message


@pytest.mark.parametrize(
    ("head", "train", "said"),
    [
        ("gaussian", {"objective": "crps", "label_smoothing": 0.1}, "crps has no label to smooth"),
        ("point", {"objective": "rmse", "accumulate": 2}, "set accumulate to 1, or objective to mse"),
        ("binned", {"target_weight": {"n_subhalos": 2.0}}, "no such target here; targets has log10_axion"),
        ("binned", {"target_weight": {"log10_axion_mass_ev": -1.0}}, "set it to 0 or more"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(head: str, train: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(head, **train)
