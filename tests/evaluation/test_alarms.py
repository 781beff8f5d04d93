"""Each alarm goes off for its own fault, and for nothing else."""

from pathlib import Path

import numpy as np

from darkarc.data.store import Store
from darkarc.evaluation.alarms import leakage_warnings, target_warnings
from darkarc.evaluation.metrics import Scores, draw_references, score, standard_errors, summarise
from tests.evaluation.conftest import EDGES, gaussian_posterior, make_store, posterior_and_truth

TARGET = "log10_axion_mass_ev"


def warnings_of(scores: Scores, guess: float = 0.5) -> list[str]:
    values, _ = summarise(scores)
    errors = standard_errors(scores, 0, resamples=50)
    return target_warnings(
        TARGET, scores, values, errors, constant_guess=guess, prior=(-24.0, -22.0), coverage_tolerance=0.06
    )


def scored(stated: float = 1.0, n: int = 1000) -> Scores:
    posterior, truth = posterior_and_truth(n, stated=stated)
    return score(posterior, truth, draw_references(EDGES, n, 0))


def test_an_honest_regressor_raises_none() -> None:
    assert warnings_of(scored()) == []


def test_over_and_underconfidence_are_told_apart() -> None:
    assert any("overconfident" in line and "68%" in line for line in warnings_of(scored(stated=0.5)))
    assert any("too cautious" in line for line in warnings_of(scored(stated=2.5)))


def test_a_deviation_within_the_tolerance_is_none_however_many_images_show_it() -> None:
    # Stated widths 8% too large: 68% intervals hold 4 points too many, which 20,000 images prove.
    scores = scored(stated=1.08, n=20_000)
    assert summarise(scores)[0]["coverage_68"] > 0.68 + 10 * np.sqrt(0.68 * 0.32 / 20_000)
    assert warnings_of(scores) == []


def test_few_images_are_no_reason_to_worry() -> None:
    # Coverage of 4 images is off by more than the tolerance whatever happens.
    assert not any("interval" in line for line in warnings_of(scored(n=4)))


def test_no_better_than_a_constant_guess() -> None:
    truth = np.random.default_rng(0).uniform(-24, -22, 500)
    blind = gaussian_posterior(np.full(500, -23.0), 50.0)
    lines = warnings_of(score(blind, truth, truth))
    assert len(lines) == 1 and "no better than a constant guess (0.500 dex)" in lines[0]


def test_truth_outside_the_prior_is_named() -> None:
    posterior, truth = posterior_and_truth(300)
    truth[:2] = -21.5
    lines = warnings_of(score(posterior, truth, truth))
    assert len(lines) == 1 and "2 of 300 true values lie outside the prior range [-24, -22]" in lines[0]


def test_clean_store_has_no_leak(prepared: Store) -> None:
    assert leakage_warnings(prepared) == []


def test_groups_on_both_sides_are_a_leak(tmp_path: Path) -> None:
    store = make_store(
        tmp_path / "leaky", per_class={"axion": 20}, group_of=lambda i: "twin" if i < 2 else f"g{i}"
    )
    lines = leakage_warnings(store)
    assert len(lines) == 1 and "1 groups are in both" in lines[0] and "twin" in lines[0]


def test_identical_pixels_on_both_sides_are_a_leak(tmp_path: Path) -> None:
    store = make_store(tmp_path / "leaky", per_class={"axion": 20}, repeat=True)
    lines = leakage_warnings(store)
    assert len(lines) == 1 and "10 images, pixel for pixel, are in both" in lines[0]
