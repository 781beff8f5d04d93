"""Priors and random streams of the scenes."""

import numpy as np
import pytest
from scipy.stats import kstest

from darkarc.simulation import SimulationError, draw_scenes
from darkarc.simulation.scenes import random_stream

FIELDS = (
    "class_index",
    "log10_mass_ev",
    "angle_rad",
    "source_arcsec",
    "subhalo_log10_mass_msun",
    "subhalo_arcsec",
    "exposure_s",
)


def uniform(values: np.ndarray, low: float, high: float) -> bool:
    """Within the range, and passing Kolmogorov and Smirnov's test."""
    inside = values.min() >= low and values.max() <= high
    return inside and kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


@pytest.mark.parametrize("class_name", ["axion", "cdm", "no_sub"])
def test_a_scene_depends_on_seed_class_and_index_alone(class_name: str) -> None:
    whole = draw_scenes("model_i", class_name, 5, range(20))
    some = draw_scenes("model_i", class_name, 5, [17, 3])
    for field in FIELDS:
        assert np.array_equal(getattr(some, field), getattr(whole, field)[[17, 3]], equal_nan=True)
    other = draw_scenes("model_i", class_name, 6, range(20))
    assert not np.isin(other.source_arcsec, whole.source_arcsec).any()


def test_classes_have_streams_of_their_own() -> None:
    sources = [draw_scenes("model_ii", c, 5, range(9)).source_arcsec for c in ("axion", "cdm", "no_sub")]
    assert len(np.unique(np.concatenate(sources))) == 54
    first = random_stream(5, 0, 3, 0).random(4)
    assert not np.array_equal(first, random_stream(5, 0, 3, 1).random(4))
    assert np.array_equal(first, random_stream(5, 0, 3, 0).random(4))


def test_axion_priors() -> None:
    scenes = draw_scenes("model_i", "axion", 1, range(2000))
    assert uniform(scenes.log10_mass_ev, -24, -22)
    assert uniform(scenes.angle_rad, 0, 2 * np.pi)
    assert uniform(scenes.source_arcsec[:, 0], -0.35, 0.35)
    assert uniform(scenes.source_arcsec[:, 1], -0.35, 0.35)
    assert uniform(np.log10(scenes.exposure_s), 3.0, 3.5)
    assert scenes.subhalo_log10_mass_msun.shape == (2000, 0)
    drawn = [scenes.log10_mass_ev, scenes.angle_rad, *scenes.source_arcsec.T, np.log10(scenes.exposure_s)]
    assert np.abs(np.corrcoef(drawn) - np.eye(5)).max() < 0.1, "no number tells another"


def test_cdm_priors() -> None:
    scenes = draw_scenes("model_iii", "cdm", 1, range(200))
    assert scenes.subhalo_arcsec.shape == (200, 25, 2)
    low, high = 1e6**0.1, 1e10**0.1
    deviates = (10 ** (scenes.subhalo_log10_mass_msun / 10) - low) / (high - low)
    assert uniform(deviates.ravel(), -1e-12, 1 + 1e-12)
    assert uniform(np.hypot(*scenes.subhalo_arcsec.T).ravel(), 0.25, 2.0)
    assert uniform(np.arctan2(*scenes.subhalo_arcsec.T).ravel(), -np.pi, np.pi)
    assert np.isnan(scenes.log10_mass_ev).all() and np.isnan(scenes.angle_rad).all()


@pytest.mark.parametrize(("preset", "seconds"), [("model_ii", 2260.0), ("model_iii", 5400.0)])
def test_fixed_exposures(preset: str, seconds: float) -> None:
    scenes = draw_scenes(preset, "no_sub", 0, range(3))
    assert scenes.exposure_s == pytest.approx([seconds] * 3, rel=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model_4", "axion", 0, [0]), "unknown preset 'model_4'.*model_iii"),
        (("model_i", "vort", 0, [0]), "unknown class 'vort'.*axion, cdm, no_sub"),
        (("model_i", "axion", -1, [0]), "seed=-1"),
        (("model_i", "axion", 0, [-1]), "indices"),
    ],
)
def test_bad_requests_are_named(arguments, message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        draw_scenes(*arguments)
