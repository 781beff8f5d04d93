"""The closed form of the vortex line against the plain sum over its masses and scipy's digamma."""

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma

from darkarc.simulation.vortex import exact_sum, line_deflection

POINTS = 100


def line_by_sum(x, y, half_length, angle):
    """Deflection (H, W) by unit masses, one by one, float64."""
    along = np.linspace(-half_length, half_length, POINTS)
    dx = x[None, :, None] - along * np.cos(angle)
    dy = y[:, None, None] - along * np.sin(angle)
    r2 = dx**2 + dy**2
    return (dx / r2).sum(-1), (dy / r2).sum(-1)


def test_exact_sum_is_the_difference_of_two_digammas() -> None:
    rng = np.random.default_rng(1)
    v = rng.uniform(-70, 70, 3000) + 1j * rng.uniform(-12, 12, 3000)
    expected = digamma(v + (POINTS + 1) / 2) - digamma(v - (POINTS - 1) / 2)
    re, minus_im = exact_sum(torch.from_numpy(v.real.copy()), torch.from_numpy(v.imag.copy()), POINTS)
    ours = re.numpy() - 1j * minus_im.numpy()
    assert np.abs(ours / expected - 1).max() < 1e-11


@pytest.mark.parametrize(("across", "points"), [(1e-9, 100), (0.3, 7), (500.0, 100), (0.0, 2), (9.0, 9)])
def test_exact_sum_beside_masses_and_far_away(across: float, points: int) -> None:
    along = torch.tensor([0.25, 0.5 + 1e-7, points / 2 - 0.5 + 1e-6, points / 2, 3.0 * points]).double()
    masses = np.arange(points) - (points - 1) / 2
    v = along.numpy() + 1j * across
    expected = (1 / (v[:, None] - masses)).sum(1)
    re, minus_im = exact_sum(along, torch.full_like(along, across), points)
    assert np.abs((re.numpy() - 1j * minus_im.numpy()) / expected - 1).max() < 1e-8


@pytest.mark.parametrize("half_length", [3.0, 0.8, 0.1, 0.03])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_deflection_against_the_plain_sum(half_length, dtype, tolerance) -> None:
    axis = (torch.arange(64, dtype=torch.float64) - 31.5) * 0.08
    angles = torch.tensor([0.0, 0.3, math.pi / 4, 1.7, 4.0], dtype=torch.float64)
    ax, ay = line_deflection(
        axis,
        axis,
        torch.full_like(angles, half_length),
        angles,
        points=POINTS,
        einstein_radius2_arcsec2=1.0,
        dtype=dtype,
    )
    assert ax.dtype == dtype
    for row, angle in enumerate(angles.numpy()):
        sx, sy = line_by_sum(axis.numpy(), axis.numpy(), half_length, angle)
        error = np.hypot(ax[row].double().numpy() - sx, ay[row].double().numpy() - sy)
        assert (error / np.hypot(sx, sy)).max() < tolerance


def test_total_mass_alone_counts_far_away() -> None:
    """A line of n masses seen from afar is one of n times the mass."""
    x = torch.tensor([200.0], dtype=torch.float64)
    y = torch.tensor([-150.0], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    ax, ay = line_deflection(x, y, 0.03 * one, one, points=POINTS, einstein_radius2_arcsec2=1.0)
    assert ax.item() == pytest.approx(POINTS * 200 / 250**2, rel=1e-6)
    assert ay.item() == pytest.approx(-POINTS * 150 / 250**2, rel=1e-6)


def test_gradients_with_respect_to_length_and_angle() -> None:
    """Finite differences of the deflection, near pixels included."""
    axis = (torch.arange(8, dtype=torch.float64) - 3.5) * 0.11

    def deflection(half_length, angle):
        return line_deflection(axis, axis, half_length, angle, points=10, einstein_radius2_arcsec2=0.1)

    length = torch.tensor([0.3, 0.05], dtype=torch.float64, requires_grad=True)
    angle = torch.tensor([0.37, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(deflection, (length, angle))
