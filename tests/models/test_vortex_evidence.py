"""What the fitted lens says of a short vortex: against numpy, the truth, and whole images' likelihood."""

import math

import numpy as np
import pytest
import torch

from darkarc.config import ModelConfig
from darkarc.models import Regressor, RegressorSpec
from darkarc.models.lens_residual import LensResidual
from darkarc.models.weighted_fit import fit_pair, orthogonal
from darkarc.simulation import PRESETS, get_preset, model_image, simulate

SOURCES = [[0.05, -0.1], [-0.3, 0.2], [0.33, 0.34], [0.0, 0.01]]


def images(preset: str, noise: str, log10_mass: float, angle: float = 0.7) -> torch.Tensor:
    made = simulate(
        preset,
        log10_mass_ev=[log10_mass] * 4,
        angle_rad=[angle] * 4,
        source_arcsec=SOURCES,
        noise=noise,
        seed=5,
    )
    return torch.from_numpy(made)[:, None]


def lens(preset: str, noise: str) -> LensResidual:
    return LensResidual(preset, noise, "deeplense", PRESETS[preset].instrument.shape, "compact", "full")


def facts(preset: str, noise: str, log10_mass: float) -> torch.Tensor:
    found = lens(preset, noise)(images(preset, noise, log10_mass))[1]
    assert found is not None
    return found


def log10_mass_of(size: torch.Tensor) -> torch.Tensor:
    """The mass whose vortex has the quadrupole exp(2 size) of a unit's: L^2 goes as m^-2."""
    return -22.5 - size / 2 / math.log(10)


def test_a_pair_is_numpys_least_squares() -> None:
    rest, first, second, *others = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    weight = torch.rand(3, 6, 6, dtype=torch.float64) + 0.1
    pair = fit_pair(rest, first, second, orthogonal(others, weight), weight)
    for k in range(3):
        root = weight[k].sqrt().flatten()
        columns = torch.stack([(x[k].flatten() * root) for x in (first, second, *others)], dim=1).numpy()
        target = (rest[k].flatten() * root).numpy()
        expected, left, _, _ = np.linalg.lstsq(columns, target, rcond=None)
        assert pair.found[k].numpy() == pytest.approx(expected[:2], rel=1e-9)
        covariance = np.linalg.inv(columns.T @ columns)[:2, :2]
        assert float(pair.variance[k]) == pytest.approx(np.trace(covariance), rel=1e-9)
        _, without, _, _ = np.linalg.lstsq(columns[:, 2:], target, rcond=None)
        assert float(pair.chi_square[k]) == pytest.approx(float(without[0] - left[0]), rel=1e-9)


@pytest.mark.parametrize("preset", ["model_ii", "model_iii"])
def test_the_quadrupole_of_a_noise_free_image_is_the_particle_s_mass(preset: str) -> None:
    for mass in (-22.7, -22.3, -22.05):
        near, far = facts(preset, "published", mass)[:, 0], facts(preset, "published", mass)[:, 3]
        assert (log10_mass_of(near) - mass).abs().max() < 0.02, near
        assert (log10_mass_of(far) - mass).abs().max() < 0.005, far


def test_the_likelihood_is_that_of_whole_images() -> None:
    """The source held where it was fitted, lengths and angles by brute force over all pixels."""
    preset, fitted = get_preset("model_iii"), lens("model_iii", "physical")
    data = images("model_iii", "physical", -22.3)
    _, places = fitted.fit(data)
    found = torch.sinh(facts("model_iii", "physical", -22.3)[:, 3:]).double()
    seconds = 10 ** preset.instrument.log10_exposure_s[0]
    grid = torch.cartesian_prod(
        torch.linspace(-22.8, -22.0, 11, dtype=torch.float64),
        torch.arange(16, dtype=torch.float64) * math.pi / 16,
    )
    every = torch.cat([torch.tensor([[-19.0, 0.0]], dtype=torch.float64), grid])
    for image, place, ratios in zip(data, places.double(), found, strict=True):
        models = model_image(
            preset, place.expand(len(every), 2), log10_mass_ev=every[:, 0], angle_rad=every[:, 1]
        )
        variance = float(preset.instrument.background_sigma(seconds)) ** 2 + models[0] / seconds
        chi2 = ((image - models).square() / variance).sum(dim=(1, 2))
        each = ((chi2[0] - chi2[1:]) / 2).reshape(11, 16)
        expected = torch.logsumexp(each, dim=1) - math.log(16)
        likely = expected > expected.max() - 5
        assert likely.sum() >= 2
        # The refitted source takes away a part of the far field, and the far field is an expansion.
        assert torch.allclose(ratios[likely], expected[likely], atol=1.5), (ratios, expected)
        assert abs(int(ratios.argmax()) - int(expected.argmax())) <= 1


def test_the_facts_reach_the_answer_and_can_be_left_out() -> None:
    form = {"preset": "model_iii", "noise": "physical", "distances": "deeplense"}

    def made(fit: str) -> Regressor:
        model = ModelConfig(width=0.25, lens_residual="compact", lens_fit=fit).model_dump(mode="json")
        statistics = {"mean": 0.4, "std": 1.3}
        spec = RegressorSpec(
            {"log10_axion_mass_ev": (-24.0, -22.0)}, (64, 64), model, statistics, "HST", form
        )
        return Regressor(RegressorSpec.from_json(spec.to_json())).eval()

    full, plain = made("full"), made("source")
    assert full.n_features == plain.n_features + 64 and plain.facts_layer is None
    assert full.facts_layer is not None
    data = images("model_iii", "physical", -22.4)
    before = full.features(data)
    with torch.no_grad():
        full.facts_layer[0].weight.mul_(2.0)
    after = full.features(data)
    assert torch.equal(before[:, :-64], after[:, :-64]) and not torch.allclose(
        before[:, -64:], after[:, -64:]
    )


def test_only_the_compact_lens_has_facts_and_counts_have_no_centre() -> None:
    made = {
        (preset, noise, name): LensResidual(
            preset, noise, "deeplense", PRESETS[preset].instrument.shape, name
        ).n_facts
        for preset, noise, name in [
            ("model_iii", "physical", "compact"),
            ("model_iii", "physical", "bare"),
            ("model_iii", "published", "compact"),
            ("model_i", "published", "compact"),
        ]
    }
    assert list(made.values()) == [14, 0, 6 + 2, 3]  # without noise the source's position, too


def test_a_fit_to_the_middle_is_the_whole_one_there() -> None:
    preset, noise = "model_i", "published"
    shape = PRESETS[preset].instrument.shape
    whole, middle = (
        LensResidual(preset, noise, "deeplense", shape, "compact", "full", seen) for seen in (0, 88)
    )
    data = images(preset, noise, -23.5)
    a, b = whole.fit(data), middle.fit(data)
    assert b[0].shape == (4, 94, 94)
    assert torch.allclose(a[1], b[1], atol=2e-3)
    assert torch.allclose(a[0][:, 31:-31, 31:-31], b[0][:, 3:-3, 3:-3], atol=0.1)
