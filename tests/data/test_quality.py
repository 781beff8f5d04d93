"""Statistics against closed forms, numpy and scikit-image-free arithmetic; rules against built faults."""

import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest

from darkarc.data.quality import (
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


def upper_median(values: Iterable[float]) -> float:
    values = sorted(values)
    return values[len(values) // 2]


def by_the_book(image: np.ndarray) -> dict[str, float]:
    """The table of docs/prepare.md, pixel by pixel, of an image whose pixels are all finite."""
    image = image.astype(float)
    height, width = image.shape
    a, b = height // 8, width // 8
    rows, columns = (
        [*range(a), *range(height - a, height)],
        [*range(b), *range(width - b, width)],
    )
    background = upper_median(image[y, x] for y in rows for x in columns)
    mask = np.outer([1, -2, 1], [1, -2, 1])
    curvature = [
        float((mask * image[y : y + 3, x : x + 3]).sum()) for y in range(height - 2) for x in range(width - 2)
    ]
    sigma = 1.4826 / 6 * upper_median(np.abs(curvature[::2]))
    light = np.where(image - background > 3 * sigma, image - background, 0)
    flux = light.sum()
    y, x = np.mgrid[:height, :width]
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    r = np.hypot(x, y)
    radius = (light * r).sum() / flux
    above = image.max() - background
    return {
        "flux": flux,
        "peak": image.max(),
        "background": background,
        "noise_level": sigma,
        "relative_noise": sigma / above,
        "asymmetry": np.abs(light - light[::-1, ::-1]).sum() / (2 * flux),
        "ring_radius": radius,
        "ring_width": ((light * r**2).sum() / flux - radius**2) ** 0.5,
        "offset": np.hypot((light * x).sum(), (light * y).sum()) / flux,
        "spike": np.abs(curvature).max() / 4 / above,
        "saturation": (image == image.max()).mean(),
        "flat": (np.array(curvature) == 0).mean(),
        "non_finite": 0.0,
        "negative": (image < 0).mean(),
        "zero": (image == 0).mean(),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(24, 41), (40, 17), (8, 9)])
def test_statistics_are_those_of_the_documentation(shape: tuple[int, int], dtype: type) -> None:
    """Frames that are not square, with a bright sky, a faint skirt of 2 sigma, a dead row."""
    rng = np.random.default_rng(7)
    images = rng.normal(30, 0.1, size=(5, *shape))
    height, width = shape
    images[:, height // 3, width // 3 : width // 3 + 5] += 9
    images[:, height // 2 :, width // 2 :] += 0.2
    images[1] -= 35  # the peak, too, is below zero
    images[2, 2:6] = 0
    images[3, 0, :2] = 1e-4
    found = image_statistics(images.astype(dtype))
    for k, image in enumerate(images.astype(dtype)):
        for name, value in by_the_book(image).items():
            assert found[name][k] == pytest.approx(value, rel=2e-4, abs=2e-5), (name, k)


def test_a_pixel_in_float64_is_measured_in_float64() -> None:
    image = 1e8 + np.random.default_rng(8).normal(size=(64, 64))
    assert measure(image)["noise_level"] == pytest.approx(1, rel=0.1)


def test_memory_beside_the_images_is_constant() -> None:
    images = np.random.default_rng(9).normal(size=(4000, 32, 32)).astype(np.float32)
    tracemalloc.start()
    image_statistics(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < images.nbytes


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
    image[0, 0] = 2e30
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


def statistics_of(**changes: float) -> dict[str, np.ndarray]:
    """Of a sound lens but for these."""
    sound = dict.fromkeys(STATISTICS, 0.0) | {"peak": 10.0, "noise_level": 1.0, "saturation": 0.001}
    return {name: np.array([value]) for name, value in (sound | changes).items()}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"saturation": 0.01}, ""),
        ({"saturation": 0.0101}, "saturated"),
        ({"saturation": 0.999}, "saturated"),
        ({"saturation": 1.0}, "constant"),
        ({"peak": 0.0, "background": -9.0}, "all_negative"),
        ({"peak": 0.01, "background": -9.0}, ""),
        ({"peak": 5.0}, "empty"),
        ({"peak": 5.01}, ""),
        ({"peak": 9.0, "background": 4.0}, "empty"),
        ({"peak": 0.0, "noise_level": 0.0, "saturation": 1.0, "non_finite": 1e-4}, "non_finite"),
    ],
)
def test_rules_begin_where_they_say(changes: dict[str, float], rule: str) -> None:
    assert broken_rules(statistics_of(**changes)).tolist() == [rule]


def test_eight_pixels_and_bits_can_be_measured() -> None:
    spot = np.zeros((1, 8, 8), bool)
    spot[0, 3, 4] = True
    assert image_statistics(spot)["peak"] == 1


def test_a_corner_of_which_a_pixel_is_finite_has_a_background() -> None:
    image = 5 + ring(14, 3)
    image[:8, :8] = image[:8, -8:] = image[-8:, :8] = image[-8:, -8:] = np.nan
    assert measure(image)["background"] == 0
    image[0, 0] = 5
    assert measure(image)["background"] == 5


@pytest.mark.shared
def test_no_real_lens_breaks_a_rule(shared) -> None:  # type: ignore[no-untyped-def]
    for model in ("Model_I", "Model_II"):
        paths = sorted((shared / "deeplense_sample" / model).glob("[cn]*/*.npy"))[:60]
        images = np.stack([np.load(path) for path in paths])
        assert set(broken_rules(image_statistics(images))) == {""}
