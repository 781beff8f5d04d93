"""The weight of a fitted vortex: learned where it is earned, and the network's own answer everywhere else."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from darkarc.data.auxiliary import SOURCE_SCALE_ARCSEC
from darkarc.models import Ensemble, Grid, Regressor, RegressorError
from darkarc.models.vortex_fit import N_FACTS, VortexFit, VortexFitError
from darkarc.simulation import draw_scenes, render

FORM = {"preset": "model_iii", "noise": "physical", "distances": "deeplense"}
GRID = Grid(-24.0, -22.0, 1024)
F = 12


def vortex_fit() -> VortexFit:
    return VortexFit(F, FORM, (64, 64), GRID)


def problem(n: int, seed: int):
    """The network's logits, facts and places of n truths: every second fit is right, and chi-square tells."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(n, generator=generator) * 1.6 - 0.8
    network = truth + 0.05 * torch.randn(n, generator=generator)
    edges = torch.linspace(-1, 1, GRID.bins + 1)
    logits = -(((edges[1:] + edges[:-1]) / 2 - network[:, None]) ** 2) / (2 * 0.05**2)
    right = torch.arange(n) % 2 == 0
    fit = truth + torch.where(right, 0.004, 0.1) * torch.randn(n, generator=generator)
    facts = torch.stack(
        [
            fit,
            torch.full((n,), math.log(0.004)),
            torch.where(right, 0.0, 12.0) + torch.randn(n, generator=generator),
            network,
            torch.full((n,), math.log(0.05)),
        ],
        dim=1,
    )
    return logits, facts, (truth.double() + 1) / GRID.width, right


def sigma_of_fit(gate):
    """(N,) standard deviation of fit and halo together, in sigmas of the fit."""
    fit, halo = gate.weights[:, 0], gate.weights[:, 1]
    return gate.scale * ((fit + halo * gate.halo**2) / (fit + halo)).sqrt()


@pytest.fixture(scope="module")
def taught():
    """A fit that has learned from `problem(3000, 0)`, and what it says to have gained."""
    fit = vortex_fit()
    return fit, fit.fit_weight(*problem(3000, 0)[:3])


