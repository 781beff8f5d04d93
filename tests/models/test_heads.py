"""Heads against scipy's truncated normal distribution."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from darkarc.models import HEADS, Grid

LOW, HIGH, BINS = -24.0, -22.0, 256


def truncated(mean: float, sigma: float):
    return truncnorm((LOW - mean) / sigma, (HIGH - mean) / sigma, loc=mean, scale=sigma)


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
    head = HEADS[name]
    truth = torch.linspace(LOW, HIGH, 50)
    loss = head.loss(torch.zeros(50, head.n_outputs(BINS)), truth, grid, 0.02)
    assert loss.mean().item() == pytest.approx(math.log(HIGH - LOW), abs=0.05)


def test_gaussian_density_and_loss_are_the_truncated_normals(grid: Grid) -> None:
    outputs = torch.tensor([[0.1, -4.0], [0.49, -2.0], [-0.6, 0.0]])
    mean, sigma = HEADS["gaussian"]._mean_and_sigma(outputs, grid)
    truth = torch.tensor([-22.75, -22.1, -23.9])
    loss = HEADS["gaussian"].loss(outputs, truth, grid, 0.0)
    density = HEADS["gaussian"].logits(outputs, grid).softmax(1).numpy() / grid.width
    for n in range(3):
        oracle = truncated(mean[n].item(), sigma[n].item())
        assert loss[n].item() == pytest.approx(-oracle.logpdf(truth[n].item()), abs=2e-3)
        expected = np.diff(oracle.cdf(grid.edges.numpy())) / grid.width
        assert density[n] == pytest.approx(expected, abs=2e-3 * expected.max())


def test_gaussian_stays_finite_far_outside_of_the_prior(grid: Grid) -> None:
    outputs = torch.tensor([[40.0, -20.0], [-40.0, -20.0]], requires_grad=True)
    loss = HEADS["gaussian"].loss(outputs, torch.tensor([-23.0, -23.0]), grid, 0.02)
    loss.sum().backward()
    assert loss.isfinite().all() and outputs.grad.isfinite().all()
    assert HEADS["gaussian"].logits(outputs, grid).softmax(1).sum(1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("name", list(HEADS))
def test_the_loss_is_least_where_the_density_sits_on_the_truth(grid: Grid, name: str) -> None:
    head = HEADS[name]
    outputs = torch.zeros(1, head.n_outputs(BINS), requires_grad=True)
    optimiser = torch.optim.Adam([outputs], lr=0.1)
    truth = torch.tensor([-22.6])
    for _ in range(1500):
        optimiser.zero_grad()
        head.loss(outputs, truth, grid, 0.05).sum().backward()
        optimiser.step()
    probability = head.logits(outputs, grid).softmax(1)[0].detach()
    mean = (probability * grid.centres).sum().item()
    sigma = ((grid.centres - mean) ** 2 * probability).sum().sqrt().item()
    assert mean == pytest.approx(-22.6, abs=0.005)
    assert sigma == pytest.approx(0.05, rel=0.1)
