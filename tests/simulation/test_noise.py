"""Noise forms against lenstronomy's own and DeepLenseSim's recipe, over a thousand draws."""

import lenstronomy_oracle as oracle
import numpy as np
import pytest
import torch
from lenstronomy.Util import image_util

from darkarc.simulation import PRESETS, add_keyed_noise, add_noise, draw_scenes, noise_moments, render
from darkarc.simulation.counter import hash_indices

DRAWS = 1000
PATCH = slice(50, 90)


def bright_patch(name: str) -> tuple[np.ndarray, float]:
    """Part of an image with arc and sky in it, and its exposure time."""
    scenes = draw_scenes(name, "axion", 8, [4])
    image = render(name, scenes, dtype="float64")[0].numpy()
    if name == "model_i":
        image = image[PATCH, PATCH]
    return image, float(scenes.exposure_s[0])


def draws(name: str, noise: str) -> tuple[np.ndarray, np.ndarray, float]:
    """A thousand noisy forms (n, H, W) of one image, the image, its exposure time."""
    image, seconds = bright_patch(name)
    noisy = add_noise(
        PRESETS[name],
        np.broadcast_to(image, (DRAWS, *image.shape)),
        np.full(DRAWS, seconds),
        noise=noise,
        seed=3,
        class_index=np.zeros(DRAWS, dtype=int),
        indices=np.arange(DRAWS),
    )
    return noisy, image, seconds


def assert_moments(noisy: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> None:
    """Every pixel's sample mean and variance within five or so of their standard errors."""
    pulls = (noisy.mean(0) - mean) / np.sqrt(variance / DRAWS)
    assert np.abs(pulls).max() < 5.5 and abs(pulls.mean()) < 0.2 and 0.9 < pulls.std() < 1.1
    ratio = noisy.var(0, ddof=1) / variance
    assert np.abs(ratio - 1).max() < 0.35 and abs(ratio.mean() - 1) < 0.01


@pytest.mark.parametrize("name", ["model_ii", "model_iii"])
def test_physical_noise_is_lenstronomys(name: str) -> None:
    noisy, image, seconds = draws(name, "physical")
    api = oracle.noise_api(name, seconds)
    assert PRESETS[name].instrument.background_sigma(seconds) == pytest.approx(
        api.background_noise, rel=1e-12
    )
    variance = api.background_noise**2 + api.flux_noise(image) ** 2
    assert_moments(noisy, image, variance)
    rng = np.random.RandomState(0)
    theirs = np.stack([image + api.noise_for_model(image, seed=rng.randint(2**31)) for _ in range(DRAWS)])
    assert_moments(theirs, image, variance)
    assert np.median(noisy.std(0) / theirs.std(0)) == pytest.approx(1, abs=0.01)


def test_published_model_i_is_deeplensesims_recipe() -> None:
    noisy, image, seconds = draws("model_i", "published")
    assert (noisy == np.round(noisy)).all() and noisy.min() == 0 and noisy.max() > 50
    np.random.seed(7)
    recipe = []
    for _ in range(DRAWS):
        rate = image + image_util.add_poisson(image, seconds) + image_util.add_background(image, 1e-2)
        recipe.append(np.random.poisson((seconds * rate).clip(min=0)))
    theirs = np.stack(recipe).astype(float)
    mean, variance = (
        part.numpy()
        for part in noise_moments(
            PRESETS["model_i"], torch.from_numpy(image), noise="published", exposure_s=seconds
        )
    )
    assert_moments(noisy, mean, variance)
    assert_moments(theirs, mean, variance)
    # The whole distribution, the heap at nought included: shares of some counts over all draws and pixels.
    for count in (0, 1, 5, 20):
        share, expected = (noisy == count).mean(), (theirs == count).mean()
        assert share == pytest.approx(expected, abs=5e-3 * max(expected, 0.1))


def test_physical_model_i_has_each_noise_once() -> None:
    noisy, image, seconds = draws("model_i", "physical")
    assert_moments(noisy, seconds * image, seconds * image + (seconds * 1e-2) ** 2)
    twice = noise_moments(PRESETS["model_i"], torch.from_numpy(image), noise="published", exposure_s=seconds)[
        1
    ]
    bright = image > 0.5 * image.max()
    assert (noisy.var(0)[bright] < 0.8 * twice.numpy()[bright]).all()


@pytest.mark.parametrize("name", ["model_ii", "model_iii"])
def test_published_ii_and_iii_are_the_doubled_model(name: str) -> None:
    noisy, image, _ = draws(name, "published")
    assert (noisy == 2 * image).all()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("noise", ["none", "published", "physical"])
def test_moments_are_those_of_the_draws(name: str, noise: str) -> None:
    noisy, image, seconds = draws(name, noise)
    mean, variance = (
        part.numpy()
        for part in noise_moments(PRESETS[name], torch.from_numpy(image), noise=noise, exposure_s=seconds)
    )
    if variance.any():
        assert_moments(noisy, mean, variance)
    else:
        assert (noisy == mean).all()


def test_draws_of_a_sample_are_its_own() -> None:
    image = np.ones((3, 4, 4))
    arguments = {"noise": "physical", "class_index": np.array([0, 0, 1]), "indices": [5, 6, 5]}
    first = add_noise(PRESETS["model_iii"], image, np.full(3, 5400.0), seed=1, **arguments)
    assert len(np.unique(first)) == 48
    other = add_noise(PRESETS["model_iii"], image, np.full(3, 5400.0), seed=2, **arguments)
    assert not np.isin(other, first).any()


@pytest.mark.parametrize("noise", ["none", "published", "physical"])
@pytest.mark.parametrize("name", list(PRESETS))
def test_keyed_noise_has_the_moments_of_the_stored_forms(name: str, noise: str) -> None:
    image, seconds = bright_patch(name)
    model = torch.from_numpy(image).float()
    noisy = add_keyed_noise(
        PRESETS[name],
        model.expand(DRAWS, *image.shape),
        np.full(DRAWS, seconds),
        noise=noise,
        keys=hash_indices(1, 2, torch.arange(DRAWS)),
    )
    assert noisy.dtype == torch.float32
    mean, variance = noise_moments(
        PRESETS[name], torch.from_numpy(image), noise=noise, exposure_s=torch.tensor(seconds)
    )
    if not bool(variance.any()):
        assert noisy[7].double().numpy() == pytest.approx(mean.numpy(), rel=1e-6)
        return
    assert_moments(noisy.double().numpy(), mean.numpy(), variance.numpy())
    if noise == "published":
        assert torch.equal(noisy, noisy.round()) and float(noisy.min()) >= 0


def test_keyed_noise_is_that_of_each_images_own_exposure() -> None:
    """Model I's exposures differ from image to image."""
    seconds, model = np.array([1000.0, 3000.0]), torch.full((2, 100, 100), 0.2, dtype=torch.float64)
    for noise in ("published", "physical"):
        keys = hash_indices(1, 2, torch.arange(2))
        noisy = add_keyed_noise(PRESETS["model_i"], model, seconds, noise=noise, keys=keys)
        for image, own in zip(noisy, seconds, strict=True):
            # Counts t f of an exposure t, with the photon noise once or twice, and the background of 0.01.
            photons = {"published": 2, "physical": 1}[noise] * 0.2 * own
            assert image.mean().item() == pytest.approx(0.2 * own, rel=0.02), (noise, own)
            assert image.var().item() == pytest.approx(photons + (0.01 * own) ** 2, rel=0.1), (noise, own)