class TestWeight:
    def test_it_learns_which_fits_to_believe(self, taught):
        fit, gain = taught
        logits, facts, place, right = problem(2000, 1)
        gate = fit._gate(facts, fit.first, fit.second)
        weight, deviation = 1 - gate.weights[:, 2], sigma_of_fit(gate)
        assert float(weight[right].mean()) > 0.9 > 0.2 > float(weight[~right].mean())
        assert 0.8 < float(deviation[right].median()) < 1.3
        bins = place.long()[:, None]
        own, mixed = (x.log_softmax(dim=1).gather(1, bins).mean() for x in (logits, fit.mixed(logits, facts)))
        # A right fit is 12 times narrower than the network: ln 12 nats for every second lens.
        assert float(mixed - own) == pytest.approx(gain, abs=0.1)
        assert gain == pytest.approx(math.log(12.5) / 2, abs=0.2)

    def test_the_mixture_is_a_density(self, taught):
        fit, _ = taught
        logits, facts, _, _ = problem(500, 2)
        mixed = fit.mixed(logits, facts).exp()
        assert mixed.shape == logits.shape
        torch.testing.assert_close(mixed.sum(dim=1), torch.ones(500), atol=1e-4, rtol=0)
        weights, scale, halo = fit._gate(facts, fit.first, fit.second)
        assert bool((halo >= 1).all())
        edges = torch.linspace(-1, 1, GRID.bins + 1)
        expected = weights[:, 2:] * logits.softmax(dim=1)
        for weight, factor in ((weights[:, :1], scale), (weights[:, 1:2], scale * halo)):
            normal = torch.distributions.Normal(facts[:, 0], facts[:, 1].exp() * factor)
            cells = torch.stack([normal.cdf(e) for e in edges], dim=1).diff(dim=1)
            expected += weight * cells / cells.sum(dim=1, keepdim=True)
        torch.testing.assert_close(mixed, expected, atol=2e-5, rtol=0)

    def test_pulls_have_unit_width_though_the_network_is_too_wide(self):
        """Three fits in ten are 0.02 off, less than the network says and five sigma, and nothing tells."""
        fit, pulls = vortex_fit(), {}
        for name, seed in (("seen", 5), ("fresh", 6)):
            logits, facts, place, _ = problem(4000, seed)
            generator = torch.Generator().manual_seed(seed + 10)
            truth = place * GRID.width - 1
            wrong = torch.rand(len(truth), generator=generator) < 0.3
            noise = torch.randn(len(truth), generator=generator)
            facts[:, 0] = (truth + torch.where(wrong, 0.02, 0.004) * noise).float()
            facts[:, 2] = 0
            if name == "seen":
                fit.fit_weight(logits, facts, place)
            probability = fit.mixed(logits, facts).softmax(dim=1)
            mean, variance = fit._moments(probability)
            pulls[name] = float(((truth - mean) / variance.sqrt()).std())
        assert pulls["seen"] == pytest.approx(1, abs=0.03)
        assert pulls["fresh"] == pytest.approx(1, abs=0.06)

    def test_pulls_have_unit_width_though_a_few_fits_are_far_off(self):
        """One in twenty, by a t distribution without a variance: to the logarithmic score alone, which sees
        how rare they are and not how far, such posteriors are best a third too wide."""
        fit, pulls = vortex_fit(), {}
        for name, seed in (("seen", 5), ("fresh", 6)):
            logits, facts, place, _ = problem(4000, seed)
            generator = np.random.default_rng(seed)
            truth = place * GRID.width - 1
            wrong = torch.from_numpy(generator.random(len(truth)) < 0.05)
            off = torch.from_numpy(generator.standard_t(2, size=len(truth)))
            noise = torch.from_numpy(generator.normal(size=len(truth)))
            facts[:, 0] = (truth + torch.where(wrong, 0.03 * off, 0.004 * noise)).float().clamp(-1, 1)
            facts[:, 2] = 0
            if name == "seen":
                fit.fit_weight(logits, facts, place)
            mean, variance = fit._moments(fit.mixed(logits, facts).softmax(dim=1))
            pulls[name] = float(((truth - mean) / variance.sqrt()).std())
        assert pulls["seen"] == pytest.approx(1, abs=0.06) and pulls["fresh"] == pytest.approx(1, abs=0.12)

    def test_dawids_and_sebastianis_score_is_of_the_mixtures_moments(self, taught):
        fit, _ = taught
        logits, facts, place, _ = problem(3000, 7)
        gate = fit._gate(facts, fit.first, fit.second)
        lenses = fit._lenses(logits, facts, place)
        probability, centres = fit.mixed(logits, facts).double().softmax(dim=1), GRID.offsets.double()
        mean = probability @ centres
        variance = (probability * (centres - mean[:, None]) ** 2).sum(dim=1) + GRID.width**2 / 12
        expected = 0.5 * (variance.log() + (lenses.truth - mean).square() / variance)
        widest = gate.halo * gate.scale * facts[:, 1].exp()
        inside = facts[:, 0].abs() + 5 * widest < 1
        assert int(inside.sum()) > 1500
        found = fit._dawid_sebastiani(lenses, gate).double()
        torch.testing.assert_close(found[inside], expected[inside], atol=0.02, rtol=0.01)

    def test_until_it_is_fitted_the_network_answers(self):
        logits, facts, _, _ = problem(20, 3)
        assert torch.equal(vortex_fit().mixed(logits, facts), logits)

    def test_what_is_not_finite_has_no_weight(self, taught):
        fit, _ = taught
        logits, facts, _, _ = problem(500, 4)
        facts[0, 0], facts[1, 1], facts[2, 2] = torch.nan, torch.inf, torch.nan
        mixed = fit.mixed(logits, facts).softmax(dim=1)
        torch.testing.assert_close(mixed[:3], logits[:3].softmax(dim=1))


