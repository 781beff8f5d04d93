"""Recalibration against posteriors whose miscalibration is known."""

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize
from torch._subclasses.fake_tensor import FakeTensorMode

from darkarc.models import Posterior, Recalibration
from darkarc.models import recalibration as module
from darkarc.models.heads import Grid

LOW, HIGH, BINS = -24.0, -22.0, 256
GRID = Grid(LOW, HIGH, BINS)


def gaussian_case(n: int, claimed: float, true: float, bias: float = 0.0, seed: int = 0):
    """Logits of Gaussians of width `claimed` around means that are off by draws of width `true`."""
    generator = np.random.default_rng(seed)
    mean = generator.uniform(-23.5, -22.5, n)
    truth = torch.tensor(mean + bias + true * generator.normal(size=n))
    logits = -0.5 * ((GRID.centres[None].double() - torch.tensor(mean)[:, None]) / claimed) ** 2
    return logits, (truth - LOW) / GRID.width, truth.numpy()


def posterior(recalibration: Recalibration, logits: torch.Tensor) -> Posterior:
    density = recalibration(logits).numpy() / GRID.width
    classes = np.tile([1.0, 0.0, 0.0], (len(density), 1))
    return Posterior(GRID.edges.numpy(), density, classes, "log10_axion_mass_ev")


def coverage(answer: Posterior, truth: np.ndarray, level: float) -> float:
    low, high = answer.interval(level).T
    return float(np.mean((truth >= low) & (truth <= high)))


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_the_temperature_of_a_gaussian_is_the_square_of_its_width_ratio(ratio):
    """A Gaussian's logits scale with 1 / width²."""
    logits, place, _ = gaussian_case(20_000, claimed=0.05, true=0.05 * ratio)
    recalibration = Recalibration("temperature")
    recalibration.fit(logits, place)
    assert float(recalibration.temperature) == pytest.approx(ratio**2, rel=0.03)


@pytest.mark.parametrize("method", ["temperature", "isotonic", "conformal", "local"])
@pytest.mark.parametrize("ratio", [0.6, 1.7])
def test_coverage_becomes_nominal_on_new_images(method, ratio):
    recalibration = Recalibration(method)
    recalibration.fit(*gaussian_case(4000, 0.05, 0.05 * ratio, seed=1)[:2])
    logits, _, truth = gaussian_case(4000, 0.05, 0.05 * ratio, seed=2)
    answer = posterior(recalibration, logits)
    for level in (0.5, 0.68, 0.9):
        error = np.sqrt(2 * level * (1 - level) / 4000)  # of the calibration and of the test sample
        assert coverage(answer, truth, level) == pytest.approx(level, abs=4 * error + 0.005), level


def two_sided_case(n: int, seed: int):
    """Posteriors three times too wide at low mass, and two thirds as wide as they should be at high mass."""
    generator = np.random.default_rng(seed)
    mean = generator.uniform(-23.8, -22.2, n)
    true = np.where(mean < -23, 0.05 / 3, 0.05 * 1.5)
    truth = torch.tensor(mean + true * generator.normal(size=n))
    logits = -0.5 * ((GRID.centres[None].double() - torch.tensor(mean)[:, None]) / 0.05) ** 2
    return logits, (truth - LOW) / GRID.width, truth.numpy(), mean


@pytest.mark.parametrize(("method", "even"), [("local", True), ("conformal", False)])
def test_only_local_mends_what_differs_along_the_prior(method, even):
    recalibration = Recalibration(method)
    recalibration.fit(*two_sided_case(6000, seed=1)[:2])
    logits, _, truth, mean = two_sided_case(6000, seed=2)
    for side in (mean < -23.3, mean > -22.7):
        answer = posterior(recalibration, logits[side])
        for level in (0.5, 0.68, 0.9):
            assert (abs(coverage(answer, truth[side], level) - level) < 0.04) == even, (level, method)


def striped_case(n: int, seed: int):
    """Posteriors as wide as their errors but in a stripe of a quarter of a dex: there twice too wide."""
    generator = np.random.default_rng(seed)
    mean = generator.uniform(-23.9, -22.1, n)
    striped = np.abs(mean + 23) < 0.125
    truth = torch.tensor(mean + np.where(striped, 0.01, 0.02) * generator.normal(size=n))
    logits = -0.5 * ((GRID.centres[None].double() - torch.tensor(mean)[:, None]) / 0.02) ** 2
    return logits, (truth - LOW) / GRID.width, truth.numpy(), striped


def test_many_images_mend_what_is_narrow_along_the_prior():
    """Places every quarter of a dex, as with few images, smear the stripe over its surroundings."""
    new = striped_case(12_000, seed=2)
    striped, found = new[3], {}
    for n in (4000, 12_000):
        recalibration = Recalibration("local")
        recalibration.fit(*striped_case(n, seed=1)[:2])
        found[n] = coverage(posterior(recalibration, new[0][striped]), new[2][striped], 0.68)
    assert 0.68 < found[12_000] < found[4000] - 0.02, found


