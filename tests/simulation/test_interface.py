"""`darkarc.simulate` as people call it."""

import numpy as np
import pytest

from darkarc.simulation import SimulationError, draw_scenes, render, simulate

SUBHALOES = {"subhalo_log10_mass_msun": [[9.0]], "subhalo_arcsec": [[[0.5, 0.5]]]}


def test_the_example_of_the_documentation() -> None:
    images = simulate(
        "model_iii",
        log10_mass_ev=[-23.5],
        angle_rad=[0.3],
        source_arcsec=[[0.05, -0.1]],
        noise="none",
        seed=0,
    )
    assert images.shape == (1, 64, 64) and images.dtype == np.float64
    assert images.min() > 0


def test_scalars_and_single_rows_are_repeated() -> None:
    images = simulate("model_ii", log10_mass_ev=[-24, -23, -22], angle_rad=0.3, source_arcsec=[0.1, 0.0])
    assert images.shape == (3, 64, 64)
    alone = simulate("model_ii", log10_mass_ev=-23, angle_rad=0.3, source_arcsec=[[0.1, 0.0]])
    assert np.array_equal(images[1], alone[0])


def test_what_is_not_given_is_drawn_from_the_priors() -> None:
    scenes = draw_scenes("model_i", "axion", 4, range(2))
    whole = render("model_i", scenes, noise="published", seed=4, dtype="float64").numpy()
    images = simulate("model_i", log10_mass_ev=scenes.log10_mass_ev, noise="published", seed=4)
    assert np.array_equal(images, whole)
    assert not np.array_equal(images, simulate("model_i", log10_mass_ev=scenes.log10_mass_ev, seed=4))


def test_mirrored_lens_gives_the_mirrored_image() -> None:
    """The lens is symmetric and a vortex reversed is the same vortex; only the source's shape is not."""
    images = simulate("model_iii", log10_mass_ev=-23.2, angle_rad=[0.4, 0.4 + np.pi], source_arcsec=[0, 0.1])
    assert np.abs(images[0] / images[1] - 1).max() < 1e-9


def test_every_class_and_option_changes_the_image() -> None:
    source = {"source_arcsec": [0.1, 0.05]}
    images = [
        simulate("model_iii", **source),
        simulate("model_iii", **source, distances="physical"),
        simulate("model_iii", **source, noise="published"),
        simulate("model_iii", **source, noise="physical"),
        simulate("model_iii", **source, noise="physical", seed=1),
        simulate("model_iii", **source, noise="physical", exposure_s=100.0),
        simulate("model_iii", **source, **SUBHALOES),
        simulate("model_iii", **source, log10_mass_ev=-23.0, angle_rad=1.0),
        simulate("model_iii", **source, dtype="float32"),
    ]
    for i, image in enumerate(images):
        assert all(not np.array_equal(image, other) for other in images[:i])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"log10_mass_ev": [-23, 1e-23]},
            r"log10_mass_ev: expected log10 .*, found 1e-23, evidently the mass itself; .* -23$",
        ),
        ({"log10_mass_ev": [np.nan]}, "log10_mass_ev: expected finite numbers, found nan"),
        ({"source_arcsec": [[0.1, 0.2, 0.3]]}, r"source_arcsec: expected .*\(N, 2\), found \(1, 3\)"),
        ({"log10_mass_ev": [-23, -23], "angle_rad": [1, 2, 3]}, "log10_mass_ev holds 2 lenses.* 3"),
        ({"angle_rad": [1.0]}, "angle_rad without log10_mass_ev"),
        ({"log10_mass_ev": -23.0, **SUBHALOES}, "not both"),
        ({"subhalo_log10_mass_msun": [[9.0]]}, "subhalo_log10_mass_msun alone"),
        ({**SUBHALOES, "subhalo_log10_mass_msun": [[9.0, 8.0]]}, "two coordinates for each"),
        ({"exposure_s": 0.0}, "exposure_s: expected times above 0"),
        ({"noise": "loud"}, "noise='loud'"),
        ({"seed": -3}, "seed=-3"),
    ],
)
def test_bad_parameters_are_named(arguments, message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        simulate("model_iii", **arguments)
