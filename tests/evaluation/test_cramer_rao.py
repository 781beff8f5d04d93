"""The Cramer-Rao bound against finite differences and against the width of exact posteriors."""

import numpy as np
import pytest
import torch

from darkarc.evaluation.floor import NoFloor, cramer_rao, exact_posterior
from darkarc.evaluation.floor.cramer_rao import fisher_information, marginal_sigma
from darkarc.simulation import Scenes, draw_scenes, get_preset, model_image, noise_moments, render


def parameters_of(preset: str, scenes: Scenes) -> torch.Tensor:
    columns = [scenes.log10_mass_ev, scenes.angle_rad, *scenes.source_arcsec.T]
    if get_preset(preset).counts:
        columns.append(np.log(scenes.exposure_s))
    return torch.from_numpy(np.stack(columns, axis=1))


@pytest.mark.parametrize(("preset", "noise"), [("model_iii", "physical"), ("model_i", "published")])
def test_information_is_that_of_finite_differences(preset: str, noise: str) -> None:
    scenes = draw_scenes(preset, "axion", 2, range(40))
    scenes = scenes[np.flatnonzero(scenes.log10_mass_ev > -22.9)[:2]]
    parameters = parameters_of(preset, scenes)

    def moments(values: torch.Tensor) -> list[torch.Tensor]:
        rate = model_image(preset, values[:, 2:4], log10_mass_ev=values[:, 0], angle_rad=values[:, 1])
        seconds = values[:, 4].exp() if values.shape[1] == 5 else torch.full((len(values),), 5400.0)
        return list(
            noise_moments(get_preset(preset), rate, noise=noise, exposure_s=seconds.double()[:, None, None])
        )

    slopes = []
    for k in range(parameters.shape[1]):
        step = torch.zeros_like(parameters)
        step[:, k] = 1e-7
        above, below = moments(parameters + step), moments(parameters - step)
        slopes.append([(a - b).flatten(1).numpy() / 2e-7 for a, b in zip(above, below, strict=True)])
    mean, variance = (np.stack([slope[n] for slope in slopes], axis=1) for n in (0, 1))
    v = moments(parameters)[1].flatten(1).numpy()[:, None]
    expected = np.einsum("npx,nqx->npq", mean / v, mean)
    expected += 0.5 * np.einsum("npx,nqx->npq", variance / v**2, variance)
    found = fisher_information(preset, noise, parameters)
    scale = np.sqrt(np.einsum("npp->np", expected))
    difference = (found - expected) / (scale[:, :, None] * scale[:, None, :])
    assert np.abs(difference).max() < 1e-4


def test_the_bound_is_the_width_of_gaussian_posteriors() -> None:
    """Where a particle is light enough to be measured and the likelihood has one smooth top."""
    scenes = draw_scenes("model_iii", "axion", 21, range(60))
    chosen = np.flatnonzero((scenes.log10_mass_ev > -23.1) & (scenes.log10_mass_ev < -22.7))[:6]
    scenes = scenes[chosen]
    images = render("model_iii", scenes, noise="physical", seed=21, indices=chosen).numpy()
    width = exact_posterior(images, "model_iii", "physical", bins=8192).std
    bound = marginal_sigma(fisher_information("model_iii", "physical", parameters_of("model_iii", scenes)))
    assert np.median(width / bound) == pytest.approx(1.0, abs=0.15)
    assert (width / bound > 0.6).all()


def test_the_bound_loosens_towards_heavy_particles() -> None:
    found = cramer_rao("model_ii", "physical", masses=5, scenes=2)
    middle = found.quantile(0.5)
    assert found.sigma_dex.shape == (5, 2)
    assert middle[0] < 0.02 and (np.diff(middle[1:]) > 0).all() and middle[-1] > 0.2


def test_a_form_without_noise_has_no_bound() -> None:
    with pytest.raises(NoFloor, match="rounding"):
        cramer_rao("model_ii", "published")
