"""Statistics against closed forms, numpy and scikit-image-free arithmetic; rules against built faults."""

import numpy as np
import pytest

from darkarc.data.quality import (
    LARGEST,
    RULES,
    STATISTICS,
    ImageError,
    broken_rules,
    image_statistics,
)


def ring(radius: float, width: float, side: int = 64, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    r = np.hypot(x - shift[0], y - shift[1])
    return np.exp(-0.5 * ((r - radius) / width) ** 2)


def measure(image: np.ndarray) -> dict[str, float]:
    return {name: float(values[0]) for name, values in image_statistics(image[None]).items()}


def test_every_statistic_is_there_and_finite_for_anything() -> None:
    rng = np.random.default_rng(0)
    odd = rng.normal(size=(6, 16, 20)).astype(np.float32)
    odd[0] = np.nan
    odd[1] = np.inf
    odd[2, :3] = -np.inf
    odd[3] = 0
    odd[4] = 3e38
    odd[5] = -1
    found = image_statistics(odd)
    assert list(found) != [] and set(found) == set(STATISTICS)
    for name, values in found.items():
        assert values.shape == (6,) and values.dtype == np.float64, name
        assert np.isfinite(values).all(), name


def test_a_thin_ring_is_measured_as_drawn() -> None:
    found = measure(ring(14, 1.5))
    # Of a Gaussian ring the flux-weighted radius is R + s^2 / R and the flux (2 pi)^(3/2) R s.
    assert found["ring_radius"] == pytest.approx(14 + 1.5**2 / 14, abs=0.02)
    assert found["ring_width"] == pytest.approx(1.5, rel=0.03)
    assert found["flux"] == pytest.approx((2 * np.pi) ** 1.5 * 14 * 1.5, rel=0.01)
    assert found["offset"] == pytest.approx(0, abs=1e-4)
    assert found["asymmetry"] == pytest.approx(0, abs=1e-4)
    assert found["peak"] == pytest.approx(1, abs=0.02)


def test_offset_and_asymmetry_see_a_shift_and_a_missing_half() -> None:
    assert measure(ring(10, 1.5, shift=(4, -3)))["offset"] == pytest.approx(5, abs=0.05)
    half = ring(14, 1.5)
    half[:, :32] = 0
    assert measure(half)["asymmetry"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 20.0])
def test_noise_level_recovers_gaussian_noise_on_a_slope_and_under_a_ring(sigma: float) -> None:
    rng = np.random.default_rng(1)
    slope = np.linspace(0, 5, 64)[None, :] + np.linspace(-2, 2, 64)[:, None]
    images = slope + sigma * rng.normal(size=(64, 64, 64)) + 10 * sigma * ring(14, 4)
    found = image_statistics(images.astype(np.float32))["noise_level"]
    assert found.mean() == pytest.approx(sigma, rel=0.05)
    assert found.std() < 0.05 * sigma


def test_background_is_the_level_of_the_corners_whatever_the_ring() -> None:
    rng = np.random.default_rng(2)
    image = 7.5 + ring(14, 2) * 100 + 0.1 * rng.normal(size=(64, 64))
    assert measure(image)["background"] == pytest.approx(7.5, abs=0.03)


def test_a_hot_pixel_stands_out_in_spike_and_the_relative_noise_is_noise_over_peak() -> None:
    rng = np.random.default_rng(3)
    image = 2 * ring(14, 3) + 0.02 * rng.normal(size=(64, 64))
    smooth = measure(image)
    assert smooth["spike"] < 0.1
    assert smooth["relative_noise"] == pytest.approx(0.01, rel=0.15)
    image[5, 50] = 40
    assert measure(image)["spike"] == pytest.approx(1, abs=0.01)


def test_shares_are_counted() -> None:
    image = np.arange(100, dtype=np.float32).reshape(10, 10) - 20
    image[0, :4] = 0
    image[9, :] = 100
    image[5, 5] = np.nan
    found = measure(image)
    assert found["saturation"] == pytest.approx(0.10)
    assert found["negative"] == pytest.approx(0.16)
    assert found["zero"] == pytest.approx(0.05)
    assert found["non_finite"] == pytest.approx(0.01)


def test_dead_rows_are_flat_and_noise_is_not() -> None:
    image = np.random.default_rng(6).normal(size=(42, 32))
    assert measure(image)["flat"] == 0
    image[10:20] = 0
    assert measure(image)["flat"] == pytest.approx(8 / 40)  # rows whose neighbours are dead as well


def test_a_pixel_beyond_float32_arithmetic_counts_as_not_finite() -> None:
    image = ring(14, 3).astype(np.float64)
    image[0, 0] = 10 * LARGEST
    assert measure(image)["non_finite"] == pytest.approx(1 / 4096)


def test_values_do_not_depend_on_the_batch_or_the_number_type() -> None:
    rng = np.random.default_rng(4)
    counts = rng.poisson(100 * ring(14, 3) + 2, size=(300, 64, 64))
    whole = image_statistics(counts.astype(np.int32))
    single = image_statistics(counts[150:151].astype(np.int32))
    wide = image_statistics(counts)  # int64: measured in float64
    for name in STATISTICS:
        assert whole[name][150] == single[name][0], name
        np.testing.assert_allclose(whole[name], wide[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((64, 64)), r"shape \(64, 64\)"),
        (np.zeros((2, 64, 64), complex), "complex128"),
        (np.zeros((2, 7, 64)), "7 x 64"),
    ],
)
def test_what_cannot_be_measured_is_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        image_statistics(images)


def test_each_rule_names_its_fault_and_spares_a_lens() -> None:
    rng = np.random.default_rng(5)
    lens = ring(14, 3) + 0.02 * rng.normal(size=(64, 64))
    hole, saturated = lens.copy(), np.minimum(lens, 0.5)
    hole[3, 3] = np.nan
    faults = {
        "non_finite": hole,
        "constant": np.full((64, 64), 3.0),
        "all_negative": lens - 10,
        "saturated": saturated,
        "empty": 1 + 0.02 * rng.normal(size=(64, 64)),
        "": lens,
    }
    found = broken_rules(image_statistics(np.stack(list(faults.values()))))
    assert found.tolist() == list(faults)
    assert set(faults) == {*RULES, ""}


@pytest.mark.shared
def test_no_real_lens_breaks_a_rule(shared) -> None:  # type: ignore[no-untyped-def]
    for model in ("Model_I", "Model_II"):
        paths = sorted((shared / "deeplense_sample" / model).glob("[cn]*/*.npy"))[:60]
        images = np.stack([np.load(path) for path in paths])
        assert set(broken_rules(image_statistics(images))) == {""}