def test_the_reading_is_linear_least_squares():
    fit = vortex_fit()
    generator = torch.Generator().manual_seed(6)
    features = torch.randn(400, F, generator=generator)
    truth = features @ torch.randn(F, 4, generator=generator) + torch.tensor([1.0, -2.0, 0.5, 0.0])
    fit.fit_reading(features, truth)
    read = features @ fit.reading[:, :-1].T + fit.reading[:, -1]
    torch.testing.assert_close(read, truth, atol=1e-3, rtol=1e-3)


def test_facts_are_numbers_for_every_image():
    fit = vortex_fit()
    images = torch.stack(
        [torch.zeros(1, 64, 64), torch.full((1, 64, 64), 1e6), torch.full((1, 64, 64), -1e6)]
    )
    facts = fit.measure(images, torch.zeros(3, F), torch.zeros(3, GRID.bins))
    assert facts.shape == (3, N_FACTS)
    assert bool(torch.isfinite(facts).all())


def test_rounding_of_the_network_is_no_part_of_a_fit():
    """Where it starts from is rounded to a lattice, so most fits are the same to the last bit."""
    n = 12
    scenes = draw_scenes("model_iii", "axion", 11, range(n))
    images = render("model_iii", scenes, noise="physical", seed=11)[:, None]
    mass = torch.from_numpy(scenes.log10_mass_ev).float().flatten() + 23
    twice = 2 * torch.from_numpy(scenes.angle_rad).float().reshape(n, 1)
    source = torch.from_numpy(scenes.source_arcsec).float().reshape(n, 2) / SOURCE_SCALE_ARCSEC
    features = torch.cat([source, twice.cos(), twice.sin(), torch.zeros(n, F - 4)], dim=1)
    logits = -((GRID.offsets - mass[:, None]) ** 2) / (2 * 0.01**2)
    fit = vortex_fit()
    fit.reading[:, :4] = torch.eye(4)
    facts = fit.measure(images, features, logits)
    moved = fit.measure(images, features * (1 + 1e-6), logits * (1 + 1e-6))
    assert int((facts[:, :3] == moved[:, :3]).all(dim=1).sum()) >= 9
    light = mass < 0
    assert int(light.sum()) >= 4
    assert float((facts[light, 0] - mass[light]).abs().median()) < 0.003


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        (None, (64, 64)),
        (FORM, (32, 32)),
        (FORM | {"noise": "published"}, (64, 64)),
        (FORM | {"preset": "model_i"}, (150, 150)),
    ],
)
def test_other_images_are_refused(form, shape):
    with pytest.raises(VortexFitError, match="set it to false"):
        VortexFit(F, form, shape, GRID)


def test_the_regressor_says_so(spec):
    with pytest.raises(RegressorError, match=r"model\.vortex_fit"):
        Regressor(spec(vortex_fit=True))


def test_an_ensemble_fits_once_for_all_its_members(spec):
    made = spec(shape=(64, 64), vortex_fit=True, bins=64, free_bins=16, novelty="none")
    made = replace(made, form=FORM)
    members = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        member = Regressor(made).eval()
        torch.nn.init.normal_(member.target_layer.weight, std=0.5)
        members.append(member)
    ensemble = Ensemble.of(members)
    assert isinstance(ensemble.vortex_fit, VortexFit)
    assert all(member.vortex_fit is None for member in ensemble.members)
    images = torch.randn(3, 1, 64, 64)
    with torch.inference_mode():
        mean = torch.stack([member(images).density for member in members]).mean(dim=0)
        torch.testing.assert_close(ensemble(images).density, mean, rtol=1e-3, atol=1e-4)

    class Mirrored(torch.nn.Module):
        """In place of a fit that has learned: it changes every answer."""

        def forward(self, images, features, logits):
            return logits.flip(1)

    ensemble.vortex_fit = Mirrored()
    with torch.inference_mode():
        torch.testing.assert_close(ensemble(images).density, mean.flip(2), rtol=1e-3, atol=1e-4)
