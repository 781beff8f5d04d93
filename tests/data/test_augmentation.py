"""Augmentations against closed forms: rolls, blobs at known places, variances."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkarc.config import TrainConfig, parse
from darkarc.data.augment import add_background, rotate, rotation_matrices, shift
from darkarc.data.augmentation import Augmentation, Background
from darkarc.data.auxiliary import auxiliary_truths
from darkarc.data.batches import Batch, BatchError
from darkarc.data.store import Store, StoreWriter
from darkarc.simulation import PRESETS
from darkarc.simulation.counter import hash_indices

EUCLID = PRESETS["model_ii"].instrument


def blobs(x: torch.Tensor, y: torch.Tensor, shape: tuple[int, int] = (40, 44)) -> torch.Tensor:
    """(B, 1, H, W) Gaussians of 3 pixels' width centred at (x, y) (B,) from the middle."""
    columns = torch.arange(shape[1]) - (shape[1] - 1) / 2
    rows = torch.arange(shape[0]) - (shape[0] - 1) / 2
    dx, dy = columns - x[:, None, None], rows[:, None] - y[:, None, None]
    return torch.exp(-(dx**2 + dy**2) / 18)[:, None]


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_a_shift_is_a_roll_in_the_interior_and_repeats_the_edge(dtype: torch.dtype) -> None:
    images = (torch.rand(5, 1, 12, 15) * 1000).to(dtype)
    pixels = torch.tensor([[0, 0], [3, 0], [0, -2], [-4, 1], [2, 2]])
    moved = shift(images, pixels)
    assert moved.dtype == dtype
    for image, (dx, dy), one in zip(images[:, 0], pixels.tolist(), moved[:, 0], strict=True):
        rolled = torch.roll(image, (dy, dx), (0, 1))
        rows, columns = slice(max(dy, 0), 12 + min(dy, 0)), slice(max(dx, 0), 15 + min(dx, 0))
        assert torch.equal(one[rows, columns], rolled[rows, columns])
        expected = np.pad(image.numpy(), 5, mode="edge")[5 - dy : 17 - dy, 5 - dx : 20 - dx]
        assert np.array_equal(one.numpy(), expected)


def test_a_rotation_takes_a_blob_to_where_its_matrix_says() -> None:
    x, y = torch.tensor([8.0, -6.0, 0.0, 3.0]), torch.tensor([2.0, 5.0, -9.0, 0.0])
    angles = torch.tensor([0.3, -1.0, 2.5, 0.0], dtype=torch.float64)
    turned = rotate(blobs(x, y), angles)
    there = (rotation_matrices(angles) @ torch.stack([x, y], dim=1)[:, :, None])[:, :, 0]
    expected = blobs(there[:, 0], there[:, 1])
    # Bilinear interpolation misses by at most a quarter of the curvature, 1/9 here.
    assert float((turned - expected).abs().max()) < 1 / 36
    assert turned[3].numpy() == pytest.approx(blobs(x, y)[3].numpy(), abs=1e-6)
    quarter = rotate(blobs(x, y, (41, 41)), torch.full((4,), math.pi / 2))
    assert quarter[:, 0].numpy() == pytest.approx(np.rot90(blobs(x, y, (41, 41))[:, 0], -1, (1, 2)), abs=1e-5)


def test_extra_noise_has_its_variance_everywhere_and_the_psfs_correlation() -> None:
    n = 4000
    rms = torch.linspace(0.5, 3.0, n)
    images = torch.zeros(n, 1, 12, 16)
    noise = add_background(images, rms, hash_indices(0, 0, torch.arange(n)), EUCLID)[:, 0]
    unit = noise / rms[:, None, None]
    deviation = unit.square().mean(dim=0).sqrt()
    assert float((deviation - 1).abs().max()) < 5 / math.sqrt(2 * n)
    # Two Gaussians of sigma convolved: neighbours d apart correlate as exp(-d^2 / 4 sigma^2).
    sigma = EUCLID.psf_fwhm_arcsec / 2.3548 / EUCLID.pixel_scale_arcsec
    for step, distance2 in ((1, 1), (2, 4)):
        correlation = float((unit[:, :, step:] * unit[:, :, :-step]).mean())
        taps = _discrete_correlation(step)
        assert correlation == pytest.approx(taps, abs=5 / math.sqrt(n * 40))
        assert taps == pytest.approx(math.exp(-distance2 / (4 * sigma**2)), abs=0.05)
    assert abs(float(unit.mean())) < 5 / math.sqrt(n)


def _discrete_correlation(step: int) -> float:
    sigma = EUCLID.psf_fwhm_arcsec / 2.354820045 / EUCLID.pixel_scale_arcsec
    taps = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2)
    return float((taps[step:] * taps[:-step]).sum() / (taps**2).sum())


def batch(n: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, n, generator=generator) - 0.5) * 16
    angle = torch.rand(n, generator=generator).numpy() * 3
    auxiliary = torch.from_numpy(auxiliary_truths(x.numpy(), y.numpy(), angle))
    return Batch(blobs(x, y, (44, 44)), torch.zeros(n, dtype=torch.int64), torch.zeros(n, 1), auxiliary)


