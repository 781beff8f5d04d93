"""Deflection fields against caustics' own lens functions."""

import numpy as np
import pytest
import torch
from caustics.lenses.func import reduced_deflection_angle_point

from darkarc.simulation import (
    PRESETS,
    draw_scenes,
    pixel_axis_arcsec,
    smooth_source_plane,
    subhalo_deflection,
    vortex_half_length_arcsec,
)
from darkarc.simulation.cosmology import einstein_radius2_arcsec2

PRESET = PRESETS["model_iii"]


def test_vortex_length_is_inverse_to_the_mass() -> None:
    lengths = vortex_half_length_arcsec(PRESET, torch.tensor([-24.0, -23.0, -22.0], dtype=torch.float64))
    assert lengths.tolist() == pytest.approx([3.0, 0.3, 0.03])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_subhaloes_against_caustics_point_masses(dtype, tolerance) -> None:
    scenes = draw_scenes(PRESET, "cdm", 3, range(4))
    mass = torch.from_numpy(scenes.subhalo_log10_mass_msun)
    place = torch.from_numpy(scenes.subhalo_arcsec)
    ax, ay = subhalo_deflection(PRESET, mass, place, dtype=dtype)
    axis = pixel_axis_arcsec(PRESET)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius = (einstein_radius2_arcsec2(10**mass) * PRESET.deflection_rescaling).sqrt()
    px, py = reduced_deflection_angle_point(
        place[..., 0, None, None], place[..., 1, None, None], radius[..., None, None], x, y
    )
    error = torch.hypot(ax.double() - px.sum(1), ay.double() - py.sum(1))
    assert (error / torch.hypot(px, py).sum(1)).max() < tolerance


def test_padding_subhaloes_do_nothing() -> None:
    mass = torch.tensor([[9.0, 8.0]], dtype=torch.float64)
    place = torch.tensor([[[0.5, 0.3], [-0.8, 0.1]]], dtype=torch.float64)
    nan = torch.full((1, 3), torch.nan, dtype=torch.float64)
    padded = subhalo_deflection(
        PRESET,
        torch.cat([mass, nan], 1),
        torch.cat([place, nan[..., None].expand(1, 3, 2)], 1),
    )
    for got, expected in zip(padded, subhalo_deflection(PRESET, mass, place), strict=True):
        assert torch.equal(got, expected)


def test_smooth_lens_is_computed_once() -> None:
    first, again = smooth_source_plane(PRESET), smooth_source_plane(PRESET)
    assert first[0] is again[0] and first[1] is again[1]


def test_smooth_lens_is_symmetric() -> None:
    """Ellipticity and shear both lie along the axes, so the field mirrors in both."""
    x, y = (part.numpy() for part in smooth_source_plane(PRESET))
    assert np.allclose(x, -x[:, ::-1], atol=1e-14) and np.allclose(y, -y[::-1], atol=1e-14)
    assert np.abs(x - y.T).max() > 0.01
