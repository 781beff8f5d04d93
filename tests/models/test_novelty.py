"""The novelty against closed forms, and as a score of simulated lenses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from darkarc.config import ModelConfig
from darkarc.data.form import DataForm
from darkarc.evaluation.strangers import Studio
from darkarc.models import RARE, VERY_RARE, Regressor, RegressorSpec, load_regressor, save_regressor
from darkarc.models.novelty import BANDS, DIRECTIONS, Mixture, Novelty, Texture
from darkarc.simulation import draw_scenes, render


def test_the_power_spectrum_is_that_of_the_fourier_transform():
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 1, 24, 20)))
    pixels = images[:, 0].numpy() / 2.0
    power = np.abs(np.fft.rfft2(pixels - pixels.mean(axis=(1, 2), keepdims=True))) ** 2
    radius = np.hypot(np.fft.fftfreq(24)[:, None], np.fft.rfftfreq(20)[None])
    found = Texture((24, 20), 2.0)(images)
    for k in (2, 7, BANDS - 1):
        ring = (radius > k / (2 * BANDS)) & (radius <= (k + 1) / (2 * BANDS))
        np.testing.assert_allclose(found[:, k], np.log(power[:, ring].mean(axis=1)), atol=1e-4)


@pytest.mark.parametrize("n_features", [3, DIRECTIONS + 20])
def test_a_mixture_of_few_images_is_one_gaussian(n_features):
    """With too few images for two components, surprise is half the squared Mahalanobis distance."""
    rng = np.random.default_rng(1)
    correlated = rng.normal(size=(n_features, n_features))
    values = torch.from_numpy(rng.normal(size=(300, n_features)) @ correlated)
    mixture = Mixture(n_features, 8)
    mixture.fit(values)
    surprise = mixture(values.float()).double().numpy()
    if n_features > DIRECTIONS:
        far = torch.from_numpy(rng.normal(size=(5, n_features))) * 30
        assert mixture(far.float()).min() > surprise.max(), "what lies outside of the directions counts"
        return
    expected = -multivariate_normal(values.numpy().mean(axis=0), np.cov(values.numpy().T)).logpdf(values)
    # Up to a constant and the ridge of 1%.
    np.testing.assert_allclose(np.diff(surprise), np.diff(expected) / 1.01, atol=0.05)


def test_an_input_that_varies_by_rounding_alone_moves_nothing():
    """A unit that never fires gives its constant to rounding, which another runtime rounds otherwise."""
    rng = np.random.default_rng(4)
    values = rng.normal(size=(500, DIRECTIONS + 20))
    values[:, -16:] *= 1e-6
    mixture = Mixture(values.shape[1], 8)
    mixture.fit(torch.from_numpy(values))
    rounded = values + np.where(np.arange(values.shape[1]) < DIRECTIONS + 4, 0, 1e-5)
    before, after = (mixture(torch.from_numpy(x).float()) for x in (values, rounded))
    assert (after - before).abs().max() < 0.5
    assert before.std() > 1


def test_several_components_see_a_hole_between_groups():
    rng = np.random.default_rng(2)
    groups = np.concatenate([rng.normal(-5, 0.3, size=(400, 2)), rng.normal(5, 0.3, size=(400, 2))])
    mixture = Mixture(2, 8)
    mixture.fit(torch.from_numpy(groups))
    middle, members = mixture(torch.zeros(1, 2)), mixture(torch.from_numpy(groups).float())
    assert middle > 20 + members.max()


def lenses(seed: int, n: int, noise: str = "physical") -> np.ndarray:
    return render(
        "model_iii", draw_scenes("model_iii", "axion", seed, range(n)), noise=noise, seed=seed
    ).numpy()


@pytest.fixture(scope="module")
def fitted() -> Regressor:
    """An untrained backbone, whose random features are those of an image even so."""
    return fitted_regressor()


def fitted_regressor(form: dict[str, str] | None = None, **model) -> Regressor:
    train = lenses(0, 600)
    statistics = {"mean": float(train.mean()), "std": float(train.std())}
    section = ModelConfig(width=0.25, bins=16, **model).model_dump()
    torch.manual_seed(0)
    target = {"log10_axion_mass_ev": (-24.0, -22.0)}
    regressor = Regressor(RegressorSpec(target, (64, 64), section, statistics, "model_iii", form)).eval()
    assert regressor.novelty is not None
    seen = []
    for images in (train, lenses(1, 500)):
        batch = torch.from_numpy(images[:, None])
        with torch.inference_mode():
            seen.append(regressor.novelty.measure(batch, *regressor.seen(batch)))
    regressor.novelty.fit(*seen)
    return regressor


def test_one_in_a_hundred_is_rare(fitted):
    novelty = fitted.predict(lenses(2, 400)).novelty
    assert novelty is not None
    assert 0.2 < (novelty > 0.301).mean() < 0.8
    assert (novelty > RARE).mean() < 0.04
    assert (novelty > VERY_RARE).mean() < 0.01


def test_what_a_backbone_overlooks_is_seen(fitted):
    bare, noisy = lenses(2, 40, "none"), lenses(2, 40)
    strange = {
        "doubled noise": bare + 2 * (noisy - bare),
        "half the noise": bare + 0.5 * (noisy - bare),
        "smoothed": 0.5 * noisy + 0.25 * np.roll(noisy, 1, 1) + 0.25 * np.roll(noisy, -1, 1),
        "upside down in brightness": noisy.max() - noisy,
        "constant": np.ones_like(noisy),
        "garbage": np.full_like(noisy, 1e20),
    }
    for name, images in strange.items():
        novelty = fitted.predict(images).novelty
        assert np.isfinite(novelty).all() and (novelty > VERY_RARE).mean() > 0.95, name


def test_it_travels_with_the_weights_and_old_ones_have_none(fitted, tmp_path):
    images = lenses(3, 5)
    save_regressor(fitted, tmp_path / "saved")
    np.testing.assert_array_equal(
        load_regressor(tmp_path / "saved").predict(images).novelty, fitted.predict(images).novelty
    )
    section = {key: value for key, value in fitted.spec.model.items() if key != "novelty"}
    text = fitted.spec.to_json().replace('"novelty": "full",', "").replace(',\n    "novelty": "full"', "")
    old = RegressorSpec.from_json(text)
    assert old.model == {**section, "novelty": "none"}
    posterior = Regressor(old).predict(images)
    assert posterior.novelty is None
    assert fitted.predict(images)[1:3].novelty.shape == (2,)


def test_the_score_is_the_logarithm_of_a_rarity():
    """Where strangeness is exponential, as its tail is taken for, it is so at every share."""
    novelty = Novelty(2, (16, 16), 1.0)
    novelty.quantiles.copy_(-torch.log(1 - torch.tensor([0.5, 0.9, 0.99])))
    shares = torch.tensor([0.5, 0.2, 0.1, 0.03, 0.01, 0.001])
    torch.testing.assert_close(novelty._rarity(-torch.log(shares)), -torch.log10(shares), atol=1e-4, rtol=0)


def test_one_strange_look_is_enough():
    """The stranger of two looks counts, not their mean: each is ordinary in the other."""
    rng = np.random.default_rng(9)
    novelty = Novelty(3, (16, 16), 1.0)
    images = torch.from_numpy(rng.normal(size=(900, 1, 16, 16))).float()
    features = torch.from_numpy(rng.normal(size=(900, 3))).float()
    seen = novelty.measure(images, features, images)
    novelty.fit([look[:600] for look in seen], [look[600:] for look in seen])
    images, features = images[:20], features[:20]
    ordinary, other = novelty(images, features, images), novelty(images, 8 + features, images)
    surprise = novelty._surprise(novelty.measure(images, 8 + features, images))
    of_features = ((surprise - novelty.typical) / novelty.scale)[:, 0]
    torch.testing.assert_close(other, novelty._rarity(of_features))
    assert ordinary.median() < 1 and bool((other > VERY_RARE).all())
    assert bool((novelty(3 * images, features, images) > VERY_RARE).all())


def test_unfitted_it_suspects_nothing():
    novelty = Novelty(4, (16, 16), 1.0)
    scores = novelty(torch.randn(6, 1, 16, 16), torch.randn(6, 4), torch.randn(6, 1, 16, 16))
    assert bool((scores < 1).all())


def test_a_fitted_lens_tells_a_point_spread_function_a_little_too_wide(tmp_path):
    """A fifth wider: features and texture see it in few images, the blur of the residual in most."""
    form = {"preset": "model_iii", "noise": "physical", "distances": "deeplense"}
    studio = Studio(DataForm(**form), 60, 5)
    instrument = studio.preset.instrument
    wider = studio.through(replace(instrument, psf_fwhm_arcsec=1.2 * instrument.psf_fwhm_arcsec))
    seen = {}
    for name in ("mixture", "full"):
        regressor = fitted_regressor(form, lens_residual="compact", lens_fit="source", novelty=name)
        assert (regressor.predict(studio.stored(studio.model)).novelty > RARE).mean() < 0.1
        seen[name] = (regressor.predict(wider).novelty > RARE).mean()
    assert seen["full"] > 0.6 and seen["full"] > seen["mixture"] + 0.2
    save_regressor(regressor, tmp_path / "saved")
    found = load_regressor(tmp_path / "saved").predict(wider).novelty
    np.testing.assert_array_equal(found, regressor.predict(wider).novelty)