ALL = {"dihedral": "full", "rotation": 25.0, "shift_pixels": 3, "noise_augmentation": 2.0}


def augmentation(seed: int = 5, **train: Any) -> Augmentation:
    settings = TrainConfig(**({"dihedral": "none"} | train))
    return Augmentation(settings, seed, Background(EUCLID, 0.1) if settings.noise_augmentation else None)


@pytest.mark.parametrize("settings", [{k: v} for k, v in ALL.items()] + [ALL], ids=lambda s: "+".join(s))
def test_a_sample_is_changed_by_seed_epoch_and_index_alone(settings: dict[str, Any]) -> None:
    augment, fresh = augmentation(**settings), batch()
    indices = torch.randperm(1000)[:64]
    whole = augment(fresh, indices, 3)
    changed = (whole.images != fresh.images).flatten(1).any(dim=1)
    assert changed.float().mean() > 0.6
    for k in (0, 17, 63):
        alone = augment(Batch(*(part[k : k + 1] for part in fresh)), indices[k : k + 1], 3)
        assert torch.equal(alone.images[0], whole.images[k])
        assert torch.equal(alone.auxiliary[0], whole.auxiliary[k])
    for other in (augment(fresh, indices, 4), replace(augment, seed=6)(fresh, indices, 3)):
        assert (other.images != whole.images).any()
    assert torch.equal(augmentation()(fresh, indices, 3).images, fresh.images)


@pytest.mark.parametrize("dihedral", ["none", "flips", "full"])
def test_a_sources_position_turns_with_its_image_and_a_shift_leaves_it(dihedral: str) -> None:
    fresh, indices = batch(), torch.arange(64)
    turned = augmentation(dihedral=dihedral, rotation=180.0)(fresh, indices, 0)
    x, y = (turned.auxiliary[:, :2] * 0.2).unbind(1)  # SOURCE_SCALE_ARCSEC; here in pixels
    assert float((turned.images - blobs(x, y, (44, 44))).abs().max()) < 0.03
    moved = augmentation(shift_pixels=4)(fresh, indices, 0)
    assert torch.equal(moved.auxiliary, fresh.auxiliary)


def test_draws_fill_their_ranges_evenly() -> None:
    indices = torch.arange(20_000)
    angles = augmentation(rotation=10.0)._angles_rad(indices, 1)
    assert float(angles.abs().max()) <= math.radians(10) and abs(float(angles.mean())) < 0.005
    assert float(angles.std()) == pytest.approx(math.radians(10) / math.sqrt(3), rel=0.02)
    point = torch.zeros(2000, 1, 9, 9)
    point[:, :, 4, 4] = 1
    moved = augmentation(shift_pixels=2)(batch(2000)._replace(images=point), torch.arange(2000), 1).images
    share = moved.mean(dim=(0, 1))
    assert float(share[2:7, 2:7].sum()) == pytest.approx(1)
    assert share[2:7, 2:7].numpy() == pytest.approx(np.full((5, 5), 1 / 25), abs=0.02)


def stored(path: Path, origin: str = "t", **simulate: Any) -> Store:
    parameters = {"simulate": {"distances": "deeplense", **simulate}} if simulate else {}
    writer = StoreWriter(
        path, name="t", origin=origin, instrument="t", shape=(4, 4), dtype="float32", parameters=parameters
    )
    writer.append(np.zeros((1, 4, 4), np.float32), {"sample_id": ["a"], "class": ["axion"]})
    return writer.commit()


@pytest.mark.parametrize(
    ("preset", "noise", "expected"),
    [
        ("model_iii", "physical", 0.01),
        ("model_ii", "none", 0.01),
        ("model_ii", "published", 0.01),
        ("model_i", "none", 0.01),
        ("model_i", "published", 0.01 * 10**3.25),
    ],
)
def test_the_unit_of_noise_is_the_instruments_background_in_stored_units(
    tmp_path: Path, preset: str, noise: str, expected: float
) -> None:
    config = parse({"train": {"noise_augmentation": 0.5}})
    found = Augmentation.of(config, stored(tmp_path / "store", preset=preset, noise=noise)).background
    assert found is not None and found.instrument == PRESETS[preset].instrument
    if preset != "model_i":
        instrument = PRESETS[preset].instrument
        seconds = instrument.exposures * 10 ** instrument.log10_exposure_s[0]
        expected = instrument.background_sigma(seconds) * (2 if noise == "published" else 1)
    assert found.rms == pytest.approx(0.5 * expected)


def test_an_unknown_instrument_cannot_have_its_noise_added(tmp_path: Path) -> None:
    store = stored(tmp_path / "store")
    with pytest.raises(BatchError, match=r"known for the images of DeepLense's models, not for 't'"):
        Augmentation.of(parse({"train": {"noise_augmentation": 1.0}}), store)
    assert Augmentation.of(parse({}), store).background is None
