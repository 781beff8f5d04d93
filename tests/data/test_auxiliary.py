"""Auxiliary truths move with their images: checked by rendering, not by their own formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from darkarc.data.augment import dihedral
from darkarc.data.auxiliary import (
    AUXILIARY,
    SOURCE_SCALE_ARCSEC,
    auxiliary_truths,
    dihedral_matrices,
    turn_auxiliary,
)
from darkarc.simulation import PRESETS, model_image


def test_columns_are_scaled_positions_and_twice_the_angle() -> None:
    nan = np.nan
    truths = auxiliary_truths(
        np.array([0.3, nan, 0.1]), np.array([-0.2, 0.1, nan]), np.array([0.4, nan, 7.0])
    )
    assert truths.shape == (3, len(AUXILIARY)) and truths.dtype == np.float32
    assert truths[0] == pytest.approx(
        [0.3 / SOURCE_SCALE_ARCSEC, -0.2 / SOURCE_SCALE_ARCSEC, np.cos(0.8), np.sin(0.8)]
    )
    assert np.isnan(truths[1]).all()
    assert np.isnan(truths[2, :2]).all() and truths[2, 2:] == pytest.approx([np.cos(14), np.sin(14)])


@pytest.mark.parametrize("code", range(8))
def test_a_turned_image_is_the_image_of_the_turned_truths(code: int) -> None:
    preset = PRESETS["model_iii"]
    # A round source: only its centre turns. Flips keep the lens; turned by 90 degrees it is another one.
    preset = replace(preset, source=replace(preset.source, ellipticity=(0.0, 0.0)))
    x, y, angle = 0.21, -0.08, 0.7
    log10_mass = torch.tensor([-23.6], dtype=torch.float64)

    def image(x: float, y: float, angle: float, *, turned_lens: bool) -> torch.Tensor:
        sign = -1.0 if turned_lens else 1.0
        lens = replace(preset.lens, ellipticity=(sign * 0.1, 0.0), shear=(sign * 0.05, 0.0))
        return model_image(
            replace(preset, lens=lens),
            torch.tensor([[x, y]], dtype=torch.float64),
            log10_mass_ev=log10_mass,
            angle_rad=torch.tensor([angle], dtype=torch.float64),
        )

    codes = torch.tensor([code])
    truths = torch.from_numpy(auxiliary_truths(np.array([x]), np.array([y]), np.array([angle])))
    turned = turn_auxiliary(truths, dihedral_matrices(codes))[0].double()
    new_angle = float(torch.atan2(turned[3], turned[2]) / 2)
    new_x, new_y = (turned[:2] * SOURCE_SCALE_ARCSEC).tolist()
    expected = dihedral(image(x, y, angle, turned_lens=False)[:, None], codes)[:, 0]
    found = image(new_x, new_y, new_angle, turned_lens=code >= 4)
    # The truths are float32; any wrong sign or exchange misses by tenths of the peak.
    assert (found - expected).abs().max() < 1e-5 * expected.max()
    if code:
        assert (image(x, y, angle, turned_lens=code >= 4) - expected).abs().max() > 0.1 * expected.max()


def test_any_rotation_turns_positions_once_and_directions_twice() -> None:
    truths = torch.from_numpy(auxiliary_truths(np.full(3, 0.1), np.full(3, 0.25), np.full(3, 0.3)))
    phi = torch.tensor([0.0, 0.5, 2.0])
    rotation = torch.stack([phi.cos(), -phi.sin(), phi.sin(), phi.cos()], dim=1).unflatten(1, (2, 2))
    turned = turn_auxiliary(truths, rotation)
    place = torch.atan2(torch.tensor(0.25), torch.tensor(0.1)) + phi
    radius = np.hypot(0.1, 0.25) / SOURCE_SCALE_ARCSEC
    expected = torch.stack(
        [radius * place.cos(), radius * place.sin(), (0.6 + 2 * phi).cos(), (0.6 + 2 * phi).sin()], dim=1
    )
    assert torch.allclose(turned, expected, atol=1e-6)


def test_what_is_not_known_stays_unknown_and_spoils_nothing_else() -> None:
    truths = torch.tensor([[torch.nan, torch.nan, 0.6, 0.8], [1.0, 2.0, torch.nan, torch.nan]]).repeat(8, 1)
    codes = torch.arange(8).repeat_interleave(2)
    turned = turn_auxiliary(truths, dihedral_matrices(codes))
    assert torch.equal(turned.isnan(), truths.isnan())
