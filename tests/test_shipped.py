"""The regressors in `models/`: small, sealed, described, and as good as their cards say."""

from pathlib import Path

import numpy as np
import pytest

import darkarc
from darkarc.serving import load
from darkarc.serving.onnx_file import read_onnx
from darkarc.simulation import draw_scenes, render

MODELS = sorted((Path(__file__).resolve().parents[1] / "models").glob("*.onnx"))
LARGEST_ERROR_DEX = {
    "model_i": 0.35,
    "model_ii": 0.02,
    "model_ii_physical": 0.11,
    "model_iii": 0.02,
    "model_iii_physical": 0.05,
}
"""Well above the cards' errors: this looks at few images."""


def test_models_are_there() -> None:
    assert set(LARGEST_ERROR_DEX) == {p.stem for p in MODELS}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_shipped_regressor_answers_as_well_as_its_card_says(path: Path) -> None:
    assert path.stat().st_size < 8e6
    form = read_onnx(path).spec.form
    assert form is not None
    assert path.stem == form["preset"] + ("_physical" if form["noise"] == "physical" else "")
    card = path.with_suffix(".md").read_text()
    assert "## Test results" in card and "## Limits" in card
    n = 12 if form["preset"] == "model_i" else 48
    scenes = draw_scenes(form["preset"], "axion", 4242, range(n))
    images = render(form["preset"], scenes, noise=form["noise"], seed=4242).numpy()
    posterior = load(str(path)).predict(images)
    assert posterior.class_probability[:, 0].mean() > 0.8
    error = np.abs(posterior.median - scenes.log10_mass_ev)
    assert error.mean() < LARGEST_ERROR_DEX[path.stem], error.mean()
    assert darkarc.load(str(path)).targets == ("log10_axion_mass_ev",)
