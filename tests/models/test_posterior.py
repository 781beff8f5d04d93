"""`Posterior` against scipy's histogram distribution, which is written independently of it."""

import numpy as np
import pytest
from scipy.stats import rv_histogram

from darkarc.models import Posterior, PosteriorError

TARGET = "log10_axion_mass_ev"


def make(density: np.ndarray, edges: np.ndarray) -> Posterior:
    density = density / (density @ np.diff(edges))[:, None]
    return Posterior(edges, density, np.full((len(density), 3), 1 / 3), TARGET)


@pytest.fixture
def edges() -> np.ndarray:
    return np.concatenate([[-24.0], -24 + np.cumsum(np.random.default_rng(1).uniform(0.02, 0.2, 17))])


@pytest.fixture
def posterior(edges: np.ndarray) -> Posterior:
    density = np.random.default_rng(2).gamma(0.5, size=(5, 17))
    density[1, :4] = 0.0
    density[2, -4:] = 0.0
    density[3, 5:9] = 0.0
    return make(density, edges)


def oracles(posterior: Posterior) -> list[rv_histogram]:
    return [rv_histogram((row, posterior.edges), density=True) for row in posterior.density]


def test_moments_cdf_and_quantiles_are_scipys(posterior: Posterior) -> None:
    x = np.linspace(posterior.edges[0] - 0.1, posterior.edges[-1] + 0.1, 5)
    levels = [0.01, 0.16, 0.5, 0.84, 0.999]
    for n, oracle in enumerate(oracles(posterior)):
        assert posterior.mean[n] == pytest.approx(oracle.mean(), abs=1e-12)
        assert posterior.std[n] == pytest.approx(oracle.std(), abs=1e-7)
        assert posterior.median[n] == pytest.approx(oracle.median(), abs=1e-12)
        assert posterior.quantile(levels)[n] == pytest.approx(oracle.ppf(levels), abs=1e-12)
        assert posterior.interval(0.9)[n] == pytest.approx(oracle.ppf([0.05, 0.95]), abs=1e-12)
        for value in x:
            assert posterior.cdf(value)[n] == pytest.approx(oracle.cdf(value), abs=1e-12)
    inside = posterior.median + 0.013
    expected = [oracle.logpdf(value) for oracle, value in zip(oracles(posterior), inside, strict=True)]
    assert posterior.log_prob(inside) == pytest.approx(np.array(expected), abs=1e-12)


def test_quantile_inverts_cdf_and_stays_in_the_prior_range(posterior: Posterior) -> None:
    for level in (0.003, 0.3, 0.77):
        assert posterior.cdf(posterior.quantile(level)) == pytest.approx(np.full(5, level), abs=1e-12)
    ends = posterior.quantile([0.0, 1.0])
    assert (ends[:, 0] == posterior.edges[0]).all()
    assert (ends[:, 1] <= posterior.edges[-1]).all() and (np.diff(ends) > 0).all()


def test_all_probability_in_one_bin() -> None:
    edges = np.linspace(-24, -22, 9)
    density = np.zeros((2, 8))
    density[0, 0] = density[1, 7] = 4.0
    spikes = make(density, edges)
    assert spikes.median == pytest.approx([-23.875, -22.125])
    assert spikes.std == pytest.approx(np.full(2, 0.25 / np.sqrt(12)))
    assert spikes.log_prob(-23.9)[1] == -np.inf
    assert spikes.log_prob(-21.0)[1] == -np.inf


def test_samples_follow_the_density_and_the_seed(posterior: Posterior) -> None:
    draws = posterior.samples(40_000, seed=3)
    assert np.array_equal(draws, posterior.samples(40_000, seed=3))
    assert not np.array_equal(draws, posterior.samples(40_000, seed=4))
    for row in range(len(posterior)):
        counts, _ = np.histogram(draws[row], posterior.edges)
        assert counts / 40_000 == pytest.approx(posterior.probability[row], abs=0.012)
        assert counts[posterior.density[row] == 0].sum() == 0


def test_indexing_keeps_images_together(posterior: Posterior) -> None:
    assert len(posterior[2]) == 1
    assert posterior[2].median[0] == pytest.approx(posterior.median[2], abs=1e-12)
    assert posterior[np.array([3, 0])].mean == pytest.approx(posterior.mean[[3, 0]], abs=1e-12)
    assert len(posterior[1:4]) == 3 and len(posterior[posterior.mean > 0]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d * np.nan, "no probability density"),
        (lambda d: d * 1.01, "integrates to 1.01"),
        (lambda d: d - 2 * d.max(), "no probability density"),
        (lambda d: d[:, 1:], "density must be"),
    ],
)
def test_what_is_no_density_is_refused(posterior: Posterior, change, message: str) -> None:
    with pytest.raises(PosteriorError, match=message):
        Posterior(posterior.edges, change(posterior.density), posterior.class_probability, TARGET)


def test_impossible_questions_are_refused(posterior: Posterior) -> None:
    with pytest.raises(PosteriorError, match="between 0 and 1"):
        posterior.quantile(50)
    with pytest.raises(PosteriorError, match="between 0 and 1"):
        posterior.interval(68)
    with pytest.raises(PosteriorError, match="expected one number or 5"):
        posterior.cdf(np.zeros(4))
