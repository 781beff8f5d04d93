"""Bins that learned the chance of their own few images are smoothed, and nothing else is."""

import numpy as np
import pytest
import torch
from torch import Tensor

from darkarc import config
from darkarc.models.ensemble import Ensemble
from darkarc.training import new_regressor
from darkarc.training.recalibrate import recalibrate
from darkarc.training.smooth_bins import fitted_smoother, smooth_bins, smoother, tempered
from tests.training.conftest import write_prepared

BINS = 256
WIDTH = 0.05
"""Of the prior, to which `measured` tells a place."""


def nll(logits: Tensor, share: Tensor) -> Tensor:
    """(N,) in nats, of the true bin."""
    own = (share * logits.shape[1]).long().clamp(max=logits.shape[1] - 1)
    return -logits.log_softmax(dim=1).gather(1, own[:, None]).squeeze(1)


def normal_logits(n: int, width: float, seed: int) -> tuple[Tensor, Tensor]:
    """Exact posteriors (N, K) of a place between 0 and 1 that was measured to `width`, and the places."""
    rng = np.random.default_rng(seed)
    share = rng.uniform(size=n)
    seen = share + width * rng.normal(size=n)
    centres = (np.arange(BINS) + 0.5) / BINS
    logits = -0.5 * ((centres - seen[:, None]) / width) ** 2
    return torch.from_numpy(logits), torch.from_numpy(share)


def comb(size: float) -> Tensor:
    return torch.from_numpy(size * np.random.default_rng(9).normal(size=BINS))


@pytest.mark.parametrize("widths", [0.4, 1.0, 7.3, "varied"])
def test_quadratic_functions_stay_as_they_are(widths):
    rows = np.arange(64)
    given = np.linspace(0.4, 20, 64) if widths == "varied" else np.full(64, widths)
    matrix = smoother(rows, given, 64)
    x = torch.arange(64, dtype=torch.float64) / 64
    for function in (torch.ones_like(x), x, 3 - 2 * x + 5 * x**2):
        torch.testing.assert_close(matrix @ function, function, rtol=0, atol=1e-9)


def test_the_narrowest_kernel_changes_nothing_and_a_wide_one_averages():
    rows = np.arange(BINS)
    identity = torch.eye(BINS, dtype=torch.float64)
    torch.testing.assert_close(smoother(rows, np.full(BINS, 0.4), BINS), identity, rtol=0, atol=1e-12)
    wide = smoother(rows, np.full(BINS, 8.0), BINS)
    # What is left of the variance of noise: that of the kernel (3 - u^2) phi(u) / 2, 27 / (32 sqrt(pi)).
    left = (wide**2).sum(dim=1)[32:-32]
    torch.testing.assert_close(left, torch.full_like(left, 27 / (32 * np.sqrt(np.pi)) / 8), rtol=0.02, atol=0)


def test_a_comb_is_taken_away_and_many_lenses_agree_on_the_truth():
    logits, share = normal_logits(3_000, 0.05, 1)
    jagged = logits + comb(0.3)
    matrix, gain = fitted_smoother(jagged, share)
    fresh, places = normal_logits(3_000, 0.05, 2)
    loss = [nll(x, places).mean() for x in (fresh, fresh + comb(0.3), (fresh + comb(0.3)) @ matrix.T)]
    assert gain > 0.02
    assert loss[2] - loss[0] < 0.2 * (loss[1] - loss[0]), "most of what the comb cost"
    near = (places - 0.41).abs().argsort()[:60]
    summed = [(fresh[near] + comb(0.3)).sum(dim=0), ((fresh[near] + comb(0.3)) @ matrix.T).sum(dim=0)]
    exact = fresh[near].sum(dim=0).argmax()
    off = [abs(int(total.argmax() - exact)) for total in summed]
    assert off[1] <= 1 and off[1] <= off[0], "the product of sixty is no comb"


def test_sharp_posteriors_are_not_smeared():
    """Narrower than two bins on one side, wide on the other, where neighbours differ by chance alone."""
    sharp, share = normal_logits(5_000, 0.006, 3)
    wide, _ = normal_logits(5_000, 0.006, 3)
    wide = wide / 8**2
    place = torch.arange(BINS) / BINS
    logits = torch.where(share[:, None] < 0.5, sharp, wide).clamp_min(-14) + comb(0.3) * (place > 0.5)
    matrix, _ = fitted_smoother(logits, share)
    assert float((matrix**2).sum(dim=1)[180:235].max()) < 0.15, "the wide ones are; the identity has 1"
    light = share < 0.4
    worse = nll(logits[light] @ matrix.T, share[light]).mean() - nll(logits[light], share[light]).mean()
    assert float(worse) < 0.01


@pytest.fixture
def store(tmp_path):
    return write_prepared(tmp_path / "prepared", splits={"train": 60, "validation": 20, "calibration": 200})


def jagged(settings, store, seed=0):
    """A regressor whose first feature, once `measured`, gives normal posteriors with a comb on them."""
    torch.manual_seed(seed)
    regressor = new_regressor(settings, store).eval()
    layer = regressor.target_layer
    with torch.no_grad():
        places = (torch.arange(layer.out_features) + 0.5) / layer.out_features
        layer.weight.zero_()
        layer.weight[:, 0] = places / WIDTH
        layer.weight[:, 1] = torch.randn(layer.out_features)
        layer.bias.copy_(-0.5 * (places / WIDTH) ** 2 + 0.3 * torch.randn(layer.out_features))
    return regressor


