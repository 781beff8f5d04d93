"""The weight of a fitted vortex: learned where it is earned, and the network's own answer everywhere else."""

import math
from dataclasses import replace

import pytest
import torch

from darkarc.models import Ensemble, Grid, Regressor, RegressorError
from darkarc.models.vortex_fit import N_FACTS, VortexFit, VortexFitError

FORM = {"preset": "model_iii", "noise": "physical", "distances": "deeplense"}
GRID = Grid(-24.0, -22.0, 256)
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


class TestWeight:
    def test_it_learns_which_fits_to_believe(self):
        fit = vortex_fit()
        logits, facts, place, _ = problem(3000, 0)
        gain = fit.fit_weight(logits, facts, place)
        logits, facts, place, right = problem(2000, 1)
        weight, scale = fit._gate(facts, fit.first, fit.second)
        assert float(weight[right].mean()) > 0.9 > 0.2 > float(weight[~right].mean())
        assert 0.8 < float(scale[right].median()) < 1.3
        bins = place.long()[:, None]
        own, mixed = (x.log_softmax(dim=1).gather(1, bins).mean() for x in (logits, fit.mixed(logits, facts)))
        # A right fit is 12 times narrower than the network: ln 12 nats for every second lens.
        assert float(mixed - own) == pytest.approx(gain, abs=0.1)
        assert gain == pytest.approx(math.log(12.5) / 2, abs=0.2)

    def test_the_mixture_is_a_density(self):
        fit = vortex_fit()
        logits, facts, place, _ = problem(500, 2)
        fit.fit_weight(logits, facts, place)
        mixed = fit.mixed(logits, facts).exp()
        assert mixed.shape == logits.shape
        torch.testing.assert_close(mixed.sum(dim=1), torch.ones(500), atol=1e-4, rtol=0)
        weight, scale = fit._gate(facts, fit.first, fit.second)
        normal = torch.distributions.Normal(facts[:, 0], facts[:, 1].exp() * scale)
        edges = torch.linspace(-1, 1, GRID.bins + 1)
        cells = torch.stack([normal.cdf(e) for e in edges], dim=1).diff(dim=1)
        expected = (1 - weight[:, None]) * logits.softmax(dim=1) + weight[:, None] * cells
        torch.testing.assert_close(mixed, expected, atol=2e-5, rtol=0)

    def test_until_it_is_fitted_the_network_answers(self):
        logits, facts, _, _ = problem(20, 3)
        assert torch.equal(vortex_fit().mixed(logits, facts), logits)

    def test_what_is_not_finite_has_no_weight(self):
        fit = vortex_fit()
        logits, facts, place, _ = problem(500, 4)
        fit.fit_weight(logits, facts, place)
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
