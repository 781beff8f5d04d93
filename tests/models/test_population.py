"""The joint posterior of many lenses, against closed forms."""

import numpy as np
import pytest

from darkarc.config import DEFAULT_TARGET
from darkarc.models.population import PopulationError, combine
from darkarc.models.posterior import Posterior

EDGES = np.linspace(-24.0, -22.0, 513)
CENTRES = 0.5 * (EDGES[1:] + EDGES[:-1])
WIDTHS = np.diff(EDGES)


def gaussians(mean, sigma, p_axion=1.0) -> Posterior:
    """Posteriors whose densities are Gaussian at the bin centres."""
    mean, sigma, p_axion = np.broadcast_arrays(*np.atleast_1d(mean, sigma, p_axion))
    log_density = -0.5 * ((CENTRES - mean[:, None]) / sigma[:, None]) ** 2
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    density /= (density @ WIDTHS)[:, None]
    classes = np.stack([p_axion, (1 - p_axion) / 2, (1 - p_axion) / 2], axis=1)
    return Posterior(EDGES, density, classes, DEFAULT_TARGET)


def test_product_of_gaussians_has_the_inverse_variance_weighted_mean():
    mean, sigma = np.array([-23.1, -23.0, -22.95]), np.array([0.05, 0.1, 0.08])
    joint = combine(gaussians(mean, sigma))
    weight = sigma**-2
    assert len(joint) == 1
    assert joint.mean[0] == pytest.approx(np.sum(weight * mean) / weight.sum(), abs=1e-6)
    assert joint.std[0] == pytest.approx(weight.sum() ** -0.5, rel=1e-3)


def test_one_axion_lens_is_itself():
    one = gaussians(-23.3, 0.2)
    joint = combine(one)
    np.testing.assert_allclose(joint.density, one.density, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(joint.class_probability, one.class_probability)


def test_a_lens_that_is_not_axion_like_adds_nothing():
    lenses = gaussians([-23.3, -22.5], [0.1, 0.05], [1.0, 0.0])
    np.testing.assert_allclose(combine(lenses).density, lenses.density[:1], rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(combine(lenses[1]).density, 0.5, rtol=1e-12)  # the flat prior on 2 dex


def test_doubtful_lens_is_a_mixture_with_the_prior():
    lens = gaussians(-23.3, 0.1, 0.7)
    np.testing.assert_allclose(combine(lens).density, 0.7 * lens.density + 0.3 * 0.5, rtol=1e-12)


def test_prior_is_counted_once():
    prior = np.exp(-0.5 * ((CENTRES + 23.0) / 0.3) ** 2)
    prior /= prior @ WIDTHS
    likelihood_mean, likelihood_sigma, n = -23.4, 0.25, 4
    density = prior * np.exp(-0.5 * ((CENTRES - likelihood_mean) / likelihood_sigma) ** 2)
    density /= density @ WIDTHS
    lenses = Posterior(EDGES, np.tile(density, (n, 1)), np.tile([1.0, 0, 0], (n, 1)), DEFAULT_TARGET)
    weights = np.array([0.3**-2, n * likelihood_sigma**-2])
    joint = combine(lenses, prior=prior)
    assert joint.mean[0] == pytest.approx(weights @ [-23.0, likelihood_mean] / weights.sum(), abs=1e-6)
    assert joint.std[0] == pytest.approx(weights.sum() ** -0.5, rel=1e-3)


def test_a_thousand_lenses_neither_underflow_nor_lose_the_answer():
    n, sigma = 1000, 0.5
    means = np.random.default_rng(1).normal(-23.0, sigma, n)
    joint = combine(gaussians(means, sigma))
    assert joint.mean[0] == pytest.approx(means.mean(), abs=1e-4)
    assert joint.std[0] == pytest.approx(sigma / np.sqrt(n), rel=1e-2)
    order = np.random.default_rng(2).permutation(n)
    np.testing.assert_allclose(joint.density, combine(gaussians(means[order], sigma)).density, rtol=1e-9)


def test_axion_share_one_ignores_the_class_probability():
    lenses = gaussians([-23.3, -23.2], 0.1, [0.2, 0.4])
    sure = gaussians([-23.3, -23.2], 0.1, 1.0)
    np.testing.assert_allclose(combine(lenses, axion_share=1.0).density, combine(sure).density)


def test_axion_share_rescales_the_odds():
    lens = gaussians(-23.3, 0.1, 0.6)
    odds = 0.6 / 0.4 * (0.1 / 0.9) / (0.75 / 0.25)
    c = odds / (1 + odds)
    joint = combine(lens, axion_share=0.1, trained_share=0.75)
    np.testing.assert_allclose(joint.density, c * lens.density + (1 - c) * 0.5, rtol=1e-12)
    same = combine(lens, axion_share=0.75, trained_share=0.75)
    np.testing.assert_allclose(same.density, combine(lens).density, rtol=1e-12)


def test_credible_intervals_of_populations_have_their_coverage():
    """One mass and N noisy lenses, many times: the 68 % interval holds the mass 68 % of the time."""
    generator = np.random.default_rng(3)
    inside = []
    for _ in range(400):
        mass = generator.uniform(-23.5, -22.5)
        joint = combine(gaussians(generator.normal(mass, 0.1, 5), 0.1))
        low, high = joint.interval(0.68)[0]
        inside.append(low <= mass <= high)
    assert np.mean(inside) == pytest.approx(0.68, abs=3 * np.sqrt(0.68 * 0.32 / 400))


def test_contradicting_lenses_are_named():
    density = np.zeros((3, 512))
    density[:2, 100], density[2, 400] = 1 / WIDTHS[100], 1 / WIDTHS[400]
    lenses = Posterior(EDGES, density, np.tile([1.0, 0, 0], (3, 1)), DEFAULT_TARGET)
    with pytest.raises(PopulationError, match=r"contradict.*1 exclude it \(rows 2\)"):
        combine(lenses)
    doubtful = Posterior(EDGES, density, np.tile([0.9, 0.1, 0], (3, 1)), DEFAULT_TARGET)
    assert combine(doubtful).median[0] == pytest.approx(CENTRES[100], abs=WIDTHS[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axion_share": 0.0}, "in \\(0, 1\\]"),
        ({"axion_share": 0.5}, "needs trained_share"),
        ({"trained_share": 0.5}, "both or neither"),
        ({"prior": np.ones(3)}, "expected 512 densities"),
        ({"prior": np.zeros(512)}, "positive, finite"),
    ],
)
def test_wrong_arguments_say_what_was_expected(arguments, message):
    with pytest.raises(PopulationError, match=message):
        combine(gaussians(-23.3, 0.1), **arguments)


def test_no_lens_and_a_target_that_is_no_common_number_are_refused():
    with pytest.raises(PopulationError, match="at least one lens"):
        combine(gaussians(-23.3, 0.1)[np.array([], dtype=int)])
    other = Posterior(EDGES, gaussians(-23, 0.1).density, [[1.0, 0, 0]], "log10_subhalo_mass_msun")
    with pytest.raises(PopulationError, match="differs from lens to lens"):
        combine(other)
