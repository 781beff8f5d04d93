"""Figures draw without a warning whatever the data, and the same data give the same bytes."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import StepPatch

from darkarc.data.form import DataForm
from darkarc.evaluation.binning import by_bin, mass_edges
from darkarc.evaluation.classes import score_classes
from darkarc.evaluation.figures import (
    calibration_figure,
    classes_figure,
    error_figure,
    examples_figure,
    learning_figure,
    prediction_figure,
    published_figure,
)
from darkarc.evaluation.figures.accuracy import SHOWN, spread_over_truth
from darkarc.evaluation.figures.calibration import binomial_band, coverage_curve
from darkarc.evaluation.figures.training import curve_names
from darkarc.evaluation.metrics import Scores, coverage, draw_references, score
from darkarc.evaluation.published import compare
from darkarc.evaluation.style import axis_label, style, to_png
from darkarc.models import Posterior
from tests.evaluation.conftest import EDGES, HISTORY, posterior_and_truth

TARGET = "log10_axion_mass_ev"


def scored(n: int) -> Scores:
    posterior, truth = posterior_and_truth(max(n, 1))
    return score(posterior, truth, draw_references(EDGES, len(truth), 0))[:n]


def render(draw: Callable[[], Figure]) -> bytes:
    with style():
        return to_png(draw())


def error(n: int, noise: str) -> Figure:
    scores = scored(n)
    rows = by_bin(scores, scores.truth, mass_edges(-24.0, -22.0, 5), seed=0)
    return error_figure(
        TARGET, scores, rows, -23.0, compare(TARGET, DataForm("model_iii", noise, "deeplense"))
    )


def examples(n_best: int, n_worst: int) -> Figure:
    posterior, truth = posterior_and_truth(20)
    images = np.random.default_rng(0).normal(size=(20, 8, 8))
    best, worst = ((images[:n], posterior[:n], truth[:n]) for n in (n_best, n_worst))
    return examples_figure(TARGET, best, worst)


def classes(n: int) -> Figure:
    rng = np.random.default_rng(0)
    labels, probability = rng.integers(0, 3, n), rng.dirichlet([1, 1, 1], n)
    return classes_figure(labels, probability, score_classes(labels, probability))


CASES: dict[str, Callable[[], Figure]] = {
    "prediction": lambda: prediction_figure(TARGET, scored(500), EDGES),
    "prediction, one image": lambda: prediction_figure(TARGET, scored(1), EDGES),
    "prediction, none": lambda: prediction_figure(TARGET, scored(0), EDGES),
    "error": lambda: error(300, "published"),
    "error, two images": lambda: error(2, "physical"),
    "error, none": lambda: error(0, "physical"),
    "calibration": lambda: calibration_figure(scored(300), "axion mass"),
    "calibration, two images": lambda: calibration_figure(scored(2), "axion mass"),
    "calibration, none": lambda: calibration_figure(scored(0), "axion mass"),
    "classes": lambda: classes(60),
    "classes, none": lambda: classes(0),
    "classes, one image": lambda: classes(1),
    "examples": lambda: examples(6, 6),
    "examples, two rows and one": lambda: examples(8, 1),
    "examples, none": lambda: examples(0, 0),
    "learning": lambda: learning_figure(HISTORY, TARGET),
    "learning, one epoch": lambda: learning_figure(HISTORY[:1], TARGET),
    "learning, none": lambda: learning_figure([], TARGET),
    "published": lambda: published_figure(
        compare(TARGET, DataForm("model_i", "published", "deeplense")), 0.2, 0.01, 0.5
    ),
    "published, other noise": lambda: published_figure(
        compare(TARGET, DataForm("model_i", "none", "deeplense")), 0.2, None, None
    ),
    "published, none": lambda: published_figure(compare(TARGET, DataForm(None, None, None)), 0.2, None, None),
}


def test_an_interval_within_one_bin_is_drawn_dark() -> None:
    density = np.full((1, 64), 1e-6)
    density[0, 20] = 1.0
    density /= density.sum() * (2 / 64)
    edges = np.linspace(-24, -22, 65)
    one = Posterior(edges, density, np.array([[1.0, 0, 0]]), TARGET)
    low, high = one.interval(0.68)[0]
    assert edges[20] < low < high < edges[21]
    drawn = np.zeros((1, 8, 8)), one, np.array([-23.36])
    drawn[0][0, 4, 4] = 1.0
    with style():
        figure = examples_figure(TARGET, drawn, drawn)
    steps = [patch for axes in figure.axes for patch in axes.patches if isinstance(patch, StepPatch)]
    dark = [np.flatnonzero(step.get_data().values) for step in steps if step.get_alpha() == 0.9]
    assert [bins.tolist() for bins in dark] == [[20], [20]]


@pytest.mark.parametrize("name", CASES)
def test_draws_without_warning(name: str) -> None:
    pixels = imread(BytesIO(render(CASES[name])))
    assert pixels.shape[0] > 200 and pixels.shape[1] > 500
    assert pixels[..., :3].std() > 0.005


@pytest.mark.parametrize("name", ["prediction", "examples", "published"])
def test_same_data_same_bytes(name: str) -> None:
    first = render(CASES[name])
    assert first == render(CASES[name])
    assert b"matplotlib" not in first and b"Matplotlib" not in first


def test_a_users_matplotlibrc_changes_nothing() -> None:
    import matplotlib

    plain = render(CASES["learning"])
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert render(CASES["learning"]) == plain


def test_no_text_leaves_the_figure() -> None:
    for draw in (CASES["prediction"], CASES["calibration"], CASES["published, other noise"], CASES["error"]):
        with style():
            figure = draw()
            figure.canvas.draw()
            box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert box.x0 >= -0.01 and box.y0 >= -0.01
        assert box.x1 <= width + 0.01 and box.y1 <= height + 0.01


def test_shown_images_are_even_in_truth() -> None:
    truth = np.random.default_rng(0).uniform(-24, -22, 5000)
    chosen = spread_over_truth(truth, SHOWN)
    assert len(chosen) == len(set(chosen)) == SHOWN
    assert np.histogram(truth[chosen], bins=4, range=(-24, -22))[0].min() > 0.2 * SHOWN
    assert spread_over_truth(truth[:3], SHOWN).tolist() == np.argsort(truth[:3]).tolist()


def test_curve_and_metric_of_coverage_agree() -> None:
    pit = scored(400).pit
    levels = np.array([0.5, 0.68, 0.9])
    np.testing.assert_allclose(coverage_curve(pit, levels), [coverage(pit, level) for level in levels])


def test_band_holds_95_percent_of_binomial_draws() -> None:
    low, high = binomial_band(400, 0.68)
    draws = np.random.default_rng(0).binomial(400, 0.68, 20_000) / 400
    assert 0.94 < np.mean((draws >= low) & (draws <= high)) < 0.98


def test_curves_come_from_the_names_in_the_history() -> None:
    assert curve_names([{"epoch": 1, "val_odd": 1.0, "train_loss": 2.0, "val_mae_dex": 0.1}]) == [
        "loss", "mae_dex", "odd"
    ]  # fmt: skip


def test_labels_carry_units() -> None:
    assert axis_label(TARGET, "true") == r"true $\log_{10}(m_\mathrm{a}\,/\,\mathrm{eV})$"
    assert r"M_\odot" in axis_label("log10_subhalo_mass_msun")
