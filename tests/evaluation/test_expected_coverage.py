"""Coverage by true value: what calibrated posteriors would have."""

from itertools import pairwise

import numpy as np
import pytest

from darkarc.evaluation.binning import add_expected_coverage, cumulative_at, expected_coverage, mass_edges
from darkarc.models.posterior import Posterior

EDGES = np.linspace(-24.0, -22.0, 201)


def posteriors(weights: np.ndarray) -> Posterior:
    """Posteriors (N, 200) with these bin weights."""
    probability = weights / weights.sum(axis=1, keepdims=True)
    return Posterior(
        EDGES, probability / np.diff(EDGES), np.full((len(weights), 3), 1 / 3), "log10_axion_mass_ev"
    )


def test_who_answers_with_the_prior_covers_the_middle_always_and_the_ends_rarely() -> None:
    cumulative = cumulative_at(posteriors(np.ones((3, 200))), mass_edges(-24.0, -22.0, 4))
    # The 68% interval of the prior reaches from 0.16 to 0.84 of its range: 0.09 of the first quarter.
    np.testing.assert_allclose(expected_coverage(cumulative, 0.68), [0.36, 1, 1, 0.36], atol=1e-12)
    np.testing.assert_allclose(expected_coverage(cumulative, 0.9), [0.8, 1, 1, 0.8], atol=1e-12)


def test_truths_drawn_from_the_posteriors_are_covered_as_expected() -> None:
    rng = np.random.default_rng(3)
    centre, width = rng.uniform(-24, -22, 400), 10 ** rng.uniform(-1.7, 0.2, 400)
    middles = 0.5 * (EDGES[1:] + EDGES[:-1])
    # Skewed and cut off by the prior's ends: neither symmetric nor alike.
    distance = (middles - centre[:, None]) / width[:, None]
    given = posteriors(np.exp(-0.5 * distance**2) * (1 + 0.9 * np.tanh(distance)))
    edges = mass_edges(-24.0, -22.0, 5)
    truth = given.samples(500, seed=1)
    for level in (0.5, 0.68, 0.9, 0.95):
        low, high = given.interval(level).T[:, :, None]
        covered = (truth >= low) & (truth <= high)
        seen = [covered[(truth >= a) & (truth < b)].mean() for a, b in pairwise(edges)]
        expected = expected_coverage(cumulative_at(given, edges), level)
        np.testing.assert_allclose(expected, seen, atol=0.01)
        assert np.ptp(expected) > 0.03, "by true value calibrated intervals differ"
        # Together they are nominal, in the shares in which truths fall into the bins.
        share = np.diff(cumulative_at(given, edges), axis=1).mean(axis=0)
        assert float(share @ expected) == pytest.approx(level, abs=1e-9)


def test_a_bin_that_no_posterior_reaches_has_no_number() -> None:
    weights = np.zeros((2, 200))
    weights[:, :40] = 1.0
    rows = [{"n": 2}, {"n": 0}]
    add_expected_coverage(rows, cumulative_at(posteriors(weights), mass_edges(-24.0, -22.0, 2)))
    assert rows[0]["coverage_68_expected"] == pytest.approx(0.68) and rows[1]["coverage_68_expected"] is None
    assert set(rows[1]) == {"n", *(f"coverage_{level}_expected" for level in (50, 68, 90, 95))}
