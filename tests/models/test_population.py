"""The joint posterior of many lenses, against closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from darkarc.config import DEFAULT_TARGET
from darkarc.models import population_errors
from darkarc.models.population import PopulationError, combine, join
from darkarc.models.population_errors import PopulationErrors, fit_correlation, fit_correlations_of_pools
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


def test_an_unknown_share_is_integrated_out():
    """Against the sum over every assignment of the lenses, for three of them."""
    lenses = gaussians([-23.3, -23.25, -22.4], [0.1, 0.08, 0.05], [0.9, 0.8, 0.6])
    trained = 0.7
    axion = lenses.class_probability[:, 0] / trained
    other = (1 - lenses.class_probability[:, 0]) / (1 - trained)
    total = np.zeros(512)
    for bits in range(8):
        chosen = [(bits >> k) & 1 for k in range(3)]
        # Beta integral of f^k (1 - f)^(3 - k).
        k = sum(chosen)
        weight = [0.25, 1 / 12, 1 / 12, 0.25][k]
        term = np.full(512, weight)
        for n, is_axion in enumerate(chosen):
            term = term * (axion[n] * lenses.density[n] / 0.5 if is_axion else other[n])
        total += term
    total /= total @ WIDTHS
    found = join(lenses, axion_share="unknown", trained_share=trained)
    np.testing.assert_allclose(found.posterior.density[0], total, rtol=2e-3, atol=1e-6)
    assert 0.3 < found.share_quantile(0.5) < 0.9
    assert join(lenses).share_quantile(0.5) is None


def test_outliers_do_not_drag_a_population_whose_share_is_unknown():
    rng = np.random.default_rng(0)
    mass = np.concatenate([rng.normal(-23.2, 0.05, 30), rng.uniform(-24, -22, 10)])
    lenses = gaussians(mass, 0.05, np.where(np.arange(40) < 30, 0.9, 0.6))
    found = join(lenses, axion_share="unknown", trained_share=0.7)
    low, high = found.posterior.interval(0.95)[0]
    assert low < -23.2 < high and high - low < 0.06
    assert found.share_quantile(0.16) < 0.75 < found.share_quantile(0.84) + 0.1
    sure = combine(lenses, axion_share=1.0)
    assert abs(sure.mean[0] + 23.2) > 2 * abs(found.posterior.mean[0] + 23.2)


def test_correlated_errors_widen_a_population_to_its_design_effect():
    lenses = gaussians(np.full(50, -23.0), 0.1)
    joint = combine(lenses, errors=PopulationErrors(0.1))
    assert joint.std[0] == pytest.approx(0.1 * np.sqrt((1 + 49 * 0.1) / 50), rel=1e-2)
    one = combine(lenses[:1], errors=PopulationErrors(0.1))
    np.testing.assert_allclose(one.density, lenses[:1].density, rtol=1e-12, atol=1e-300)
    for wrong in (
        PopulationErrors(-0.5),
        PopulationErrors(0.1, (-23.0,), (3.0,), ((0.1, 0.2),)),
        PopulationErrors(0.1, (-23.0, -23.5), (3.0,), ((0.1,), (0.1,))),
    ):
        with pytest.raises(PopulationError, match="correlation"):
            combine(lenses, errors=wrong)


def test_a_correlation_is_interpolated_in_the_mass_and_the_logarithm_of_the_number():
    errors = PopulationErrors(0.9, (-23.5, -22.5), (3.0, 300.0), ((0.1, 0.3), (0.5, 0.7)))
    masses = np.array([-24.0, -23.5, -23.0, -22.5, -22.0])
    for n, expected in {
        2: [0.1, 0.1, 0.3, 0.5, 0.5],
        30: [0.2, 0.2, 0.4, 0.6, 0.6],
        900: [0.3, 0.3, 0.5, 0.7, 0.7],
    }.items():
        assert errors.correlations(n, masses) == pytest.approx(expected)
        assert errors.power(n, masses) == pytest.approx(1 / (1 + (n - 1) * np.array(expected)))


def test_posteriors_that_know_of_common_errors_are_joined_with_them():
    lenses, errors = gaussians(np.full(50, -23.0), 0.1, 0.9), PopulationErrors(0.1)
    knowing = replace(lenses, population={"correlation": 0.1, "axion_share": 0.75})
    same = np.testing.assert_array_equal
    same(combine(knowing).density, combine(lenses, errors=errors).density)
    same(combine(knowing[:20]).density, combine(lenses[:20], errors=errors).density)
    same(combine(knowing, errors=PopulationErrors()).density, combine(lenses).density)
    ours = combine(knowing, axion_share="unknown").density
    same(ours, combine(lenses, axion_share="unknown", trained_share=0.75, errors=errors).density)


@pytest.mark.parametrize(("common", "low", "high"), [(0.0, 0.0, 0.01), (0.3, 0.15, 0.5)])
def test_the_correlation_is_found_and_mends_the_coverage(common, low, high):
    """Errors of which a share is one smooth function of the mass, the same for all lenses there."""
    sigma = 0.1
    bias = np.random.default_rng(5).normal(0, 1, 200)
    axis = np.linspace(-24, -22, 200)
    bias = np.convolve(np.pad(bias, 40, mode="wrap"), np.hanning(41), mode="same")[40:-40]
    bias *= sigma * np.sqrt(common) / bias.std()

    def lenses(truth, rng):
        own = rng.normal(0, sigma * np.sqrt(1 - common), len(truth))
        return gaussians(truth + np.interp(truth, axis, bias) + own, sigma)

    rng = np.random.default_rng(6)
    truth = rng.uniform(-24, -22, 3000)
    found = fit_correlation(lenses(truth, rng), truth, 0)
    assert low <= found <= high

    def coverage(correlation):
        rng = np.random.default_rng(7)
        inside = []
        for _ in range(200):
            mass = rng.uniform(-23.7, -22.3)
            found = combine(lenses(np.full(30, mass), rng), errors=PopulationErrors(correlation))
            lower, upper = found.interval(0.95)[0]
            inside.append(lower <= mass <= upper)
        return np.mean(inside)

    assert coverage(found) > 0.9
    assert common == 0.0 or coverage(0.0) < 0.7


def test_a_small_calibration_split_fits_no_correlation():
    assert fit_correlation(gaussians(np.full(50, -23.0), 0.1), np.full(50, -23.0), 0) is None


def test_a_joint_posterior_narrower_than_a_bin_is_resolved():
    sigma, n = 0.01, 400
    means = np.random.default_rng(9).normal(-23.0007, sigma, n)
    joint = combine(gaussians(means, sigma))
    assert len(joint.edges) > len(EDGES)
    assert joint.std[0] == pytest.approx(sigma / np.sqrt(n), rel=0.05)
    assert sigma / np.sqrt(n) < WIDTHS[0] / 7
    assert joint.mean[0] == pytest.approx(means.mean(), abs=0.1 * sigma / np.sqrt(n))


def test_what_the_bins_do_not_tell_is_not_invented():
    # Lenses narrower than a bin: where in it the mass lies, nobody knows.
    inside = combine(gaussians(np.full(20, CENTRES[200]), 0.0007))
    np.testing.assert_array_equal(inside.edges, EDGES)
    # Lower limits: the product's top is the plateau at the end of the prior.
    density = 1 / (1 + np.exp(-(CENTRES + 22.4) / 0.05))
    density /= density @ WIDTHS
    limits = Posterior(EDGES, np.tile(density, (50, 1)), np.tile([1.0, 0, 0], (50, 1)), DEFAULT_TARGET)
    joint = combine(limits)
    np.testing.assert_array_equal(joint.edges, EDGES)
    assert joint.interval(0.95)[0, 1] > -22.02
    # Pits of no density, such as underflow leaves, do not become peaks beside them.
    lenses = gaussians(np.full(30, -22.6), 0.03)
    pitted = lenses.density.copy()
    pitted[::3, 100:400:7] = 0.0
    pitted[1::3, 103:400:11] = 0.0
    pitted[:, 340:380] = lenses.density[:, 340:380]
    pitted /= (pitted @ WIDTHS)[:, None]
    joint = combine(
        Posterior(EDGES, pitted, lenses.class_probability, DEFAULT_TARGET), errors=PopulationErrors(0.1)
    )
    assert len(joint.edges) > len(EDGES)
    low, high = joint.interval(0.95)[0]
    assert low < -22.6 < high and high - low < 0.06


def test_a_correlation_along_the_mass_gives_each_mass_its_own_width():
    """A bias that every lens of a mass shares, in closed form N(0, rho sigma^2): little at low masses, much
    at high ones. One rho for all is too wide for the first and too narrow for the second."""
    sigma, lenses = 0.05, 130
    masses = np.linspace(-23.9, -22.1, 31)

    def pool(mass, n, rng):
        rho = 0.005 if mass < -23.0 else 0.3
        bias = rng.normal(0, sigma * np.sqrt(rho))
        return gaussians(mass + bias + rng.normal(0, sigma * np.sqrt(1 - rho), n), sigma)

    rng = np.random.default_rng(10)
    errors = fit_correlations_of_pools([pool(mass, lenses, rng) for mass in masses], masses, 0)
    again = PopulationErrors.of(
        {
            "correlation": errors.correlation,
            "correlation_mass": list(errors.correlation_mass),
            "correlation_size": list(errors.correlation_size),
            "correlation_at": [list(row) for row in errors.correlation_at],
            "read_as": [-23.9, -22.1],  # of an older file
        }
    )
    assert again == errors
    low, high = errors.correlations(100, np.array([-23.6, -22.4]))
    assert low < 0.05 and 0.1 < high < 0.9
    inside = {"low": [], "high": []}
    for _ in range(160):
        for name, (a, b) in {"low": (-23.8, -23.3), "high": (-22.7, -22.3)}.items():
            mass = rng.uniform(a, b)
            joint = combine(pool(mass, 100, rng), errors=errors)
            inside[name].append(
                [lo <= mass <= hi for lo, hi in (joint.interval(0.68)[0], joint.interval(0.95)[0])]
            )
    for name, seen in inside.items():
        at_68, at_95 = np.mean(seen, axis=0)
        assert 0.58 < at_68 < 0.86, name
        assert at_95 > 0.89, name


def test_lenses_of_nearly_one_mass_are_moved_to_it(monkeypatch):
    """Narrow and right, but a tenth of a dex apart: moved the other way they would contradict each other."""
    monkeypatch.setattr(population_errors, "POPULATIONS", 60)
    rng = np.random.default_rng(11)
    truth = rng.uniform(-24, -22, 1000)
    assert fit_correlation(gaussians(truth + rng.normal(0, 0.03, 1000), 0.03), truth, 0) < 0.03


def test_one_mass_far_off_does_not_decide_for_the_others_and_none_is_taken_for_exact(monkeypatch):
    """Pools of 120 lenses without common errors, but for one that is read 0.4 dex too high."""
    monkeypatch.setattr(population_errors, "POPULATIONS", 100)
    rng, masses = np.random.default_rng(12), np.linspace(-23.8, -22.2, 5)
    bias = np.array([0.0, 0.0, 0.4, 0.0, 0.0])
    pools = [gaussians(m + b + rng.normal(0, 0.02, 120), 0.02) for m, b in zip(masses, bias, strict=True)]
    errors = fit_correlations_of_pools(pools, masses, 0)
    others = np.delete(errors.correlation_at, 2, axis=0)
    assert errors.correlation < 0.05 and others.max() < 0.05 < np.min(errors.correlation_at[2])
    # 120 lenses tell their bias to 1/120 of a lens's variance; one pool and the belief of two, that to
    # sqrt(2/3) of it.
    assert others.min() >= 0.999 * np.sqrt(2 / 3) / 120