def test_it_is_loaded_with_the_places_that_it_was_fitted_with():
    many, fresh = Recalibration("local"), Recalibration("local")
    many.fit(*striped_case(5000, seed=1)[:2])
    few = fresh.state_dict()
    assert len(many.levels) > len(few["levels"])
    fresh.load_state_dict(many.state_dict())
    logits = striped_case(50, seed=3)[0]
    assert torch.equal(fresh(logits), many(logits))
    many.load_state_dict(few)
    assert torch.equal(many(logits), Recalibration("local")(logits))
    with pytest.raises(RuntimeError, match="size mismatch"):
        many.load_state_dict({**few, "levels": few["levels"][:, :10]})


def test_local_with_few_images_stays_near_what_it_had():
    recalibration = Recalibration("local")
    recalibration.fit(*gaussian_case(40, 0.05, 0.05, seed=1)[:2])
    common = 1 / recalibration.temperature
    assert ((recalibration.coldness > common / 2) & (recalibration.coldness < common * 2)).all()


def test_isotonic_mends_a_bias_that_a_temperature_cannot():
    recalibration = Recalibration("isotonic")
    recalibration.fit(*gaussian_case(4000, 0.05, 0.05, bias=0.04, seed=1)[:2])
    logits, _, truth = gaussian_case(4000, 0.05, 0.05, bias=0.04, seed=2)
    before = posterior(Recalibration("none"), logits)
    after = posterior(recalibration, logits)
    assert np.mean(before.median - truth) == pytest.approx(-0.04, abs=0.004)
    assert np.mean(after.median - truth) == pytest.approx(0.0, abs=0.004)


def test_conformal_covers_at_least_as_often_as_it_says_with_few_images():
    """Split conformal's promise is on average over calibration sets of any size; here 30 images."""
    shares = []
    for seed in range(150):
        recalibration = Recalibration("conformal")
        recalibration.fit(*gaussian_case(30, 0.05, 0.08, seed=seed)[:2])
        logits, _, truth = gaussian_case(40, 0.05, 0.08, seed=10_000 + seed)
        shares.append(coverage(posterior(recalibration, logits), truth, 0.9))
    standard_error = np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) > 0.9 - 3 * standard_error


@pytest.mark.parametrize("method", ["none", "temperature", "isotonic", "conformal"])
def test_unfitted_it_is_the_identity(method):
    logits = torch.randn(16, BINS)
    torch.testing.assert_close(Recalibration(method)(logits), logits.softmax(dim=1), atol=3e-6, rtol=0)


@pytest.mark.parametrize("method", ["isotonic", "conformal"])
def test_the_median_of_a_symmetric_map_and_the_norm_stay(method):
    logits, place, _ = gaussian_case(500, 0.05, 0.1)
    recalibration = Recalibration(method)
    recalibration.fit(logits, place)
    probability = recalibration(logits)
    torch.testing.assert_close(
        probability.sum(dim=1), torch.ones(500, dtype=probability.dtype), atol=1e-5, rtol=0
    )
    assert bool((probability >= 0).all())
    if method == "conformal":
        np.testing.assert_allclose(
            posterior(recalibration, logits).median,
            posterior(Recalibration("none"), logits).median,
            atol=GRID.width,
        )


@pytest.mark.parametrize("method", ["conformal", "local"])
def test_the_one_more_image_that_may_lie_outside_does_not_lie_at_the_prior_s_end(method):
    """A network leaves a little everywhere; a calibrated one must not have that blown up to 1 / (n + 1)."""
    logits, place, _ = gaussian_case(1000, 0.02, 0.02, seed=4)
    floor = torch.log(0.9999 * logits.softmax(dim=1) + 0.0001 / BINS)
    recalibration = Recalibration(method)
    recalibration.fit(floor, place)
    assert (
        posterior(recalibration, floor).std.mean() < 1.2 * posterior(Recalibration("none"), floor).std.mean()
    )


def strange_case(n: int, seed: int):
    """Posteriors of one stated width; the stranger the image, the larger its error, up to three times."""
    generator = np.random.default_rng(seed)
    novelty = np.minimum(generator.exponential(0.43, n), 2.0)  # one in 10 above 1, as scores are
    mean = generator.uniform(-23.5, -22.5, n)
    truth = mean + 0.03 * (1 + novelty) * generator.normal(size=n)
    logits = -0.5 * ((GRID.centres[None].double() - torch.tensor(mean)[:, None]) / 0.03) ** 2
    return logits, (torch.tensor(truth) - LOW) / GRID.width, torch.tensor(novelty), truth