def measured(regressor, n=2_000):
    """Features (n, F) that measure where the truths (n, 1) lie, to `WIDTH` of the prior."""
    rng = np.random.default_rng(4)
    share = torch.from_numpy(rng.uniform(size=n)).float()
    features = torch.zeros(n, regressor.n_features)
    for column in range(
        0, regressor.n_features, features.shape[1] // len(getattr(regressor, "members", [0]))
    ):
        features[:, column] = (share + WIDTH * torch.from_numpy(rng.normal(size=n)).float()) / WIDTH
    return features, (-24 + 2 * share)[:, None]


def roughness(values: Tensor) -> float:
    return float(values.detach().double().diff(n=2).abs().mean())


@pytest.mark.parametrize("free_bins", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [100, 400, 4_600])
def test_a_handful_of_bins_stays_as_it_is(store, free_bins, n):
    settings = config.parse({"model": {"width": 0.5, "bins": 120, "free_bins": free_bins}})
    regressor = jagged(settings, store)
    before = regressor.target_layer.weight.detach().clone()
    assert smooth_bins(regressor, *measured(regressor, n)) is None
    assert torch.equal(before, regressor.target_layer.weight)


def test_the_last_layer_is_smoothed_and_nothing_else(store):
    settings = config.parse({"model": {"recalibration": "none", "width": 0.5, "bins": BINS}})
    regressor = jagged(settings, store)
    names = {name: value.clone() for name, value in regressor.state_dict().items()}
    features, truth = measured(regressor)
    before = regressor.network_logits(regressor.answers(features)[0])[0].detach()
    gain = smooth_bins(regressor, features, truth)
    after = regressor.network_logits(regressor.answers(features)[0])[0].detach()
    share = (truth[:, 0].double() + 24) / 2
    gained = float((nll(before, share) - nll(after, share)).mean())
    assert gained > 0.02 and gain == pytest.approx(gained, abs=5e-3)
    assert roughness(after) < 0.1 * roughness(before)
    changed = {name for name, value in regressor.state_dict().items() if not torch.equal(value, names[name])}
    assert changed == {"target_layer.weight", "target_layer.bias"}
    jitter = regressor.target_layer.weight[:, 1], names["target_layer.weight"][:, 1]
    assert roughness(jitter[0]) < 0.1 * roughness(jitter[1])


def test_the_kernel_suits_the_temperature_that_comes_next(store):
    """A network whose posteriors are twice too wide: its comb stands out once they are recalibrated."""
    settings = config.parse({"model": {"recalibration": "temperature", "width": 0.5, "bins": BINS}})
    regressor = jagged(settings, store)
    features, truth = measured(regressor)
    with torch.no_grad():
        regressor.target_layer.weight /= 4
        regressor.target_layer.bias /= 4
    sharp = smooth_bins(regressor, features, truth)
    assert sharp == pytest.approx(smooth_bins(jagged(settings, store), features, truth), rel=0.1)


def test_a_strange_image_is_tempered_as_recalibration_will():
    """Strange images with errors three times as large as they say."""
    rng = np.random.default_rng(0)
    share, strange = rng.uniform(0.2, 0.8, 2_000), rng.uniform(size=2_000) < 0.3
    told = share + np.where(strange, 0.06, 0.02) * rng.normal(size=2_000)
    places = (torch.arange(BINS) + 0.5) / BINS
    logits = -0.5 * ((places - torch.from_numpy(told)[:, None]) / 0.02) ** 2
    novelty = torch.from_numpy(np.where(strange, 2.0, 0.0))
    found = tempered(logits, torch.from_numpy(share), "local", novelty)
    scale = (found / logits).median(dim=1).values.numpy()
    for chosen in (strange, ~strange):
        right = (0.02 / np.std((told - share)[chosen])) ** 2  # near 1/9 and 1
        assert np.median(scale[chosen]) == pytest.approx(right, rel=0.2)


def test_recalibration_begins_with_it(store):
    settings = config.parse({"model": {"recalibration": "temperature", "width": 0.5, "bins": 64}})
    regressor = jagged(settings, store)
    rough = roughness(regressor.target_layer.bias)
    logged = recalibrate(settings, regressor, store)
    assert "smooth_bins/gain_nats" in logged and logged["recalibration/temperature"] != 1
    assert roughness(regressor.target_layer.bias) < 0.5 * rough


def test_it_can_be_switched_off_and_other_heads_are_smooth_already(store):
    off = config.parse({"model": {"recalibration": "temperature", "width": 0.5, "smooth_bins": False}})
    regressor = jagged(off, store)
    kept = regressor.target_layer.weight.clone()
    assert "smooth_bins/gain_nats" not in recalibrate(off, regressor, store)
    assert torch.equal(regressor.target_layer.weight, kept)
    other = config.parse({"model": {"recalibration": "temperature", "width": 0.5, "head": "mixture"}})
    assert "smooth_bins/gain_nats" not in recalibrate(other, jagged(other, store), store)


def test_too_few_truths_leave_the_bins_alone(store):
    settings = config.parse({"model": {"width": 0.5, "bins": 64}})
    regressor = jagged(settings, store)
    kept = regressor.target_layer.weight.clone()
    truth = torch.full((40, 1), torch.nan)
    truth[:10] = -23.0
    assert smooth_bins(regressor, torch.randn(40, regressor.n_features), truth) is None
    assert torch.equal(regressor.target_layer.weight, kept)


def test_each_member_of_an_ensemble_is_smoothed(store):
    settings = config.parse({"model": {"recalibration": "temperature", "width": 0.5, "bins": BINS}})
    ensemble = Ensemble.of([jagged(settings, store, seed) for seed in (0, 1)])
    rough = [roughness(member.target_layer.bias) for member in ensemble.members]
    assert smooth_bins(ensemble, *measured(ensemble)) > 0.02
    for member, before in zip(ensemble.members, rough, strict=True):
        assert roughness(member.target_layer.bias) < 0.1 * before
