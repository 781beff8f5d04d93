"""Heads against scipy's distributions, and what every head promises."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from darkarc import config
from darkarc.config import ModelConfig
from darkarc.models import HEADS, Grid, Head
from darkarc.models.heads import BinnedHead

LOW, HIGH, BINS = -24.0, -22.0, 256


def truncated(mean: float, sigma: float):
    return truncnorm((LOW - mean) / sigma, (HIGH - mean) / sigma, loc=mean, scale=sigma)


def head_of(name: str, **model: int) -> Head:
    return HEADS[name](ModelConfig(head=name, bins=BINS, **model))


def density(head: Head, outputs: torch.Tensor, grid: Grid) -> np.ndarray:
    return head.logits(outputs, grid).softmax(1).detach().numpy() / grid.width


@pytest.fixture
def grid() -> Grid:
    return Grid(LOW, HIGH, BINS)


@pytest.mark.parametrize("truth", [-24.0, -23.99, -23.1234, -22.004, -22.0])
@pytest.mark.parametrize("sigma", [0.003, 0.02, 0.3])
def test_soft_histogram_is_exact_up_to_the_edges(grid: Grid, truth: float, sigma: float) -> None:
    histogram = grid.soft_histogram(torch.tensor([truth], dtype=torch.float64), sigma)[0].numpy()
    expected = np.diff(truncated(truth, sigma).cdf(grid.edges.numpy()))
    assert histogram == pytest.approx(expected, abs=2e-7)
    assert histogram.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", list(HEADS))
def test_zero_outputs_score_about_the_prior(grid: Grid, name: str) -> None:
    head = head_of(name)
    truth = torch.linspace(LOW, HIGH, 50)
    loss = head.loss(torch.zeros(50, head.n_outputs), truth, grid, 0.02)
    assert loss.mean().item() == pytest.approx(math.log(HIGH - LOW), abs=0.05)


@pytest.mark.parametrize("name", list(HEADS))
def test_losses_and_slopes_are_finite_whatever_the_network_says(grid: Grid, name: str) -> None:
    head = head_of(name)
    generator = torch.Generator().manual_seed(0)
    outputs = 300 * torch.randn(64, head.n_outputs, generator=generator)
    outputs[0], outputs[1] = 1e4, -1e4
    outputs.requires_grad_()
    truth = torch.linspace(LOW, HIGH, 64)
    logits = head.logits(outputs, grid)
    assert logits.isfinite().all() and logits.shape == (64, BINS)
    loss = head.loss(outputs, truth, grid, 0.02)
    assert loss.isfinite().all() and loss.shape == (64,)
    loss.sum().backward()
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize("name", config.OBJECTIVE_HEADS["nll"])
def test_the_loss_is_least_where_the_density_sits_on_the_truth(grid: Grid, name: str) -> None:
    head = head_of(name)
    outputs = torch.zeros(1, head.n_outputs, requires_grad=True)
    optimiser = torch.optim.Adam([outputs], lr=0.1)
    # With a constant rate it circles around the least loss, how far away depends on the processor's rounding.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1500)
    truth = torch.tensor([-22.6])
    for _ in range(1500):
        optimiser.zero_grad()
        head.loss(outputs, truth, grid, 0.05).sum().backward()
        optimiser.step()
        schedule.step()
    probability = head.logits(outputs, grid).softmax(1)[0].detach()
    mean = (probability * grid.centres).sum().item()
    sigma = ((grid.centres - mean) ** 2 * probability).sum().sqrt().item()
    assert mean == pytest.approx(-22.6, abs=0.01)
    assert sigma == pytest.approx(0.05, rel=0.2)


def test_gaussian_density_and_loss_are_the_truncated_normals(grid: Grid) -> None:
    head = head_of("gaussian")
    outputs = torch.tensor([[0.1, -4.0], [0.49, -2.0], [-0.6, 0.0]])
    mean, sigma = head.mean_and_sigma(outputs, grid)
    truth = torch.tensor([-22.75, -22.1, -23.9])
    loss = head.loss(outputs, truth, grid, 0.0)
    for n in range(3):
        oracle = truncated(mean[n].item(), sigma[n].item())
        assert loss[n].item() == pytest.approx(-oracle.logpdf(truth[n].item()), abs=2e-3)
        expected = np.diff(oracle.cdf(grid.edges.numpy())) / grid.width
        assert density(head, outputs, grid)[n] == pytest.approx(expected, abs=2e-3 * expected.max())


def test_gaussian_stays_finite_far_outside_of_the_prior(grid: Grid) -> None:
    outputs = torch.tensor([[40.0, -20.0], [-40.0, -20.0]], requires_grad=True)
    loss = head_of("gaussian").loss(outputs, torch.tensor([-23.0, -23.0]), grid, 0.02)
    loss.sum().backward()
    assert loss.isfinite().all() and outputs.grad.isfinite().all()
    assert head_of("gaussian").logits(outputs, grid).softmax(1).sum(1).tolist() == pytest.approx([1, 1])


def test_mixture_density_is_that_of_truncated_normals(grid: Grid) -> None:
    head = head_of("mixture", components=3)
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(5, head.n_outputs, generator=generator)
    log_weight, mean, sigma = head.parts(outputs, grid)
    assert log_weight.exp().sum(1).tolist() == pytest.approx([1] * 5)
    for n in range(5):
        expected = np.zeros(BINS)
        for j in range(3):
            parts = truncated(mean[n, j].item(), sigma[n, j].item()).cdf(grid.edges.numpy())
            expected += log_weight[n, j].exp().item() * np.diff(parts) / grid.width
        assert density(head, outputs, grid)[n] == pytest.approx(expected, abs=2e-3 * expected.max())


def test_quantiles_never_cross_and_the_density_has_them(grid: Grid) -> None:
    head = head_of("quantile", quantiles=15)
    generator = torch.Generator().manual_seed(2)
    outputs = 2 * torch.randn(6, head.n_outputs, generator=generator)
    quantiles = head.quantiles(outputs, grid)
    assert quantiles.shape == (6, 15) and len(head.levels) == 15
    assert (quantiles.diff(dim=1) > 0).all() and (quantiles > LOW).all() and (quantiles < HIGH).all()
    assert head.levels.numpy() == pytest.approx(1 - head.levels.numpy()[::-1])
    for n in range(6):
        places = np.concatenate([[LOW], quantiles[n].numpy(), [HIGH]])
        levels = np.concatenate([[0], head.levels.numpy(), [1]])
        expected = np.diff(np.interp(grid.edges.numpy(), places, levels)) / grid.width
        assert density(head, outputs, grid)[n] == pytest.approx(expected, abs=1e-3 * expected.max())
    untrained = head.quantiles(torch.zeros(1, head.n_outputs), grid)[0].numpy()
    assert untrained == pytest.approx(LOW + (HIGH - LOW) * head.levels.numpy(), abs=1e-5)


def test_spline_is_durkans_and_its_density_is_the_slope(grid: Grid) -> None:
    head = head_of("spline", knots=4)
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(3, head.n_outputs, generator=generator)
    width, height, slope = (tensor.double().numpy() for tensor in head.knots(outputs))
    assert width.sum(1) == pytest.approx(1) and height.sum(1) == pytest.approx(1)

    def cdf(n: int, x: np.ndarray) -> np.ndarray:
        """Eq. 4 of arXiv:1906.04032, piece by piece."""
        value = np.zeros_like(x)
        xs, ys = (np.concatenate([[0], np.cumsum(part[n])]) for part in (width, height))
        for k, (left, right) in enumerate(pairwise(xs)):
            inside = (x >= left) & (x <= right + 1e-5)
            share = (x[inside] - left) / (right - left)
            mean = height[n, k] / width[n, k]
            above = height[n, k] * (mean * share**2 + slope[n, k] * share * (1 - share))
            below = mean + (slope[n, k + 1] + slope[n, k] - 2 * mean) * share * (1 - share)
            value[inside] = ys[k] + above / below
        return value

    for n in range(3):
        expected = np.diff(cdf(n, (grid.edges.numpy() - LOW) / (HIGH - LOW))) / grid.width
        assert (expected > 0).all()
        assert density(head, outputs, grid)[n] == pytest.approx(expected, abs=5e-3 * expected.max())


@pytest.mark.parametrize("estimate", [-24.3, -23.99, -23.0, -22.7777, -22.02, -21.0])
@pytest.mark.parametrize("spread", [-6.0, -2.0, 1.0])
def test_half_of_a_points_probability_lies_on_either_side(grid: Grid, estimate: float, spread: float) -> None:
    head = head_of("point")
    outputs = torch.tensor([[(estimate + 23.0) / 2, spread]])
    assert head.estimate(outputs, grid).item() == pytest.approx(estimate, abs=1e-5)
    cumulative = np.cumsum(density(head, outputs, grid)[0]) * grid.width
    median = np.interp(0.5, np.concatenate([[0], cumulative]), grid.edges.numpy())
    assert median == pytest.approx(np.clip(estimate, LOW, HIGH), abs=grid.width)


def test_a_points_density_is_two_halves_of_truncated_normals_and_never_moves_it(grid: Grid) -> None:
    head = head_of("point")
    centre = float(grid.edges[180])
    outputs = torch.tensor([[(centre + 23.0) / 2, -1.0]], requires_grad=True)
    sigma = grid.width + 2 * math.log1p(math.exp(0.0))
    expected = []
    for ends in ((LOW, centre), (centre, HIGH)):
        side = truncnorm((ends[0] - centre) / sigma, (ends[1] - centre) / sigma, loc=centre, scale=sigma)
        edges = grid.edges.numpy()[:181] if ends[0] == LOW else grid.edges.numpy()[180:]
        expected.append(np.diff(side.cdf(edges)) / 2 / grid.width)
    assert density(head, outputs, grid)[0] == pytest.approx(np.concatenate(expected), rel=2e-3)
    head.loss(outputs, torch.tensor([-22.2]), grid, 0.02).sum().backward()
    assert outputs.grad[0, 0] == 0 and outputs.grad[0, 1] != 0


def test_shared_probabilities_are_those_of_coarser_bins():
    """`free_bins`: the same loss, but for the bins' width, and the same density."""
    generator = torch.Generator().manual_seed(1)
    outputs, truth = torch.randn(6, 16, generator=generator), torch.linspace(-23.9, -22.1, 6)
    coarse, fine = Grid(-24.0, -22.0, 16), Grid(-24.0, -22.0, 64)
    plain, shared = (BinnedHead(ModelConfig(bins=bins, free_bins=free)) for bins, free in ((16, 0), (64, 16)))
    assert plain.n_outputs == shared.n_outputs == 16
    torch.testing.assert_close(
        shared.logits(outputs, fine).softmax(dim=1) / fine.width,
        (plain.logits(outputs, coarse).softmax(dim=1) / coarse.width).repeat_interleave(4, dim=1),
    )
    torch.testing.assert_close(
        shared.loss(outputs, truth, fine, 0.01), plain.loss(outputs, truth, coarse, 0.01)
    )
    with pytest.raises(ValueError, match="divisor of bins"):
        ModelConfig(bins=64, free_bins=15)