@pytest.mark.parametrize("n", [1500, 12_000])
def test_local_widens_the_posteriors_of_strange_images(n):
    blind, seeing = Recalibration("local"), Recalibration("local")
    logits, place, novelty, _ = strange_case(n, seed=1)
    blind.fit(logits, place)
    seeing.fit(logits, place, novelty)
    logits, _, novelty, truth = strange_case(12_000, seed=2)
    for low, high, overconfident in ((0, 0.2, False), (0.8, 1.2, True), (1.6, 2.1, True)):
        chosen = (novelty >= low) & (novelty < high)
        density = seeing(logits[chosen], novelty[chosen]).numpy() / GRID.width
        classes = np.tile([1.0, 0.0, 0.0], (len(density), 1))
        answer = Posterior(GRID.edges.numpy(), density, classes, "log10_axion_mass_ev")
        pulls = (truth[chosen] - answer.mean) / answer.std
        assert np.std(pulls) == pytest.approx(1.0, abs=0.12), (low, n)
        alike = posterior(blind, logits[chosen])
        assert np.std((truth[chosen] - alike.mean) / alike.std) > 1.15 or not overconfident, (low, n)


def test_beyond_what_calibration_saw_the_width_grows_as_the_novelty_does():
    recalibration = Recalibration("local")
    recalibration.by_novelty = torch.tensor([[0.0, 1.0, 2.0], [1.5, 1.0, 0.25]])
    scores = torch.tensor([-0.4, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0])
    logits = -0.5 * ((GRID.centres[None] + 23) / 0.03) ** 2
    cold = recalibration.tempered(logits.expand(7, -1), scores)[:, 0] / logits[0, 0]
    factors = torch.tensor([1.5, 1.5, 1.25, 1.0, 0.25, 0.25 / 4, 0.25 / 16])
    torch.testing.assert_close(cold, factors)
    width = posterior_std(recalibration(logits.expand(7, -1), scores))
    np.testing.assert_allclose(width[:-1] / 0.03, factors[:-1] ** -0.5, rtol=0.02)
    assert width[-2] < width[-1] < 8 * 0.03  # it reaches the ends of the prior
    answer = recalibration(logits.expand(2, -1), torch.tensor([1e9, float("inf")]))
    torch.testing.assert_close(answer, torch.full_like(answer, 1 / BINS))  # the prior


def posterior_std(probability: torch.Tensor) -> np.ndarray:
    classes = np.tile([1.0, 0.0, 0.0], (len(probability), 1))
    density = probability.numpy() / GRID.width
    return Posterior(GRID.edges.numpy(), density, classes, "log10_axion_mass_ev").std


def test_a_regressor_made_before_novelty_had_a_say_answers_as_it_did():
    fitted, loaded = Recalibration("local"), Recalibration("local")
    logits, place, novelty, _ = strange_case(1500, seed=1)
    fitted.fit(logits, place)
    before = {name: value for name, value in fitted.state_dict().items() if name != "by_novelty"}
    loaded.fit(logits, place, novelty)
    loaded.load_state_dict(before)
    novelty[:3] = torch.tensor([5.0, 1e9, torch.inf])
    assert torch.equal(loaded(logits, novelty), fitted(logits))


def ordinary_case(n: int, seed: int):
    """Calibrated posteriors whose errors have nothing to do with the scores, one in 1,000 above 3."""
    logits, place, _ = gaussian_case(n, 0.03, 0.03, seed=seed)
    return logits, place, torch.tensor(np.random.default_rng(seed).exponential(1 / np.log(10), n))


def test_what_is_stranger_is_never_answered_more_surely():
    """A handful of lucky images at the far end must not make it look sure."""
    last, unbound = [], []
    for seed in range(12):
        logits, place, novelty = ordinary_case(5000, seed)
        recalibration = Recalibration("local")
        recalibration.fit(logits, place, novelty)
        factors = recalibration.by_novelty[1]
        assert bool((factors.diff() <= 0).all()), factors
        last.append(float(factors[-1]))
        bins = place.to(torch.int64)[:, None]
        shares = module._novelty_weights(novelty, torch.tensor(module.MANY_NOVELTIES).double())
        free = module._best_coldness(logits, bins, shares, 1.0, torch.ones(6).double())
        unbound.append(bool(free[-1] > free[-2]))
    assert np.median(last) == pytest.approx(1.0, abs=0.15)
    assert any(unbound), "so there was something to forbid"


