"""The information floor: exact posteriors are calibrated, sharp where they can be, and honest where not."""

import json
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from darkarc import config
from darkarc.data.generate import generate
from darkarc.evaluation.floor import NoFloor, exact_posterior, floor_stage
from darkarc.evaluation.floor.bank import make_bank
from darkarc.evaluation.floor.curve import quantiles
from darkarc.evaluation.floor.explore import explored
from darkarc.evaluation.floor.lattice import MassCurve, mass_curve
from darkarc.evaluation.floor.nuisance import LIKELY
from darkarc.evaluation.floor.posterior import bin_density
from darkarc.simulation import draw_scenes, render

N = 10


@pytest.fixture(scope="module")
def lenses():
    scenes = draw_scenes("model_iii", "axion", 77, np.arange(N))
    images = render("model_iii", scenes, noise="physical", seed=77, indices=np.arange(N)).numpy()
    return scenes, images


@pytest.fixture(scope="module")
def posterior(lenses):
    return exact_posterior(lenses[1], "model_iii", "physical")


def test_the_truth_lies_where_the_posterior_says(lenses, posterior):
    """Of 10 images no PIT is as extreme as 1 in 2,000, and pulls have about unit spread."""
    truth = lenses[0].log10_mass_ev
    pit = np.array([posterior[i].cdf(truth[i]).item() for i in range(N)])
    assert np.all((pit > 5e-4) & (pit < 1 - 5e-4))
    pull = (truth - posterior.mean) / posterior.std
    assert 0.4 < np.sqrt(np.mean(pull**2)) < 1.7


def test_light_particles_are_known_to_a_hundredth_of_a_dex_and_heavy_ones_are_not(lenses, posterior):
    truth = lenses[0].log10_mass_ev
    assert np.all(posterior.std[truth < -23.0] < 0.01)
    assert np.all(posterior.std[truth > -22.3] > 0.03)


def test_an_image_has_the_same_posterior_whatever_stands_beside_it(lenses, posterior):
    alone = exact_posterior(lenses[1][3:4], "model_iii", "physical")
    np.testing.assert_array_equal(alone.density[0], posterior.density[3])
    tensor = exact_posterior(torch.from_numpy(lenses[1][3:4]), "model_iii", "physical")
    np.testing.assert_array_equal(alone.density, tensor.density)


def test_images_abreast_have_the_posteriors_they_have_alone(lenses):
    """As a GPU does it: lattices that ask together. Nodes and values are the same to rounding."""
    preset, noise, images = "model_iii", "physical", lenses[1][[1, 3, 4]]
    bank = make_bank(preset, "deeplense")
    with torch.no_grad():
        alone, abreast = (
            [mass_curve(one.lattice) for one in explored(bank, noise, images, number)] for number in (1, 3)
        )
    edges = np.linspace(-24, -22, 129)
    for one, other in zip(alone, abreast, strict=True):
        first, second = bin_density(one, edges), bin_density(other, edges)
        assert np.abs(first - second).sum() * (edges[1] - edges[0]) < 0.01


@pytest.mark.parametrize("noise", ["published", "none"])
def test_a_form_without_noise_has_no_floor_and_says_so(lenses, noise):
    with pytest.raises(NoFloor, match="rounding"):
        exact_posterior(lenses[1], "model_iii", noise)


def test_images_of_another_size_are_refused():
    with pytest.raises(NoFloor, match="64 x 64 pixels, found 32 x 32"):
        exact_posterior(np.ones((1, 32, 32)), "model_iii", "physical")
    with pytest.raises(NoFloor, match="64 x 64 pixels, found 1 x 64 x 64"):
        exact_posterior(np.ones((1, 1, 64, 64)), "model_iii", "physical")


def test_pixels_that_are_no_numbers_are_refused(lenses):
    broken = lenses[1][:2].copy()
    broken[1, 3, :5] = np.nan
    for image in (broken[1:], np.full((1, 64, 64), np.nan)):
        with pytest.raises(NoFloor, match=r"image 0 \(from 0\): \d+ of 4096 pixels are NaN or infinite"):
            exact_posterior(image, "model_iii", "physical")


@pytest.mark.parametrize("name", ["x.png", "x.csv", "x"])
def test_numbers_do_not_go_where_the_figure_does(tmp_path, name, monkeypatch):
    settings = config.parse({"simulate": {"n_axion": 1, "n_cdm": 1, "n_no_sub": 0}})
    store = generate(settings, tmp_path / "store", progress=False)
    monkeypatch.setattr("darkarc.evaluation.floor.stage.stored_posterior", None)  # nothing is computed before
    with pytest.raises(
        NoFloor, match=rf"{name}: expected a file that ends in \.json; the figure goes beside"
    ):
        floor_stage(store, tmp_path / name, images=1, progress=False)
    assert not (tmp_path / name).exists()


