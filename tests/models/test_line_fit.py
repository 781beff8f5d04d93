"""The fitted vortex: against truths, linear algebra and the exact posterior."""

import itertools

import numpy as np
import pytest
import torch

from darkarc.models import Posterior
from darkarc.models.line_fit import LineFit, _averaged, solve
from darkarc.models.vortex_fit import ANGLE_STARTS_DEG, MASS_STARTS
from darkarc.simulation import PRESETS, draw_scenes, render

N = 40


def lenses(preset: str, class_name: str, log10_mass: tuple[float, float] = (-23.2, -22.5)):
    """Noisy images (N, H, W) and the scenes, those of axion lenses with masses evenly between two."""
    scenes = draw_scenes(preset, class_name, 5, range(N))
    if class_name == "axion":
        masses = np.linspace(*log10_mass, N).reshape(scenes.log10_mass_ev.shape)
        scenes.log10_mass_ev[...] = masses
    return render(preset, scenes, noise="physical", seed=5), scenes


def starts(scenes, *, mass: float = 0.0, angle: float = 0.0) -> torch.Tensor:
    """(N, 35, 4) around the truth moved by `mass` and `angle`, as a network would give them."""
    truth = np.concatenate(
        [
            np.asarray(scenes.source_arcsec).reshape(N, 2) + 0.01,
            np.asarray(scenes.angle_rad).reshape(N, 1) + angle,
            np.asarray(scenes.log10_mass_ev).reshape(N, 1) + 23.0 + mass,
        ],
        axis=1,
    )
    around = [[0, 0, np.radians(a), 0.01 * m] for a, m in itertools.product(ANGLE_STARTS_DEG, MASS_STARTS)]
    return torch.from_numpy(truth[:, None] + np.array(around)).float()


def line_fit(preset: str) -> LineFit:
    return LineFit(PRESETS[preset], "deeplense", (-24.0, -22.0))


@pytest.mark.parametrize("preset", ["model_ii", "model_iii"])
def test_pulls_are_of_unit_width(preset: str) -> None:
    images, scenes = lenses(preset, "axion", (-23.2, -22.9))
    found = line_fit(preset)(images, starts(scenes, mass=0.003, angle=0.03))
    truth = torch.from_numpy(np.asarray(scenes.log10_mass_ev)).flatten() + 23
    pull = (found.parameters[:, 3] - truth) / found.sigma
    right = pull.abs() < 5  # in one of some hundred lenses the line passes the centre of a pixel
    assert int(right.sum()) >= N - 2, pull
    assert 0.75 < float(pull[right].std()) < 1.3
    assert float(found.excess[right].abs().max()) < 4.5
    assert abs(float(found.excess[right].mean())) < 0.6


def test_it_is_the_exact_posterior_where_that_is_a_normal_one() -> None:
    """Median within a fifth of the width, width within a tenth, for a few lenses of the floor's own."""
    from darkarc.evaluation.floor import exact_answers

    images, scenes = lenses("model_iii", "axion")
    chosen = [3, 11, 19, 27, 35]
    found = line_fit("model_iii")(images, starts(scenes, mass=0.003, angle=0.03))
    edges = np.linspace(-24, -22, 8193)
    answers = exact_answers(images[chosen].double().numpy(), "model_iii", "physical", bins=8192)
    for row, answer in zip(chosen, answers, strict=True):
        exact = Posterior(edges, answer.density[None], np.array([[1.0, 0, 0]]), "log10_axion_mass_ev")
        away = float(found.parameters[row, 3]) - 23 - float(exact.median[0])
        assert abs(away) < 0.2 * float(exact.std[0])
        assert 0.9 < float(found.sigma[row] / exact.std[0]) < 1.1


def test_chi_square_tells_lenses_without_a_vortex() -> None:
    images, _ = lenses("model_iii", "cdm")
    _, scenes = lenses("model_iii", "axion")
    found = line_fit("model_iii")(images, starts(scenes))
    assert float(found.excess.median()) > 10
    assert bool(torch.isfinite(found.sigma).all())


def test_the_solution_is_linear_algebras() -> None:
    generator = torch.Generator().manual_seed(2)
    slopes = torch.randn(6, 4, 30, generator=generator, dtype=torch.float64)
    normal = slopes @ slopes.transpose(1, 2)
    scale = torch.tensor([1e-3, 1.0, 30.0, 1e4], dtype=torch.float64)
    normal = normal * scale[:, None] * scale
    right, damping = torch.randn(6, 4, generator=generator, dtype=torch.float64), torch.full((6,), 0.3)
    damped = normal + 0.3 * torch.diag_embed(normal.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(solve(normal, right, damping.double()), torch.linalg.solve(damped, right))


def tops(seed: int):
    """Two images with three tops each, float64: places (2, 3, 4), normal equations and heights."""
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.randn(2, 3, 4, 30, generator=generator, dtype=torch.float64)
    normal = slopes @ slopes.transpose(2, 3) * torch.tensor([1.0, 4.0, 0.5])[:, None, None]
    at = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    heights = 5000 + torch.tensor([[0.0, 1.0, 3.0], [2.0, 40.0, 0.0]], dtype=torch.float64)
    excess = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    return at, normal, heights, excess


def test_tops_count_by_their_evidence() -> None:
    """As the mean and variance of what random numbers drawn from a mixture of normal distributions have."""
    at, normal, heights, excess = tops(3)
    found = _averaged(at, normal, heights, excess)
    rng = np.random.default_rng(0)
    for k in range(2):
        covariance = np.linalg.inv(normal[k].numpy())
        weight = np.exp(-(heights[k].numpy() - 5000) / 2) * np.sqrt(np.linalg.det(covariance))
        weight /= weight.sum()
        chosen = rng.choice(3, 200_000, p=weight)
        noise = np.einsum("nij,nj->ni", np.linalg.cholesky(covariance)[chosen], rng.normal(size=(200_000, 4)))
        draws = at[k].numpy()[chosen] + noise
        assert found.parameters[k].numpy() == pytest.approx(draws.mean(axis=0), abs=0.01)
        assert float(found.sigma[k]) == pytest.approx(draws[:, 3].std(), rel=0.01)
        assert float(found.excess[k]) == pytest.approx(float((torch.from_numpy(weight) * excess[k]).sum()))


def test_the_same_top_twice_is_one() -> None:
    once = [column[:, :1] for column in tops(4)]
    twice = [torch.cat([column, column], dim=1) for column in once]
    for one, two in zip(_averaged(*once), _averaged(*twice), strict=True):
        torch.testing.assert_close(two, one)


def test_two_tops_of_one_height_are_not_chosen_between() -> None:
    """What rounding does to their heights moves the answer by as little, where a choice would leap."""
    at, normal, _, excess = tops(5)
    level = torch.full((2, 3), 5000.0, dtype=torch.float64)
    tilted = level + torch.tensor([1e-3, 0.0, -1e-3])
    here, there = _averaged(at, normal, level, excess), _averaged(at, normal, tilted, excess)
    assert 0 < float((here.parameters - there.parameters).abs().max()) < 3e-3
    assert float(here.sigma.min()) > 0.3
