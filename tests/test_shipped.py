"""The regressors in `models/`: small, sealed, described, and as good as their cards say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import darkarc
from darkarc.models import RegressorSpec
from darkarc.serving import load
from darkarc.serving.onnx_file import read_onnx
from darkarc.simulation import draw_scenes, render

MODELS = sorted((Path(__file__).resolve().parents[1] / "models").glob("*.onnx"))
LARGEST_ERROR_DEX = {
    "model_i": 0.35,
    "model_i_physical": 0.35,
    "model_ii": 0.02,
    "model_ii_physical": 0.11,
    "model_iii": 0.02,
    "model_iii_physical": 0.05,
}
"""Well above the cards' errors: this looks at few images."""


def speaks_of(card: str, spec: RegressorSpec, error: np.ndarray) -> bool:
    """Whether a card is of this regressor, whose errors (N,) on new images are within three standard
    deviations of what it says."""
    facts = dict(re.findall(r"^\| (Preset|Noise|Distances|Instrument) \| (.+) \|$", card, re.MULTILINE))
    bins = re.search(r" head on (\d+) bins\.", card)
    found = re.search(r"^\| Mean absolute error \(dex\) \| ([\d.]+) ± ([\d.]+) \|$", card, re.MULTILINE)
    assert spec.form is not None and bins is not None and found is not None
    told = {name: facts[name.capitalize()] for name in spec.form} | {"instrument": facts["Instrument"]}
    mae, own = float(found[1]), float(found[2])
    chance = np.hypot(own, error.std(ddof=1) / np.sqrt(len(error)))
    return (
        told == spec.form | {"instrument": spec.instrument}
        and int(bins[1]) == spec.model["bins"]
        and abs(error.mean() - mae) < 3 * chance
    )


def test_models_are_there() -> None:
    assert set(LARGEST_ERROR_DEX) == {p.stem for p in MODELS}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_no_image_keeps_the_others_from_their_answer(path: Path) -> None:
    """Empty, burnt and broken images beside a real one: what they get is theirs alone."""
    regressor = load(str(path))
    form = regressor.spec.form
    lens = render(form["preset"], draw_scenes(form["preset"], "axion", 7, [0]), noise=form["noise"], seed=7)
    lens = lens.numpy().astype(np.float32)
    hot, broken = lens.copy(), lens.copy()
    hot[0, 5, 7], broken[0, 20, 20] = 1e20, np.nan
    strange = [lens, 0 * lens, 0 * lens + 1, 1e30 * lens, hot, broken, -lens]
    alone, beside = (regressor(torch.from_numpy(x)[:, None]) for x in (lens, np.concatenate(strange)))
    for part in ("median", "quantiles", "class_probability"):
        one, other = getattr(alone, part)[0], getattr(beside, part)[0]
        # Sums over a batch of another size may round otherwise.
        assert torch.allclose(one, other, rtol=0, atol=1e-4), part
    assert beside.median[1:3].isfinite().all(), "an even image has an answer, if a worthless one"


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_shipped_regressor_answers_as_well_as_its_card_says(path: Path) -> None:
    assert path.stat().st_size < 8e6
    spec = read_onnx(path).spec
    form = spec.form
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
    assert speaks_of(card, spec, error), error.mean()
    others = [other.stem for other in MODELS if speaks_of(other.with_suffix(".md").read_text(), spec, error)]
    assert others == [path.stem]
    assert not speaks_of(card.replace("error (dex) | 0", "error (dex) | 3"), spec, error)
    assert darkarc.load(str(path)).targets == ("log10_axion_mass_ev",)