def test_its_processes_end_with_a_call_that_is_killed():
    script = (
        "import numpy as np\nfrom darkarc.evaluation.floor import exact_posterior\n"
        "from darkarc.simulation import simulate\n"
        "if __name__ == '__main__':\n"
        "    images = simulate('model_iii', log10_mass_ev=np.full(9, -23.0), noise='physical')\n"
        "    exact_posterior(images, 'model_iii', 'physical', workers=2)\n"
    )
    call = subprocess.Popen([sys.executable, "-c", script])
    deadline, workers = time.monotonic() + 120, []
    while len(workers) < 2 and time.monotonic() < deadline and call.poll() is None:
        time.sleep(0.2)
        children = psutil.Process(call.pid).children()
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    call.kill()
    call.wait()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=120)
    for one in alive:
        one.kill()
    assert not alive


def test_the_stage_scores_a_store(tmp_path):
    settings = config.parse({"simulate": {"n_axion": 4, "n_cdm": 1, "n_no_sub": 0}})
    store = generate(settings, tmp_path / "store", progress=False)
    found = floor_stage(store, tmp_path / "floor.json", images=3, progress=False)
    assert json.loads((tmp_path / "floor.json").read_text()) == found
    assert found["n_images"] == 3
    assert 0 < found["mae_dex"] < 0.2


@pytest.mark.parametrize("spacing", [1e-5, 7e-4, 0.0125])
@pytest.mark.parametrize("bins", [256, 8192])
def test_bins_hold_the_probability_that_a_gaussian_has_in_them(spacing, bins):
    """Narrower than a bin, wider than many, on an edge or off: as the normal distribution function says."""
    from scipy.stats import norm

    edges = np.linspace(-24, -22, bins + 1)
    centre, deviation = -23.0 + 0.2 * spacing, 2 * spacing
    rows = np.arange(-10, 11)
    x = -23.0 + spacing * rows
    y = -0.5 * ((x - centre) / deviation) ** 2
    likely = y > y.max() - LIKELY
    density = bin_density(MassCurve(x[likely], y[likely], spacing, rows[likely]), edges)
    wanted = np.diff(norm.cdf(edges, centre, deviation))
    assert density.sum() * (edges[1] - edges[0]) == pytest.approx(1)
    np.testing.assert_allclose(density * np.diff(edges), wanted, atol=2e-4)


def test_an_end_of_the_prior_cuts_a_posterior_off():
    edges = np.linspace(-24, -22, 257)
    x = np.linspace(-22.1, -22.0, 11)
    density = bin_density(MassCurve(x, np.zeros(11), 0.01, np.arange(11)), edges)
    inside = edges[:-1] >= -22.09
    np.testing.assert_allclose(density[inside], density[-1], rtol=0.02)


def test_nothing_lies_between_two_modes():
    """Rows that are left out were improbable: the logarithm is not drawn across them."""
    edges = np.linspace(-24, -22, 257)
    rows = np.concatenate([np.arange(8), np.arange(60, 68)])
    x = -23.5 + 0.0125 * rows
    probability = bin_density(MassCurve(x, np.zeros(16), 0.0125, rows), edges) * np.diff(edges)
    between = (edges[:-1] > x[7] + 0.0125) & (edges[1:] < x[8] - 0.0125)
    assert between.sum() > 50 and probability[between].sum() < 1e-6
    assert probability[edges[1:] < -23.0].sum() == pytest.approx(0.5)


def test_quantiles_are_those_of_a_gaussian_and_of_a_plateau():
    from scipy.stats import norm

    rows = np.arange(-10, 11)
    curve = MassCurve(-23.0 + 0.01 * rows, -0.5 * (rows / 3) ** 2, 0.01, rows)
    expected = norm.ppf([0.16, 0.5, 0.84], -23.0, 0.03)
    np.testing.assert_allclose(quantiles(curve), expected, atol=2e-4)
    low, middle, high = quantiles(MassCurve(-23.0 + 0.01 * rows, np.zeros(21), 0.01, rows))
    assert middle == pytest.approx(-23.0, abs=1e-6) and low + high == pytest.approx(-46.0, abs=1e-6)
