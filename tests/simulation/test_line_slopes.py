"""The vortex line's deflection with slopes, against the simulator's and its finite differences."""

import math

import pytest
import torch

from darkarc.simulation import PRESETS, line_slopes, pixel_axis_arcsec, vortex_point_arcsec2
from darkarc.simulation.vortex import line_deflection

AXIS = pixel_axis_arcsec(PRESETS["model_iii"])
HALF_LENGTHS = torch.tensor([3.0, 1.1, 0.4, 0.12, 0.05, 0.024], dtype=torch.float64)
ANGLES = torch.tensor([0.3, 2.9, 1.2, -0.4, 0.0, 1.0], dtype=torch.float64)
STRENGTH = vortex_point_arcsec2(PRESETS["model_iii"])


def reference(half_length: torch.Tensor, angle: torch.Tensor, points: int) -> torch.Tensor:
    return torch.stack(
        line_deflection(AXIS, AXIS, half_length, angle, points=points, einstein_radius2_arcsec2=STRENGTH)
    )


@pytest.mark.parametrize("points", [100, 61])
@pytest.mark.parametrize(
    ("dtype", "worst", "typical"), [(torch.float64, 2e-8, 1e-9), (torch.float32, 5e-6, 2e-7)]
)
def test_the_deflection_is_the_simulators(
    points: int, dtype: torch.dtype, worst: float, typical: float
) -> None:
    """In arcsec, for all lengths that a mass within the prior may have, and a little more."""
    half_lengths, angles = HALF_LENGTHS.to(dtype), ANGLES.to(dtype)
    axis = AXIS.to(dtype)
    found, _ = line_slopes(axis, axis, half_lengths, angles, points=points, einstein_radius2_arcsec2=STRENGTH)
    away = (torch.stack(found).double() - reference(half_lengths.double(), angles.double(), points)).abs()
    assert found[0].dtype == dtype
    assert float(away.max()) < worst
    assert float(away.flatten().quantile(0.999)) < typical


def test_the_slopes_are_those_of_the_deflection() -> None:
    _, slope = line_slopes(AXIS, AXIS, HALF_LENGTHS, ANGLES, points=100, einstein_radius2_arcsec2=STRENGTH)
    step = 1e-5
    longer, shorter = (reference(HALF_LENGTHS * math.exp(s), ANGLES, 100) for s in (step, -step))
    turned, back = (reference(HALF_LENGTHS, ANGLES + s, 100) for s in (step, -step))
    for expected, ours in (
        ((longer - shorter) / (2 * step), -torch.stack(slope)),
        ((turned - back) / (2 * step), torch.stack([-slope[1], slope[0]])),
    ):
        size = expected.norm(dim=0)
        # For a short line D is a difference of nearly equal numbers: 1e-6 of the deflection itself.
        allowed = 1e-5 * size + 2e-6 * reference(HALF_LENGTHS, ANGLES, 100).norm(dim=0)
        assert bool(((ours - expected).norm(dim=0) < allowed).all())
