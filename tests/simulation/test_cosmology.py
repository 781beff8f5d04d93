"""Einstein radii and rescaling against astropy, and against the published numbers."""

import lenstronomy_oracle as oracle
import pytest

from darkarc.simulation import PRESETS, SimulationError
from darkarc.simulation.cosmology import deflection_rescaling, einstein_radius2_arcsec2


@pytest.mark.parametrize(("mass", "arcsec"), [(1e12, 1.28149), (3e10, 0.22196), (3e8, 0.022196)])
def test_published_einstein_radii(mass: float, arcsec: float) -> None:
    assert einstein_radius2_arcsec2(mass) ** 0.5 == pytest.approx(arcsec, abs=5e-6)


@pytest.mark.parametrize("distances", ["deeplense", "physical"])
def test_einstein_radius_against_astropy(distances: str) -> None:
    ours = einstein_radius2_arcsec2(1.0, distances) ** 0.5
    assert ours == pytest.approx(oracle.unit_einstein_radius(distances), rel=1e-13)


def test_angular_diameter_distances_give_larger_radii() -> None:
    ratio2 = einstein_radius2_arcsec2(1.0, "physical") / einstein_radius2_arcsec2(1.0, "deeplense")
    assert ratio2**0.5 == pytest.approx(1.2989, abs=5e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_rescaling_is_that_of_pyhalos_cosmology(preset: str) -> None:
    assert deflection_rescaling(PRESETS[preset], "deeplense") == pytest.approx(
        oracle.rescaling(preset), rel=1e-13
    )
    assert deflection_rescaling(PRESETS[preset], "physical") == 1.0


def test_unknown_distances_are_named() -> None:
    with pytest.raises(SimulationError, match=r"distances='comoving'.*deeplense, physical"):
        einstein_radius2_arcsec2(1.0, "comoving")
