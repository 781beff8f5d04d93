"""Scores against closed forms, numerical integration and scipy."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kstest, norm

from darkarc.evaluation.binning import by_bin, mass_edges, members, tercile_edges
from darkarc.evaluation.metrics import (
    LEVELS,
    STATISTICS,
    UNIFORMITY,
    Scores,
    coverage,
    crps,
    draw_references,
    score,
    standard_errors,
    summarise,
    tarp,
)
from darkarc.models import Posterior
from tests.evaluation.conftest import EDGES, gaussian_posterior, posterior_and_truth


def scores_of(n: int, seed: int = 0, stated: float = 1.0) -> Scores:
    posterior, truth = posterior_and_truth(n, seed, stated)
    return score(posterior, truth, draw_references(EDGES, n, seed))


def random_posterior(n: int, edges: np.ndarray, seed: int = 0) -> Posterior:
    rng = np.random.default_rng(seed)
    density = rng.exponential(size=(n, len(edges) - 1)) ** 2
    density /= (density * np.diff(edges)).sum(axis=1, keepdims=True)
    return Posterior(edges, density, np.full((n, 3), 1 / 3), "log10_axion_mass_ev")


def test_crps_equals_numerical_integration_on_uneven_bins() -> None:
    edges = np.array([-24.0, -23.7, -23.65, -23.0, -22.4, -22.0])
    posterior = random_posterior(7, edges)
    truth = np.array([-24.0, -23.66, -23.65, -22.9, -22.0, -24.3, -21.5])
    for row in range(7):
        cumulative = np.concatenate([[0.0], np.cumsum(posterior.probability[row])])

        def integrand(x: float, row: int = row, cumulative: np.ndarray = cumulative) -> float:
            return float((np.interp(x, edges, cumulative) - (x >= truth[row])) ** 2)

        breaks = sorted({*edges.tolist(), float(truth[row])})
        expected, _ = quad(integrand, -25.0, -21.0, points=breaks, limit=200)
        assert crps(posterior[row], truth[row : row + 1])[0] == pytest.approx(expected, abs=1e-9)


def test_crps_of_a_normal_posterior_has_its_closed_form() -> None:
    # Gneiting & Raftery 2007, eq. 21.
    edges = np.linspace(-24.0, -22.0, 4001)
    sigma, z = 0.1, np.array([-2.0, 0.0, 0.7, 3.0])
    posterior = gaussian_posterior(np.full(4, -23.0), sigma, edges)
    expected = sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(crps(posterior, -23.0 + sigma * z), expected, rtol=1e-5)


def test_a_uniform_posterior_scores_as_the_closed_forms_say() -> None:
    posterior = Posterior(EDGES, np.full((2, 128), 0.5), np.full((2, 3), 1 / 3), "log10_axion_mass_ev")
    scores = score(posterior, np.array([-23.0, -22.5]), np.array([-24.0, -22.5]))
    np.testing.assert_allclose(scores.log_prob, np.log(0.5))
    np.testing.assert_allclose(scores.pit, [0.5, 0.75])
    np.testing.assert_allclose(scores.std, 2 / np.sqrt(12))
    np.testing.assert_allclose(scores.width_68, 0.68 * 2)
    # Integral of x²/2² over (0, a) and of (1 - x/2)² over (a, 2), a = 1 and 1.5.
    np.testing.assert_allclose(scores.crps, [1 / 12 + 1 / 12, 1.5**3 / 12 + 0.5**3 / 12])
    # Distance 1 from -24 covers half the prior, distance 0 nothing.
    np.testing.assert_allclose(scores.tarp, [0.5, 0.0], atol=1e-12)
    assert scores.prior_bound.tolist() == [False, False]


def test_a_pull_is_counted_from_the_mean_in_standard_deviations() -> None:
    edges = np.array([-24.0, -23.5, -22.0])
    posterior = Posterior(edges, np.array([[1.6, 0.4 / 3]]), np.full((1, 3), 1 / 3), "log10_axion_mass_ev")
    mean = 0.8 * -23.75 + 0.2 * -22.75
    variance = 0.8 * (0.5**2 / 12 + (mean + 23.75) ** 2) + 0.2 * (1.5**2 / 12 + (mean + 22.75) ** 2)
    scores = score(posterior, np.array([-23.0]), np.array([-23.0]))
    assert scores.median[0] == pytest.approx(-24 + 0.5 / 1.6)
    assert scores.error[0] == pytest.approx(scores.median[0] + 23.0)
    assert scores.pull[0] == pytest.approx((-23.0 - mean) / np.sqrt(variance), rel=1e-9)


def test_nll_of_exact_normal_posteriors_is_their_entropy() -> None:
    rng = np.random.default_rng(3)
    sigma = 0.05
    truth = -23.0 + sigma * rng.normal(size=5000)
    posterior = gaussian_posterior(np.full(1, -23.0), sigma, np.linspace(-24, -22, 501))
    everything = Posterior(
        posterior.edges,
        np.repeat(posterior.density, len(truth), axis=0),
        np.full((len(truth), 3), 1 / 3),
        "x",
    )
    values, _ = summarise(score(everything, truth, truth))
    assert values["nll"] == pytest.approx(0.5 * np.log(2 * np.pi * np.e * sigma**2), abs=0.04)


def test_exact_posteriors_are_calibrated() -> None:
    scores = scores_of(8000)
    for level in LEVELS:
        assert coverage(scores.pit, level) == pytest.approx(
            level, abs=4 * np.sqrt(level * (1 - level) / 8000)
        )
    assert kstest(scores.pit, "uniform").pvalue > 1e-3
    assert kstest(scores.tarp, "uniform").pvalue > 1e-3
    values, reasons = summarise(scores)
    assert reasons == {}
    assert values["pull_mean"] == pytest.approx(0.0, abs=0.05)
    assert values["pull_std"] == pytest.approx(1.0, abs=0.05)
    assert values["pull_std_free"] == pytest.approx(1.0, abs=0.05)
    assert 0 < values["prior_bound_share"] < 1


@pytest.mark.parametrize(("stated", "sign"), [(0.5, -1), (2.0, 1)])
def test_wrong_widths_show_in_every_measure_of_calibration(stated: float, sign: int) -> None:
    scores = scores_of(3000, stated=stated)
    for level in LEVELS[:3]:
        assert sign * (coverage(scores.pit, level) - level) > 0.03
    assert kstest(scores.pit, "uniform").pvalue < 1e-6
    assert kstest(scores.tarp, "uniform").pvalue < 1e-6
    values, _ = summarise(scores)
    assert values["pull_std_free"] == pytest.approx(1 / stated, rel=0.25)


def test_proper_scores_prefer_the_true_width() -> None:
    by_width = {stated: summarise(scores_of(3000, stated=stated))[0] for stated in (0.6, 1.0, 1.6)}
    for name in ("nll", "crps_dex"):
        assert min(by_width, key=lambda stated: by_width[stated][name]) == 1.0


def test_tarp_sees_what_coverage_cannot() -> None:
    # The prior as the posterior of every image is calibrated in coverage, and blind; a reference that
    # depends on the image (here: the truth's half of the range) unmasks it.
    truth = np.random.default_rng(0).uniform(-24, -22, 4000)
    blind = Posterior(EDGES, np.full((4000, 128), 0.5), np.full((4000, 3), 1 / 3), "x")
    assert coverage(blind.cdf(truth), 0.68) == pytest.approx(0.68, abs=0.03)
    informed = np.where(truth > -23, -22.0, -24.0)
    assert kstest(tarp(blind, truth, informed), "uniform").pvalue < 1e-6


def test_point_errors_by_hand() -> None:
    centre = np.array([-23.5, -23.0, -22.5])
    truth = centre + np.array([0.1, -0.2, 0.0])
    values, _ = summarise(score(gaussian_posterior(centre, 0.05, np.linspace(-24, -22, 4001)), truth, truth))
    assert values["mae_dex"] == pytest.approx(0.1, abs=1e-6)
    assert values["rmse_dex"] == pytest.approx(np.sqrt(0.05 / 3), abs=1e-6)
    assert values["bias_dex"] == pytest.approx(0.1 / 3, abs=1e-6)
    assert values["r2"] == pytest.approx(1 - 0.05 / np.sum((truth - truth.mean()) ** 2), abs=1e-5)


def test_a_truth_without_density_leaves_the_nll_null_with_a_reason() -> None:
    posterior, truth = posterior_and_truth(10)
    truth[3] = -21.0
    values, reasons = summarise(score(posterior, truth, truth))
    assert values["nll"] is None
    assert reasons["nll"] == "1 of 10 true values have no posterior density at all"
    assert np.isfinite(values["crps_dex"])


def test_images_without_truth_have_blank_scores_but_a_prediction() -> None:
    posterior, truth = posterior_and_truth(5)
    truth[[1, 4]] = np.nan
    scores = score(posterior, truth, draw_references(EDGES, 5, 0))
    for name in ("log_prob", "pit", "crps", "tarp"):
        assert np.isnan(getattr(scores, name)).tolist() == [False, True, False, False, True]
    assert np.isfinite(scores.median).all()


def test_no_images_give_null_with_a_reason() -> None:
    empty = scores_of(4)[np.zeros(4, dtype=bool)]
    values, reasons = summarise(empty)
    assert set(values.values()) == {None}
    assert reasons["mae_dex"] == "no images with a true value"
    assert standard_errors(empty, 0)["mae_dex"] is None


def test_bootstrap_errors_match_the_closed_forms_and_their_seed() -> None:
    scores = scores_of(2000)
    errors = standard_errors(scores, seed=1, resamples=400)
    absolute = np.abs(scores.error)
    assert errors["mae_dex"] == pytest.approx(absolute.std() / np.sqrt(2000), rel=0.15)
    share = coverage(scores.pit, 0.68)
    assert errors["coverage_68"] == pytest.approx(np.sqrt(share * (1 - share) / 2000), rel=0.15)
    assert errors == standard_errors(scores, seed=1, resamples=400)
    assert errors != standard_errors(scores, seed=2, resamples=400)


def test_references_are_reproducible_and_not_the_bare_seeds_stream() -> None:
    np.testing.assert_array_equal(draw_references(EDGES, 9, 5), draw_references(EDGES, 9, 5))
    assert not np.allclose(draw_references(EDGES, 9, 5), np.random.default_rng(5).uniform(-24, -22, 9))


def test_batches_scored_apart_equal_all_at_once() -> None:
    posterior, truth = posterior_and_truth(50)
    references = draw_references(EDGES, 50, 0)
    whole = score(posterior, truth, references)
    parts = [score(posterior[part], truth[part], references[part]) for part in (slice(0, 17), slice(17, 50))]
    joined = Scores.concatenate(parts)
    for name in ("median", "crps", "pit", "tarp", "log_prob", "prior_bound"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), rtol=1e-12)


def test_bins_hold_every_image_once_and_their_own_errors() -> None:
    scores = scores_of(900)
    rows = by_bin(scores, scores.truth, mass_edges(-24.0, -22.0, 4), seed=0)
    assert sum(row["n"] for row in rows) == 900
    inside = (scores.truth >= -23.5) & (scores.truth < -23.0)
    assert rows[1]["n"] == inside.sum()
    assert rows[1]["mae_dex"] == pytest.approx(np.abs(scores.error[inside]).mean())
    weighted = sum(row["n"] * row["mae_dex"] for row in rows) / 900
    assert weighted == pytest.approx(np.abs(scores.error).mean())
    assert set(STATISTICS) | set(UNIFORMITY) < set(rows[0])
    assert rows[1]["pit_ks"] == pytest.approx(kstest(scores.pit[inside], "uniform").statistic)
    assert rows[1]["tarp_ks"] == pytest.approx(kstest(scores.tarp[inside], "uniform").statistic)


def test_bins_without_images_are_null_and_the_last_edge_counts() -> None:
    posterior = gaussian_posterior(np.array([-22.1, -22.05]), 0.05)
    scores = score(posterior, np.array([-22.0, -22.2]), np.array([-23.0, -23.0]))
    rows = by_bin(scores, scores.truth, mass_edges(-24.0, -22.0, 4), seed=0)
    assert [row["n"] for row in rows] == [0, 0, 0, 2]
    assert rows[0]["mae_dex"] is None and rows[0]["mae_dex_se"] is None and rows[0]["pit_ks"] is None
    assert members(np.array([-25.0, -21.0]), mass_edges(-24, -22, 4)).tolist() == [0, 3]


def test_exact_posteriors_are_calibrated_by_prediction_but_not_by_truth() -> None:
    # A truth from the uniform prior, seen once with normal noise: the cut-off normal is its exact posterior.
    rng = np.random.default_rng(0)
    truth = rng.uniform(-24.0, -22.0, 9000)
    scores = score(gaussian_posterior(truth + 0.6 * rng.normal(size=9000), 0.6), truth, truth)

    def worst(values: np.ndarray) -> tuple[float, float]:
        rows = by_bin(scores, values, tercile_edges(values), seed=0)
        return max(abs(row["coverage_68"] - 0.68) for row in rows), max(row["pit_ks"] for row in rows)

    off, distance = worst(scores.median)
    assert off < 4 * np.sqrt(0.68 * 0.32 / 3000) and distance < 1.95 / np.sqrt(3000)  # by chance 1 in 1,000
    off, distance = worst(scores.truth)
    assert off > 0.03 and distance > 0.1


def test_terciles_hold_a_third_each() -> None:
    truth = np.random.default_rng(0).uniform(-24, -22, 300)
    assert np.bincount(members(truth, tercile_edges(truth))).tolist() == [100, 100, 100]
