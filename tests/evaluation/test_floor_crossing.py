"""The second search: it finds the comb of modes that a lattice misses, and changes nothing elsewhere."""

import numpy as np
import pytest
import torch

from darkarc.evaluation.floor import crossing, exact_posterior
from darkarc.evaluation.floor.bank import make_bank
from darkarc.evaluation.floor.crossing import Crossing
from darkarc.evaluation.floor.explore import answer, explored
from darkarc.evaluation.floor.lattice import Request, mass_curve
from darkarc.evaluation.floor.likelihood import pixel_likelihood, windowed
from darkarc.evaluation.floor.posterior import bin_density
from darkarc.models import Posterior
from darkarc.simulation import draw_scenes, get_preset, observe, render, source_plane


@pytest.fixture(scope="module")
def bank():
    return make_bank("model_iii", "deeplense")


def lens(number: int, seed: int = 11):
    scene = draw_scenes("model_iii", "axion", seed, np.array([number]))
    return scene, render("model_iii", scene, noise="physical", seed=seed, indices=np.array([number])).numpy()


@pytest.mark.slow
@torch.no_grad()
def test_a_line_through_the_centre_of_a_pixel_gets_its_mode(bank):
    """A basin 0.001 dex wide: the first lattice's best is 0.2 dex away and 56 nats below the truth."""
    scene, image = lens(1934)
    (one,) = explored(bank, "physical", image)
    node = torch.tensor([[scene.log10_mass_ev[0], scene.angle_rad[0] % np.pi]])
    truth = answer(
        bank, one.likelihood, [Request(node, torch.from_numpy(scene.source_arcsec), -np.inf)]
    ).value
    assert one.lattice.value.max() >= truth[0]
    edges = np.linspace(-24, -22, 8193)
    density = bin_density(mass_curve(one.lattice), edges)[None]
    found = Posterior(edges, density, np.array([[1.0, 0, 0]]), "log10_axion_mass_ev")
    assert abs(found.mean[0] - scene.log10_mass_ev[0]) < 3 * found.std[0]
    assert found.std[0] < 0.03
    # Point masses that pass the pixel one after the other fit alike: the posterior is a comb.
    rows = mass_curve(one.lattice)
    assert np.sum(np.diff(rows.log10_mass_ev) > 1.5 * rows.spacing) >= 5


@pytest.mark.slow
def test_an_image_that_is_explained_keeps_its_posterior_when_it_is_searched_again(monkeypatch):
    """Around a pixel that the line passes: the second search finds the mode that is known."""
    scene, image = lens(3, seed=12)
    assert scene.log10_mass_ev[0] < -22.5  # the line reaches the pixel
    before = exact_posterior(image, "model_iii", "physical")
    y, x = (
        round(31.5 + 0.1 * f(scene.angle_rad[0]) / get_preset("model_iii").instrument.pixel_scale_arcsec)
        for f in (np.sin, np.cos)
    )
    searched = []
    seeds = Crossing.seeds
    monkeypatch.setattr(crossing, "unexplained", lambda *_: (y, x))
    monkeypatch.setattr(Crossing, "seeds", lambda *args: searched.append(seeds(*args)) or searched[0])
    after = exact_posterior(image, "model_iii", "physical")
    assert len(searched) == 1 and searched[0] is not None
    np.testing.assert_array_equal(after.density, before.density)


@torch.no_grad()
def test_the_few_pixels_are_those_of_the_whole_image(bank):
    """Their log-likelihood without the others, PSF and all, in the middle and at an edge."""
    scene, image = lens(7)
    likelihood = pixel_likelihood(bank.preset, "physical", torch.from_numpy(image[0]), 5400.0)
    nodes = torch.stack([torch.tensor([-22.5, -23.3]), torch.tensor([0.4, 2.0])], 1).double()
    source = torch.from_numpy(scene.source_arcsec).expand(2, -1)
    x, y = source_plane(bank.preset, log10_mass_ev=nodes[:, 0], angle_rad=nodes[:, 1], dtype=torch.float32)
    whole = likelihood.terms(observe(bank.preset, x, y, source), None).value
    for rows, columns in (
        (torch.arange(28, 36), torch.arange(20, 31)),
        (torch.arange(4), torch.arange(60, 64)),
    ):
        own = Crossing(bank, likelihood, rows, columns)._pixels(nodes, source)
        wanted = whole[:, rows][:, :, columns].double().sum((1, 2))
        np.testing.assert_allclose(own, wanted, rtol=1e-4)
        part = windowed(likelihood, rows, columns)
        assert part.image.shape == (len(rows), len(columns))