def test_pooled_factors_are_those_of_least_likelihood_among_the_falling():
    logits, place, novelty = ordinary_case(1500, seed=3)
    bins, own = place.to(torch.int64)[:, None], place.to(torch.int64)
    shares = module._novelty_weights(novelty, torch.tensor(module.MANY_NOVELTIES).double())
    found = module._falling_coldness(logits, bins, shares, torch.ones(6).double())

    def loss(factors: np.ndarray) -> float:
        scaled = logits * (shares @ torch.from_numpy(factors))[:, None]
        return -float(scaled.log_softmax(dim=1)[torch.arange(len(own)), own].sum())

    falling = LinearConstraint(np.diff(np.eye(6), axis=0), -np.inf, 0.0)
    best = minimize(loss, np.linspace(1.1, 0.9, 6), method="SLSQP", constraints=[falling])
    assert len(np.unique(found.numpy().round(6))) < 6, "so some were pooled"
    assert loss(found.numpy()) <= best.fun + 0.5, "nats in 1,500 images: what the belief costs"
    assert loss(found.numpy()) < loss(np.ones(6)) + 1e-9


def test_posteriors_without_any_opinion_are_left_alone():
    logits, place = torch.zeros(200, BINS), torch.linspace(0, BINS - 1, 200)
    recalibration = Recalibration("local")
    recalibration.fit(logits, place, torch.linspace(0, 3, 200))
    assert bool(recalibration.coldness.isfinite().all() and recalibration.by_novelty.isfinite().all())


@pytest.mark.parametrize("fitted", ["_pit_map", "_conformal_map"])
def test_a_map_is_fitted_where_the_answers_are(fitted):
    """On a GPU; what a device holds is not computed here, where it must lie is checked."""
    with FakeTensorMode():
        pit = torch.empty(10, dtype=torch.float64, device="cuda")
        given = (pit,) if fitted == "_pit_map" else (pit, torch.ones_like(pit))
        assert getattr(module, fitted)(*given).device.type == "cuda"


def test_a_truth_counts_from_its_place_within_its_bin():
    """Bins of 30 and 70%, truths at a fifth of each as often as that: PITs of 0.06 and 0.44, none between."""
    logits = torch.log(torch.tensor([[0.3, 0.7]])).expand(200, -1)
    place = torch.cat([torch.full((60,), 0.2), torch.full((140,), 1.2)])
    recalibration = Recalibration("isotonic")
    recalibration.fit(logits, place)
    mapped = np.interp([0.03, 0.15, 0.35, 0.6], recalibration.knots, recalibration.levels)
    assert mapped == pytest.approx([0.0, 0.3, 0.3, 1.0], abs=2e-3)


@pytest.mark.parametrize(("n", "trust"), [(50, 1.0), (10, 0.5)])
def test_an_interval_is_called_by_the_truths_it_held_and_one_more_that_it_may_not(n, trust):
    """Three fifths of the truths in the middle, the others outside of all: of few images half is believed."""
    held = 3 * n // 5
    pit = torch.cat([torch.full((held,), 0.5), torch.full((n - held,), 1 - 1e-7)]).double()
    levels = module._conformal_map(pit, torch.ones(n).double())
    for said in (0.3, 0.68, 0.9):
        low, high = np.interp([0.5 - said / 2, 0.5 + said / 2], module._knots(), levels)
        assert high - low == pytest.approx(trust * held / (n + 1) + (1 - trust) * said, abs=2e-3), said


def test_the_map_is_of_what_novelty_has_already_mended():
    """Every second image is strange, with four times the error that it says: tempered, it needs no map."""
    n, generator = 4000, np.random.default_rng(6)
    strange = np.arange(n) % 2
    mean = generator.uniform(-23.5, -22.5, n)
    truth = mean + 0.03 * np.where(strange, 4, 1) * generator.normal(size=n)
    logits = -0.5 * ((GRID.centres[None].double() - torch.tensor(mean)[:, None]) / 0.03) ** 2
    recalibration = Recalibration("local")
    recalibration.fit(logits, (torch.tensor(truth) - LOW) / GRID.width, torch.tensor(2.0 * strange))
    assert float((recalibration.levels - recalibration.knots).abs().max()) < 0.05


def test_a_score_that_no_image_has_changes_no_temperature():
    logits, place, _ = gaussian_case(500, 0.05, 0.03)
    shares = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(500, 2)
    found = module._falling_coldness(logits, place.long()[:, None], shares, torch.ones(2).double())
    assert float(found[0]) > 1.5 and float(found[1]) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["isotonic", "conformal"])
def test_no_density_becomes_nothing_because_the_calibration_split_is_small(method):
    recalibration = Recalibration(method)
    recalibration.fit(*gaussian_case(25, 0.05, 0.05, seed=3)[:2])
    logits = gaussian_case(50, 0.05, 0.05, seed=4)[0]
    before = recalibration.tempered(logits).softmax(dim=1)
    possible = before > 1e-4
    assert float((recalibration(logits) / before)[possible].min()) > 0.5 * module.FLOOR
